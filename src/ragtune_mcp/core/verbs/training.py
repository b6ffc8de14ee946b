"""Verbs of training: build a data set, start and watch jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ragtune_mcp.core.dataset.export import find_dataset, load_dataset
from ragtune_mcp.core.dataset.generator import TrainingDataGenerator
from ragtune_mcp.core.dataset.lineage import mark_stale
from ragtune_mcp.core.dataset.options import DatasetOptions
from ragtune_mcp.core.dataset.validate import refuse_leaks
from ragtune_mcp.core.errors import FeatureDisabled, GateBlocked, InvalidInput, NotEnoughData, UnknownId
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.student import layers_to_keep
from ragtune_mcp.core.jobs.job import FINAL, Job, JobKind, JobState
from ragtune_mcp.core.models.layout import refuse_prompts
from ragtune_mcp.core.parts import Parts
from ragtune_mcp.core.results import (
    CancelResult,
    DatasetStatistics,
    ErrorInfo,
    GateResult,
    JobEvent,
    JobStarted,
    JobStatusResult,
    TrainingDataResult,
)

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
_SUFFIX_LIMIT = 64
_NAMES: Mapping[JobKind, str] = {"finetune": "Fine-tuning job", "distill": "Distillation job"}


class TrainingVerbs(Parts):
    """generate_training_data, start_finetune, distill, job_status, cancel_job."""

    def generate_training_data(
        self,
        *,
        min_positive_samples: int | None = None,
        min_negative_samples: int | None = None,
        include_hard_negatives: bool | None = None,
        include_synthetic: bool = False,
        days_back: int = 90,
        export_format: str = "csv",
        progress: Progress | None = None,
    ) -> TrainingDataResult:
        """Turn the feedback in ConPort into a data set on disk; None means the workspace's setting."""
        settings = self.settings
        options = DatasetOptions.from_settings(
            settings,
            min_positive_samples=min_positive_samples,
            min_negative_samples=min_negative_samples,
            include_hard_negatives=include_hard_negatives,
            include_synthetic=include_synthetic,
            days_back=days_back,
            export_format=export_format,
        )
        try:
            built = self.generator().build(options, progress)
        except NotEnoughData:
            # The feedback was read all the same, and what is gone from it may be why there is too little.
            self._mark_stale()
            raise
        return TrainingDataResult(
            training_data_path=self.workspace.relative(built.path),
            dataset_id=built.dataset_id,
            statistics=DatasetStatistics(**built.statistics),
            warnings=[*built.warnings, *self._mark_stale()],
            next_step=f"Call start_finetune with dataset_id={built.dataset_id!r}.",
        )

    def watch_feedback(self) -> None:
        """Mark what rests on ratings that were changed or deleted in ConPort since the last look.

        Cheap enough to be called often; does nothing where ConPort's file cannot be read.
        """
        if self.feedback_states.refresh(self.conport):
            for warning in self._mark_stale():
                log.info("%s", warning)

    def _mark_stale(self) -> list[str]:
        """Mark data sets and versions whose ratings are no longer what they were made of; in words."""
        found = mark_stale(self.workspace.training_data, self.feedback_states.hashes())
        versions: set[str] = set()
        for dataset_id, stale in found.items():
            for feedback_id in (*stale.deleted, *stale.changed):
                # A version made of a later data set learned from the entry as it is now.
                versions |= {
                    version
                    for version in self.registry.trained_on(feedback_id)
                    if feedback_id in stale.deleted or self.registry.get(version).dataset_id == dataset_id
                }
        for version in versions:
            self.registry.mark_stale(version)
        if not versions:
            return []
        deleted = len({i for stale in found.values() for i in stale.deleted})
        changed = len({i for stale in found.values() for i in stale.changed})
        return [
            f"Of the ratings used before, {deleted} were deleted and {changed} changed in ConPort; "
            f"stale: {', '.join(sorted(versions))}."
        ]

    def generator(self, conport: ConPortClient | None = None) -> TrainingDataGenerator:
        """The data set generator over the feedback of a ConPort and, where there is one, the index."""
        champion = self.registry.alias("champion")
        corpus = self.searcher.corpus(champion) if champion else None
        return TrainingDataGenerator(
            conport or self.conport,
            self.workspace,
            outbox=self.outbox,
            corpus=corpus,
            documents=self.documents if champion else None,
        )

    def start_finetune(
        self,
        *,
        training_data_path: str = "",
        dataset_id: str = "",
        base_model: str = "",
        model_name_suffix: str = "feedback",
        config: Mapping[str, Any] | None = None,
    ) -> JobStarted:
        """Check everything that can be checked now, then hand the training to a background job."""
        self._refuse_when_off()
        if (
            not model_name_suffix.replace("-", "").replace("_", "").isalnum()
            or len(model_name_suffix) > _SUFFIX_LIMIT
        ):
            raise InvalidInput(
                f"model_name_suffix {model_name_suffix!r} is not 1 to {_SUFFIX_LIMIT} letters, digits, '-' and '_'."
            )
        settings = FineTuningConfig.from_settings(
            self.settings, base_model=base_model, overrides=config or {}
        )
        self.workspace.inside(settings.output_model_path)
        path = self._dataset_path(training_data_path, dataset_id)
        dataset = load_dataset(path)
        refuse_leaks(dataset)
        train = sum(pair.split == "train" for pair in dataset.pairs)
        if train < 2:
            raise NotEnoughData(
                f"{path.name} holds {train} training pairs; at least 2 are needed.",
                hint="Call generate_training_data with more feedback.",
            )
        name = settings.base_model_name
        if self.registry.has(name):
            base = self.registry.resolve(name)
            if base.gate is not None and base.gate["verdict"] == "block":
                raise GateBlocked(
                    f"The gate blocked {name!r}; what is tuned from it would be judged against it alone.",
                    hint="Name a base model, or a version that passed its gate; see list_models.",
                )
        else:
            found = resolve_base_model(name, self.workspace.root, self.settings.ragtune_allow_downloads)
            refuse_prompts(found.path)
        documents = self.documents.count()
        spec = {
            "training_data_path": str(path),
            "dataset_id": dataset.dataset_id,
            "model_name_suffix": model_name_suffix,
            "config": settings.to_dict(),
        }
        job, message = self._started("finetune", spec)
        if not documents:
            message += (
                ", but no documents are indexed, so the gate will block: call index_documents and start again"
            )
        return JobStarted(
            job_id=job.job_id,
            status=job.status,
            message=f"{message}. Call job_status with job_id={job.job_id!r} and wait_s=30 until it ends.",
            estimate={"train_pairs": train, "documents": documents},
        )

    def distill(self, version: str, *, layers: int = 3) -> JobStarted:
        """Start a job that makes a smaller, faster student of a tuned version and judges it against that."""
        self._refuse_when_off()
        teacher = self.registry.resolve(version)
        if teacher.dataset_id is None or teacher.gate is None:
            raise InvalidInput(
                f"{version!r} was not tuned on a data set, so nothing could judge its student.",
                hint="Name a fine-tuned version; see list_models.",
            )
        if teacher.gate["verdict"] == "block":
            raise GateBlocked(
                f"The gate blocked {version!r}; a student keeps up with its teacher at best.",
                hint="Name a version that passed its gate; see list_models.",
            )
        layers_to_keep(teacher.path, layers)
        path = self._dataset_path("", teacher.dataset_id)
        spec = {
            "training_data_path": str(path),
            "dataset_id": teacher.dataset_id,
            "model_name_suffix": "student",
            "layers": layers,
            "config": {
                "base_model_name": teacher.version,
                "output_model_path": self.settings.finetuned_models_path,
            },
        }
        job, message = self._started("distill", spec)
        return JobStarted(
            job_id=job.job_id,
            status=job.status,
            message=f"{message}. Call job_status with job_id={job.job_id!r} and wait_s=30 until it ends.",
            estimate={"layers": layers, "documents": self.documents.count()},
        )

    def _refuse_when_off(self) -> None:
        if not self.settings.finetuning_enabled:
            raise FeatureDisabled(
                "Fine-tuning is switched off by FINETUNING_ENABLED=false.",
                hint="Set FINETUNING_ENABLED=true.",
            )

    def _started(self, kind: JobKind, spec: dict[str, Any]) -> tuple[Job, str]:
        """A job for this input, going on with one that was stopped; and what to say about it."""
        stopped = self.jobs.same(kind, spec)
        if stopped is not None and (stopped.was_interrupted or stopped.status == "cancelled"):
            job, message = (
                self.jobs.restart(stopped.job_id),
                f"{_NAMES[kind]} started again from its last checkpoint",
            )
        else:
            job, message = self.submit(kind, spec), f"{_NAMES[kind]} started"
        return job, message if job.status == "running" else "Queued behind the running training job"

    def submit(self, kind: JobKind, spec: dict[str, Any]) -> Job:
        """Store a job and start its process, or leave it queued behind another of its kind."""
        return self.jobs.submit(kind, spec)

    def submit_once(
        self, kind: JobKind, spec: dict[str, Any], *, unless: Collection[JobState] = FINAL
    ) -> Job:
        """As `submit`, but an earlier job with the same input is that job, unless in one of these states."""
        found = self.jobs.same(kind, spec)
        return self.submit(kind, spec) if found is None or found.state in unless else found

    def job_status(self, job_id: str, wait_s: float = 0) -> JobStatusResult:
        """State of a job, after at most `wait_s` seconds of waiting for its end."""
        self.jobs.reconcile()
        return job_result(self.jobs.wait(job_id, wait_s), self.workspace.relative)

    def cancel_job(self, job_id: str) -> CancelResult:
        """Ask a job to stop; finished jobs stay as they are."""
        job = self.jobs.request_cancel(job_id)
        message = (
            f"The job is {job.status}."
            if job.is_final
            else "Cancellation requested; the worker stops at its next step."
        )
        return CancelResult(job_id=job_id, status=job.status, message=message)

    def _dataset_path(self, training_data_path: str, dataset_id: str) -> Path:
        if bool(training_data_path) == bool(dataset_id):
            raise InvalidInput(
                f"Give either training_data_path ({training_data_path!r}) or dataset_id ({dataset_id!r}).",
                hint="Call generate_training_data first; its answer names both.",
            )
        if training_data_path:
            path = self.workspace.inside(training_data_path)
            if not path.is_file():
                raise InvalidInput(
                    f"The file {training_data_path!r} does not exist.",
                    hint="Call generate_training_data first.",
                )
            return path
        found = find_dataset(self.workspace.training_data, dataset_id)
        if found is None:
            raise UnknownId(
                f"There is no data set {dataset_id!r}.",
                code="unknown_dataset",
                hint="Call generate_training_data first.",
            )
        return found


