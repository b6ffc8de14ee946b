"""A core that answers every verb with a fixed result and remembers how it was called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ragtune_mcp.core.errors import GateBlocked, NotReady, UnknownId
from ragtune_mcp.core.feedback.outbox import FlushResult
from ragtune_mcp.core.results import (
    AbResults,
    AbTestStarted,
    CancelResult,
    DatasetStatistics,
    ExportResult,
    FeedbackRecorded,
    GateResult,
    IndexResult,
    JobStarted,
    JobStatusResult,
    ModelInfo,
    ModelList,
    SearchResult,
    SearchResults,
    StatusResult,
    SwitchResult,
    TrainingDataResult,
    VariantMetrics,
)
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

VERSION = "feedback_v1_20260108_143022_1c2d"
MODEL = ModelInfo(
    version=VERSION,
    kind="tuned",
    path="./fine_tuned_models/feedback",
    digest="ab" * 32,
    base_model="all-MiniLM-L6-v2",
    created_at="2026-01-08T14:30:22.000000Z",
    metrics={"ndcg@10": 0.5},
    gate=GateResult(verdict="pass", reasons=["better"]),
    aliases=["challenger"],
)
AB = AbResults(
    test_id="ab_1",
    status="active",
    baseline_model="all-MiniLM-L6-v2",
    test_model=VERSION,
    baseline_metrics=VariantMetrics(avg_response_quality=3.5, n_exposed=10, n_rated=9),
    test_metrics=VariantMetrics(avg_response_quality=4.0, n_exposed=11, n_rated=8),
    statistical_significance=False,
    p_value=0.2,
    p_value_valid=False,
    p_anytime=0.6,
    effect={"difference": 0.5, "low": -0.1, "high": 1.1},
    srm={"p": 0.8},
    guardrails={},
    recommendation="continue",
    reasons=["too early"],
    next_step="Go on rating.",
)


class FakeCore:
    """`calls` holds (verb, positional, keyword arguments), `states` what job_status answers in turn."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.settings = Settings(**settings)
        self.workspace = Workspace(root, self.settings)
        self.calls: list[tuple[str, tuple, dict]] = []
        self.states: list[JobStatusResult] = []
        self.closed = False
        self.flushes = 0
        self.jobs = SimpleNamespace(list=lambda limit: [SimpleNamespace(job_id="ft_1")])
        self.texts = "Plain text."

    def close(self) -> None:
        self.closed = True

    def watch_test(self) -> None:
        pass

    def watch_feedback(self) -> None:
        pass

    def _note(self, verb: str, *args: object, **kwargs: object) -> None:
        self.calls.append((verb, args, kwargs))

    def generate_training_data(self, *, progress=None, **kwargs) -> TrainingDataResult:
        self._note("generate_training_data", **kwargs)
        if progress:
            progress(0.5, "half")
            progress(1.0, "done")
        statistics = dict.fromkeys(DatasetStatistics.model_fields, 0) | {"skipped": {"no_rating": 1}}
        return TrainingDataResult(
            training_data_path="./training_data/t.csv",
            dataset_id="t",
            statistics=statistics,
            next_step="start_finetune",
        )

    def start_finetune(self, **kwargs) -> JobStarted:
        self._note("start_finetune", **kwargs)
        return JobStarted(job_id="ft_1", status="running", message="Fine-tuning job started")

    def distill(self, version: str, layers: int) -> JobStarted:
        self._note("distill", version, layers=layers)
        return JobStarted(job_id="ft_1", status="running", message="Distillation job started")

    def job_status(self, job_id: str, wait_s: float = 0) -> JobStatusResult:
        self._note("job_status", job_id)
        if job_id == "crash":
            raise ValueError("secret path /home/someone")
        if job_id != "ft_1":
            raise UnknownId(f"There is no job {job_id!r}.", code="unknown_job", hint="See ragtune://status.")
        if not self.states:
            return JobStatusResult(job_id=job_id, kind="finetune", status="completed", progress=100)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cancel_job(self, job_id: str) -> CancelResult:
        self._note("cancel_job", job_id)
        return CancelResult(job_id=job_id, status="cancelled", message="stopped")

    def start_ab_test(self, **kwargs) -> AbTestStarted:
        self._note("start_ab_test", **kwargs)
        if kwargs["test_model"] == "blocked":
            raise GateBlocked("blocked was blocked by the gate.", hint="Train again.")
        return AbTestStarted(
            test_id="ab_1",
            status="active",
            start_time="2026-01-08T14:30:22Z",
            estimated_end_time="2026-01-09T14:30:22Z",
            minimum_detectable_effect=0.3,
        )

    def ab_results(self, test_id: str = "") -> AbResults:
        self._note("ab_results", test_id)
        if test_id not in ("", "ab_1"):
            raise UnknownId(f"There is no test {test_id!r}.", code="unknown_test")
        return AB

    def conport_reindex(self, version: str = "", *, confirm: bool = False) -> dict[str, object]:
        self._note("conport_reindex", version, confirm)
        return {"version": VERSION, "done": confirm}

    def set_ab_split(self, test_id: str, traffic_split: float) -> AbResults:
        self._note("set_ab_split", test_id, traffic_split)
        return AB

    def stop_ab_test(self, test_id: str, reason: str) -> AbResults:
        self._note("stop_ab_test", test_id, reason)
        return AB

    def plot_ab_results(self, test_id: str = "") -> Path:
        path = self.workspace.root / "plot.svg"
        path.write_text("<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'></svg>")
        return path

    def search(self, query: str, k: int = 5, unit_id: str = "") -> SearchResults:
        self._note("search", query, k, unit_id)
        if query == "cold":
            raise NotReady("The model is loading.", hint="Repeat in 5 s.")
        return SearchResults(
            query_id="q_1",
            results=[SearchResult(id="a.md#b", text=self.texts, source="files", rank=1, score=0.5)],
        )

    def record_feedback(self, query_id: str, **kwargs) -> FeedbackRecorded:
        self._note("record_feedback", query_id, **kwargs)
        return FeedbackRecorded(
            feedback_id="fb_1", stored_in=["ragtune"], ready_to_train={"have": 1, "need": 100}
        )

    def index_documents(self, **kwargs) -> IndexResult:
        self._note("index_documents", **kwargs)
        return IndexResult(documents=1, chunks=2, updated=2, unchanged=0, removed=0)

    def list_models(self) -> ModelList:
        return ModelList(models=[MODEL], champion="all-MiniLM-L6-v2", challenger=VERSION)

    def model(self, version: str) -> ModelInfo:
        return MODEL

    def promote_model(self, version: str, **kwargs) -> SwitchResult:
        self._note("promote_model", version, **kwargs)
        return SwitchResult(
            action="promote",
            from_version="all-MiniLM-L6-v2",
            to_version=version,
            changed=kwargs["confirm"],
            checks=["files match"],
            will_change=["champion"],
        )

    def rollback_model(self, version: str = "", **kwargs) -> SwitchResult:
        self._note("rollback_model", version, **kwargs)
        return SwitchResult(
            action="rollback",
            from_version=VERSION,
            to_version="base",
            changed=kwargs["confirm"],
            checks=[],
            will_change=[],
        )

    def export_model(self, version: str, **kwargs) -> ExportResult:
        self._note("export_model", version, **kwargs)
        return ExportResult(version=version, format=kwargs["format"], job_id="ft_1")

    def status(self) -> StatusResult:
        return StatusResult(
            workspace=self.workspace.id,
            version="0.1.0",
            champion="all-MiniLM-L6-v2",
            documents=3,
            running_jobs=["ft_1"],
            active_test="ab_1",
            outbox_pending=2,
        )

    def flush_outbox(self) -> FlushResult:
        self.flushes += 1
        return FlushResult(delivered=2, pending=0, error=None)

    def stop_store(self) -> bool:
        return True

    def import_feedback(self, paths) -> dict:
        self._note("import_feedback", paths)
        return {"imported": 3}

    def explain(self, identifier: str) -> dict:
        self._note("explain", identifier)
        return {"kind": "job", "id": identifier}
