"""What only the worker that holds a job may write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import JobCancelled
from ragtune_mcp.core.jobs.job import Job, JobStatus
from ragtune_mcp.core.jobs.rows import Ended, add_event, end_job


class Claim:
    """One attempt at a job by one process; it is void once the job was ended or given to another process.

    Args:
        db: the workspace's database.
        job: the job as it was when it was claimed.
        ended: told when the job ends, in the transaction that ends it.
    """

    def __init__(self, db: Database, job: Job, ended: Ended | None = None) -> None:
        self.job = job
        self._db = db
        self._ended = ended

    def beat(self) -> None:
        """Record a sign of life."""
        self._db.connection.execute(
            "UPDATE jobs SET heartbeat_at=? WHERE job_id=? AND worker=? AND status='running'",
            (to_iso(utc_now()), self.job.job_id, self.job.worker),
        )

    def check_cancelled(self) -> None:
        """Stop the work of a cancelled job.

        Raises:
            JobCancelled: it was cancelled, or the claim is void.
        """
        query = "SELECT status, worker, attempt, cancel_requested_at FROM jobs WHERE job_id=?"
        row = self._db.connection.execute(query, (self.job.job_id,)).fetchone()
        if tuple(row)[:3] != ("running", self.job.worker, self.job.attempt):
            raise JobCancelled(f"Job {self.job.job_id} is {row['status']} and no longer this worker's.")
        if row["cancel_requested_at"] is not None:
            raise JobCancelled(f"Job {self.job.job_id} was cancelled.")

    def progress(self, fraction: float, message: str, fields: Mapping[str, Any]) -> None:
        """Record how far the job is; consecutive reports with one message are one event, kept up to date.

        Args:
            fraction: share done in [0, 1]; values outside are clipped, and it never falls.
            message: what is being done.
            fields: numbers worth seeing, JSON-serialisable.

        Raises:
            JobCancelled: the job was cancelled, or the claim is void.
        """
        job_id, now, percent = self.job.job_id, to_iso(utc_now()), 100.0 * min(1.0, max(0.0, fraction))
        with self._db.transaction() as connection:
            self.check_cancelled()
            connection.execute(
                "UPDATE jobs SET progress=max(progress, :percent), message=:message, progress_at=:now,"
                " heartbeat_at=:now, first_progress=coalesce(first_progress, :percent),"
                " first_progress_at=coalesce(first_progress_at, :now) WHERE job_id=:job_id",
                {"percent": percent, "message": message, "now": now, "job_id": job_id},
            )
            query = "SELECT * FROM job_events WHERE job_id=? ORDER BY event_id DESC LIMIT 1"
            last = connection.execute(query, (job_id,)).fetchone()
            if last is not None and last["message"] == message and last["progress"] is not None:
                connection.execute("DELETE FROM job_events WHERE event_id=?", (last["event_id"],))
            add_event(self._db, job_id, message, progress=percent, fields=fields)

    def event(self, message: str, fields: Mapping[str, Any]) -> None:
        """Record something worth seeing that is not progress."""
        add_event(self._db, self.job.job_id, message, fields=fields)

    def finish(self, result: Mapping[str, Any]) -> None:
        """End the job well; raises JobCancelled when the claim is void."""
        if not self._end("completed", "completed", result=result):
            raise JobCancelled(f"Job {self.job.job_id} was taken from this worker before it ended.")

    def cancelled(self) -> None:
        """End the job because it was cancelled; nothing happens when the claim is void."""
        self._end("cancelled", "cancelled")

    def fail(self, code: str, message: str, hint: str) -> None:
        """End the job with the reason it failed; nothing happens when the claim is void."""
        self._end("failed", message, error={"code": code, "message": message, "hint": hint})

    def _end(
        self,
        status: JobStatus,
        message: str,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, str] | None = None,
    ) -> bool:
        return end_job(
            self._db, self.job, status, message=message, result=result, error=error, ended=self._ended
        )
