"""What a background job is, as read from its row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ragtune_mcp.core.clock import from_iso, utc_now
from ragtune_mcp.core.errors import NotEnoughMemory

JobKind = Literal["finetune", "distill", "index", "export"]
JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
JobState = Literal["queued", "starting", "running", "completed", "failed", "cancelled"]

ID_PREFIX: Mapping[JobKind, str] = {"finetune": "ft", "distill": "ds", "index": "ix", "export": "ex"}
ONE_AT_A_TIME: frozenset[JobKind] = frozenset({"finetune", "distill", "index"})
# Code of a job whose worker process is gone without having ended it.
DISAPPEARED = "worker_disappeared"
FINAL: frozenset[JobState] = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened; `progress` (0..100) is None for events outside the progress line."""

    at: str
    message: str
    progress: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One background job; times are ISO-8601 UTC as stored.

    Attributes:
        state: as in its row; `status` is the same with "starting" shown as "running".
        worker: who holds it (see `schema/jobs.sql`); "" while it waits for its turn.
        attempt: 1, or more after `restart`.
        progress: 0..100, never falling within one attempt.
        heartbeat_at: the worker's last sign of life.
        eta_s: seconds left by the rate of progress so far; None while unknown or not running.
        result: what the handler returned; empty until the job is completed.
        error: {code, message, hint} of a failed job.
        events: the last ones, oldest first.
    """

    job_id: str
    kind: JobKind
    state: JobState
    spec: Mapping[str, Any]
    attempt: int
    worker: str
    progress: float
    message: str
    created_at: str
    started_at: str | None
    heartbeat_at: str | None
    finished_at: str | None
    cancel_requested_at: str | None
    eta_s: float | None
    result: Mapping[str, Any]
    error: Mapping[str, str] | None
    events: tuple[JobEvent, ...]

    @property
    def status(self) -> JobStatus:
        """What users are told."""
        return "running" if self.state == "starting" else self.state

    @property
    def is_final(self) -> bool:
        """True when nothing about it will change any more, short of a restart."""
        return self.state in FINAL

    @property
    def was_interrupted(self) -> bool:
        """True when its worker was killed or memory was short: nothing is wrong with the job, and a restart
        goes on with it.
        """
        return self.error is not None and self.error.get("code") in (DISAPPEARED, NotEnoughMemory.code)

    @property
    def duration_s(self) -> float | None:
        """Seconds from the worker's start to its end, or to now; None before it started."""
        if self.started_at is None:
            return None
        end = from_iso(self.finished_at) if self.finished_at else utc_now()
        return (end - from_iso(self.started_at)).total_seconds()


def job_from_row(row: sqlite3.Row, events: tuple[JobEvent, ...]) -> Job:
    """Build a `Job` from a row of `jobs`."""
    return Job(
        job_id=row["job_id"],
        kind=cast(JobKind, row["kind"]),
        state=cast(JobState, row["status"]),
        spec=json.loads(row["spec"]),
        attempt=row["attempt"],
        worker=row["worker"],
        progress=row["progress"],
        message=row["message"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        heartbeat_at=row["heartbeat_at"],
        finished_at=row["finished_at"],
        cancel_requested_at=row["cancel_requested_at"],
        eta_s=_eta_s(row),
        result={} if row["result"] is None else json.loads(row["result"]),
        error=None if row["error"] is None else json.loads(row["error"]),
        events=events,
    )


def event_from_row(row: sqlite3.Row) -> JobEvent:
    """Build a `JobEvent` from a row of `job_events`."""
    return JobEvent(row["at"], row["message"], row["progress"], json.loads(row["fields"]))


def _eta_s(row: sqlite3.Row) -> float | None:
    # The rate counts from the first report, not from the start: loading the model makes no progress.
    if row["status"] != "running" or row["first_progress"] is None:
        return None
    gained = row["progress"] - row["first_progress"]
    took = (from_iso(row["progress_at"]) - from_iso(row["first_progress_at"])).total_seconds()
    if gained <= 0 or took <= 0:
        return None
    since = (utc_now() - from_iso(row["progress_at"])).total_seconds()
    return float(max(0.0, (100.0 - row["progress"]) * took / gained - since))
