"""The parts of one workspace, each built on first use so that opening a workspace stays cheap."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.experiment.outcomes import Outcomes, Recorded
from ragtune_mcp.core.experiment.ramp import Ramp
from ragtune_mcp.core.experiment.report import AbReport
from ragtune_mcp.core.experiment.serving import SearchService
from ragtune_mcp.core.experiment.trials import TrialStore
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.outbox import FlushResult, Outbox
from ragtune_mcp.core.feedback.states import FeedbackStates
from ragtune_mcp.core.jobs.job import Job
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.models.pool import EncoderPool
from ragtune_mcp.core.models.registry import Registry
from ragtune_mcp.core.retrieval.documents import DocumentStore
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.search import Searcher
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


class Parts:
    """Stores and stages of one workspace, wired. Thread-safe as far as the parts are."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.settings: Settings = workspace.settings
        workspace.prepare()
        self.db = Database(workspace.database)
        self.jobs = JobStore(self.db, workspace, ended=self._log_end)
        self.registry = Registry(self.db, workspace)
        self.outbox = Outbox(self.db)
        self.feedback_states = FeedbackStates(self.db, self.outbox)
        self.documents = DocumentStore(self.db)
        self.trials = TrialStore(self.db, is_enabled=self.settings.ab_testing_enabled)
        self.outcomes = Outcomes(self.db, self.trials, publish=self._publish)
        self.ab_report = AbReport(self.db, self.trials)
        self.ramp = Ramp(self.db, self.trials)

    @cached_property
    def conport(self) -> ConPortClient:
        """ConPort; its process starts at the first call that needs it."""
        return ConPortClient(self.workspace.id, self.settings)

    @cached_property
    def encoders(self) -> EncoderPool:
        """Query encoders by version, loaded in the background."""
        return EncoderPool(self.workspace, self.registry)

    @cached_property
    def index(self) -> VectorIndex:
        """The vector collections."""
        return VectorIndex(self.workspace, self.db)

    @cached_property
    def searcher(self) -> Searcher:
        """Queries to ranked documents."""
        return Searcher(self.index, self.documents, self.encoders)

    @cached_property
    def service(self) -> SearchService:
        """Searches as users see them: assigned, logged, blind."""
        return SearchService(self.db, self.trials, self.searcher.search, self.champion)

    def champion(self) -> str:
        """The version that serves.

        Returns:
            Its id.

        Raises:
            NotReady: nothing is indexed yet.
        """
        version = self.registry.alias("champion")
        if version is None:
            raise NotReady("No documents are indexed yet.", hint="Call index_documents first.")
        return version

    def flush_outbox(self) -> FlushResult:
        """Deliver what waits for ConPort; an absent ConPort leaves it waiting and is named in the result."""
        return self.outbox.flush(self.conport)

    def log_training(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """Tell ConPort where a training job stands; its entry is replaced each time."""
        self.outbox.put_custom_data(
            "ModelTraining",
            f"training_job_{job.job_id}",
            {
                "job_id": job.job_id,
                "base_model": job.spec["config"]["base_model_name"],
                "dataset_id": job.spec["dataset_id"],
                "started_at": job.started_at,
                **outcome,
            },
        )

    def _log_end(self, job: Job) -> None:
        if job.kind in ("finetune", "distill"):
            error = {"error": dict(job.error)} if job.error else {}
            self.log_training(
                job, {"status": job.status, "finished_at": job.finished_at, **job.result, **error}
            )

    def _publish(self, recorded: Recorded) -> None:
        self.outbox.put_custom_data("UserFeedback", recorded.feedback_id, recorded.value)

    def close(self) -> None:
        """End the child processes and close the database."""
        if "conport" in self.__dict__:
            self.conport.close()
        self.db.close()