def job_result(job: Job, relative: Callable[[Path], str]) -> JobStatusResult:
    """A job as the tools answer it.

    Args:
        job: the stored job.
        relative: turns an absolute path into the one shown to users.

    Returns:
        The job's state; model fields only for a completed fine-tuning job.
    """
    result = dict(job.result)
    gate = result.pop("gate", None)
    path = result.pop("model_path", None)
    return JobStatusResult(
        job_id=job.job_id,
        kind=job.kind,
        status=job.status,
        progress=round(job.progress, 1),
        message=job.message,
        model_path=relative(Path(path)) if path else None,
        model_version=result.pop("model_version", None),
        training_duration=result.pop("training_duration", None),
        metrics=result.pop("metrics", {}),
        gate=GateResult(**gate) if gate else None,
        eta_s=job.eta_s,
        result=result,
        events=[
            JobEvent(at=event.at, message=event.message, fields=dict(event.fields)) for event in job.events
        ],
        error=ErrorInfo(**job.error) if job.error else None,
        next_step=_next_step(job, gate),
    )


def _next_step(job: Job, gate: Mapping[str, Any] | None) -> str:
    if job.status in ("queued", "running"):
        return f"Call job_status with job_id={job.job_id!r} and wait_s=30."
    if job.status == "failed":
        return job.error.get("hint", "") if job.error else ""
    if job.kind in ("finetune", "distill") and job.status == "completed" and gate:
        version = job.result.get("model_version")
        if gate["verdict"] == "block":
            if job.kind == "distill":
                return "Keep the teacher, or distill it again with more layers."
            return "Keep the present model; the last of the gate's reasons says what would help."
        return f"Call start_ab_test with test_model={version!r}, or promote_model with version={version!r}."
    if job.kind == "index" and job.status == "completed":
        return "Call search."
    if job.kind == "export" and "commands" in job.result:
        ollama = job.result["ollama"]
        has_passed = job.result["checks"]["ollama"]["status"] == "passed"
        checked = f"The Ollama at {ollama['url']} gave the same vectors. " if has_passed else ""
        return (
            f"{checked}To keep the model in Ollama: {job.result['commands']['create']}"
            " ; without the program ollama here, commands.create_over_http of this result does the same."
        )
    return ""
