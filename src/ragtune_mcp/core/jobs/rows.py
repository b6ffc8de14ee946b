"""Statements on the job tables that both sides use: those who look at jobs and the worker that does one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import UnknownId
from ragtune_mcp.core.jobs.job import Job, JobStatus, event_from_row, job_from_row

# Told of a job that has just ended, inside the transaction that ends it.
Ended = Callable[[Job], None]


def read_job(db: Database, job_id: str, events: int = 0) -> Job:
    """A job as its row says, with its last `events` events; raises UnknownId (code "unknown_job")."""
    row = db.connection.execute("SELECT * FROM jobs WHERE job_id=?", (job_id,)).fetchone()
    if row is None:
        raise UnknownId(
            f"There is no job {job_id!r}.",
            code="unknown_job",
            hint="Use a job_id that a start call returned.",
        )
    query = "SELECT * FROM job_events WHERE job_id=? ORDER BY event_id DESC LIMIT ?"
    rows = db.connection.execute(query, (job_id, events)).fetchall()
    return job_from_row(row, tuple(event_from_row(event) for event in reversed(rows)))


def add_event(
    db: Database,
    job_id: str,
    message: str,
    *,
    progress: float | None = None,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Append an event; `progress` is in percent."""
    db.connection.execute(
        "INSERT INTO job_events (job_id, at, message, progress, fields) VALUES (?, ?, ?, ?, ?)",
        (job_id, to_iso(utc_now()), message, progress, json.dumps(fields or {})),
    )


def end_job(
    db: Database,
    job: Job,
    status: JobStatus,
    *,
    message: str,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, str] | None = None,
    ended: Ended | None = None,
) -> bool:
    """End a job, provided that it is still as it was seen; False when another process was faster."""
    with db.transaction() as connection:
        changed = connection.execute(
            "UPDATE jobs SET status=:status, message=:message, finished_at=:now, result=:result,"
            " error=:error, progress=iif(:status='completed', 100, progress)"
            " WHERE job_id=:job_id AND attempt=:attempt AND status=:seen_status AND worker=:seen_worker",
            {
                "status": status,
                "message": message,
                "now": to_iso(utc_now()),
                "result": None if result is None else json.dumps(result),
                "error": None if error is None else json.dumps(error),
                "job_id": job.job_id,
                "attempt": job.attempt,
                "seen_status": job.state,
                "seen_worker": job.worker,
            },
        ).rowcount
        if changed:
            add_event(db, job.job_id, message)
            if ended is not None:
                ended(read_job(db, job.job_id))
    return bool(changed)
