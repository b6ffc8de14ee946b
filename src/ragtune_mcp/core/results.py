"""What each verb answers: the result models shared by the MCP tools, the HTTP routes and the command line.

Field names are part of the tool contract. Times are UTC ISO-8601 with `Z`, durations seconds,
shares in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
Verdict = Literal["pass", "warn", "block"]
Recommendation = Literal["deploy_test_model", "keep_baseline", "continue", "inconclusive", "stop_investigate"]


def _is_empty(value: object) -> bool:
    return not value


class Result(BaseModel):
    """Base: no titles or surplus fields, so that schemas stay short and mistakes surface in tests."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DatasetStatistics(Result):
    """Counts of one data set; `feedback_read == feedback_used + sum(skipped.values())`."""

    total_pairs: int
    positive_pairs: int
    negative_pairs: int
    hard_negative_pairs: int
    synthetic_pairs: int
    feedback_read: int
    feedback_used: int
    skipped: dict[str, int]
    queries: int
    train_pairs: int
    validation_pairs: int
    test_pairs: int


class TrainingDataResult(Result):
    """A data set was written."""

    success: bool = True
    training_data_path: str
    dataset_id: str
    statistics: DatasetStatistics
    warnings: list[str] = []
    next_step: str


class JobStarted(Result):
    """A background job was accepted."""

    success: bool = True
    job_id: str
    status: JobStatus
    message: str
    estimate: dict[str, Any] = Field(default={}, description="Expected duration_s and what it rests on.")


class JobEvent(Result):
    """One line of a job's history."""

    at: str
    message: str
    fields: dict[str, Any] = {}


class ErrorInfo(Result):
    """Why a job failed."""

    code: str
    message: str
    hint: str = ""


class GateResult(Result):
    """The offline gate's verdict in words."""

    verdict: Verdict
    reasons: list[str]
    details: dict[str, Any] = {}


class JobStatusResult(Result):
    """State of one job; model fields are set by a fine-tuning job that completed."""

    job_id: str
    kind: str
    status: JobStatus
    progress: float = Field(ge=0, le=100)
    message: str = ""
    model_path: str | None = None
    model_version: str | None = None
    training_duration: float | None = None
    metrics: dict[str, float | None] = {}
    gate: GateResult | None = None
    eta_s: float | None = None
    result: dict[str, Any] = Field(default={}, description="What else the job produced.")
    events: list[JobEvent] = []
    error: ErrorInfo | None = None
    next_step: str = ""


class CancelResult(Result):
    """A cancellation was requested or had already happened."""

    job_id: str
    status: JobStatus
    message: str


class AbTestStarted(Result):
    """A live comparison began."""

    success: bool = True
    test_id: str
    status: str
    start_time: str
    estimated_end_time: str
    minimum_detectable_effect: float | None
    warnings: list[str] = []


class VariantMetrics(Result):
    """One variant's numbers; averages are null without data."""

    avg_response_quality: float | None = None
    avg_relevance_score: float | None = None
    avg_user_satisfaction: float | None = None
    n_exposed: int = 0
    n_rated: int = 0


class AbResults(Result):
    """Where a test stands and what follows from it."""

    test_id: str
    status: str
    mode: str = Field("split", exclude_if=lambda mode: mode == "split")
    baseline_model: str
    test_model: str
    baseline_metrics: VariantMetrics
    test_metrics: VariantMetrics
    statistical_significance: bool
    p_value: float | None
    p_value_valid: bool
    p_anytime: float | None
    effect: dict[str, Any]
    srm: dict[str, Any]
    guardrails: dict[str, Any]
    health: dict[str, Any] = {}
    recommendation: Recommendation
    reasons: list[str]
    needed: dict[str, Any] = Field({}, exclude_if=_is_empty)
    replay: dict[str, Any] = Field({}, exclude_if=_is_empty)
    next_step: str


class SearchResult(Result):
    """One retrieved document."""

    id: str
    text: str
    source: str
    rank: int = Field(ge=1)
    score: float


class SearchResults(Result):
    """Ranked documents and the handle to rate them with."""

    query_id: str
    results: list[SearchResult]
    next_step: str = ""


class FeedbackRecorded(Result):
    """A rating was stored."""

    feedback_id: str
    stored_in: list[str]
    duplicate: bool = False
    ready_to_train: dict[str, int]
    warnings: list[str] = []
    next_step: str = ""


class IndexResult(Result):
    """What indexing changed; with a `job_id` the counts are the plan of a background job."""

    documents: int
    chunks: int
    updated: int
    unchanged: int
    removed: int
    skipped: dict[str, int] = {}
    job_id: str | None = None
    message: str = ""
    next_step: str = ""


class ModelInfo(Result):
    """One registered version."""

    version: str
    kind: Literal["base", "tuned"]
    path: str
    digest: str
    base_model: str
    created_at: str
    dataset_id: str | None = None
    job_id: str | None = None
    metrics: dict[str, float | None] = {}
    gate: GateResult | None = None
    aliases: list[str] = []
    indexed: bool = False
    stale: bool = False


class ModelList(Result):
    """Registered versions, newest first."""

    models: list[ModelInfo]
    champion: str | None
    challenger: str | None


class SwitchResult(Result):
    """A promotion or roll-back, done (`changed`) or previewed."""

    action: Literal["promote", "rollback"]
    from_version: str | None = Field(serialization_alias="from", validation_alias="from")
    to_version: str = Field(serialization_alias="to", validation_alias="to")
    changed: bool
    checks: list[str]
    will_change: list[str]
    next_step: str = ""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)


class ExportResult(Result):
    """Files of an export and how well they reproduce the source; `job_id` while it is being made."""

    version: str
    format: Literal["ollama", "onnx"]
    paths: list[str] = []
    commands: list[str] = []
    parity: dict[str, Any] = {}
    job_id: str | None = None
    next_step: str = ""


class StatusResult(Result):
    """The workspace at a glance (resource `ragtune://status`)."""

    workspace: str
    version: str
    champion: str | None
    documents: int
    running_jobs: list[str]
    active_test: str | None
    outbox_pending: int
    outbox_error: str | None = None
