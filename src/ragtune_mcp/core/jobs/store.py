"""The job table: who may run when, what is under way, what became of it.

Servers, workers and the command line share it. A job is *reserved* by the process that starts its worker,
*claimed* by the worker, and *settled* by whoever looks at it and finds its worker gone. Each step is one
transaction that names the state it starts from, so two processes can try the same step and one of them wins.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragtune_mcp.core.clock import from_iso, to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import Conflict, InvalidInput, RagTuneError
from ragtune_mcp.core.jobs.claim import Claim
from ragtune_mcp.core.jobs.executors import Executor, executor_for
from ragtune_mcp.core.jobs.job import (
    DISAPPEARED,
    ID_PREFIX,
    ONE_AT_A_TIME,
    Job,
    JobKind,
    JobStatus,
    job_from_row,
)
from ragtune_mcp.core.jobs.processes import ProcessName, process_name
from ragtune_mcp.core.jobs.rows import Ended, add_event, end_job, read_job
from ragtune_mcp.core.workspace import Workspace, new_id

_LOG = logging.getLogger(__name__)
_STARTER = "starter:"
_POLL_S = 0.2
# Its heartbeat judges a worker that cannot be looked up here: other machine or container, before a reboot.
_LOST_AFTER_S = 120.0
_CANCEL_GRACE_S = 30.0
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 4000


class JobStore:
    """Jobs of one workspace.

    Attributes:
        workspace: the workspace.
        db: its database.
        executor: starts workers; the one RAGTUNE_EXECUTOR names unless given.

    Args:
        db: the workspace's database.
        workspace: the workspace.
        executor: see above.
        ended: told of every job that ends, however it ends, in the transaction that ends it.
    """

    def __init__(
        self,
        db: Database,
        workspace: Workspace,
        executor: Executor | None = None,
        ended: Ended | None = None,
    ) -> None:
        self.db = db
        self.workspace = workspace
        self.executor = executor or executor_for(workspace.settings)
        self._ended = ended

    # Asking for work

    def submit(self, kind: JobKind, spec: Mapping[str, Any]) -> Job:
        """Create a job and start its worker, or leave it queued behind one that must end first.

        Args:
            kind: what to do; at most one "finetune", one "distill" and one "index" job run at a time.
            spec: the handler's input, JSON-serialisable.

        Returns:
            The job: running, or queued behind another.

        Raises:
            RagTuneError: the worker could not be started; the job is recorded as failed.
        """
        job = self.create(kind, spec)
        self._settle_all()
        self.start_queued(must_start=job.job_id)
        return self.get(job.job_id)

    def create(self, kind: JobKind, spec: Mapping[str, Any]) -> Job:
        """Record a queued job and make its folder; nothing starts before `start_queued`."""
        if kind not in ID_PREFIX:
            raise InvalidInput(f"The job kind {kind!r} is not one of {', '.join(ID_PREFIX)}.")
        job_id, now, text = new_id(ID_PREFIX[kind]), to_iso(utc_now()), json.dumps(spec)
        with self.db.transaction() as connection:
            connection.execute(
                "INSERT INTO jobs (job_id, kind, status, spec, created_at, queued_at)"
                " VALUES (?, ?, 'queued', ?, ?, ?)",
                (job_id, kind, text, now, now),
            )
            self.workspace.job(job_id).folder.mkdir(parents=True)
        return read_job(self.db, job_id)

    def same(self, kind: JobKind, spec: Mapping[str, Any]) -> Job | None:
        """The newest job that was asked for with the very same input; None when there is none."""
        self._settle_all()
        row = self.db.connection.execute(
            "SELECT job_id FROM jobs WHERE kind=? AND spec=? ORDER BY created_at DESC, job_id DESC LIMIT 1",
            (kind, json.dumps(spec)),
        ).fetchone()
        return None if row is None else read_job(self.db, row["job_id"])

    def restart(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; its folder, so its checkpoints and log, stays.

        Raises Conflict when the job is queued, running or completed.
        """
        now = to_iso(utc_now())
        with self.db.transaction() as connection:
            changed = connection.execute(
                "UPDATE jobs SET status='queued', worker='', attempt=attempt+1, progress=0, message='',"
                " queued_at=?, started_at=NULL, heartbeat_at=NULL, finished_at=NULL,"
                " cancel_requested_at=NULL, first_progress=NULL, first_progress_at=NULL, progress_at=NULL,"
                " result=NULL, error=NULL"
                " WHERE job_id=? AND status IN ('failed', 'cancelled')",
                (now, job_id),
            ).rowcount
            if not changed:
                status = read_job(self.db, job_id).status
                raise Conflict(f"Job {job_id} is {status}; only a failed or cancelled job can be restarted.")
            add_event(self.db, job_id, "restarted")
        self._settle_all()
        self.start_queued(must_start=job_id)
        return self.get(job_id)

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a job: a queued one at once, a running one at its next check.

        A worker that has not stopped half a minute after the first request is killed by a further one.

        Args:
            job_id: the job.

        Returns:
            The job; one that has already ended is returned as it is.

        Raises:
            UnknownId: no such job.
        """
        now = utc_now()
        with self.db.transaction() as connection:
            job = read_job(self.db, job_id)
            if job.is_final:
                return job
            connection.execute(
                "UPDATE jobs SET cancel_requested_at = coalesce(cancel_requested_at, ?) WHERE job_id=?",
                (to_iso(now), job_id),
            )
            if job.state != "running":
                self._end(job, "cancelled", "cancelled before it started")
        asked = job.cancel_requested_at
        if job.state == "running" and asked and (now - from_iso(asked)).total_seconds() > _CANCEL_GRACE_S:
            worker = ProcessName.parse(job.worker)
            if worker is not None:
                worker.kill_group()
            self._end(job, "cancelled", "cancelled; its worker did not stop and was killed")
        self.start_queued()
        return self.get(job_id)

    # Looking

    def get(self, job_id: str, events: int = 8) -> Job:
        """A job as it is now; one whose worker is gone is marked failed first, and what waited starts.

        Args:
            job_id: the job.
            events: how many of its last events to return.

        Returns:
            The job.

        Raises:
            UnknownId: no such job (code "unknown_job").
        """
        job = read_job(self.db, job_id, events)
        if job.state != "queued" and not self._settle(job):
            return job
        # A waiting job may wait for a dead one.
        self.reconcile()
        return read_job(self.db, job_id, events)

    def list(self, limit: int = 20) -> tuple[Job, ...]:
        """The newest jobs, newest first, without events, after `reconcile`."""
        self.reconcile()
        query = "SELECT * FROM jobs ORDER BY created_at DESC, job_id DESC LIMIT ?"
        return tuple(job_from_row(row, ()) for row in self.db.connection.execute(query, (limit,)))

    def unfinished(self) -> tuple[Job, ...]:
        """Every job that is not done, newest first, without events, after `reconcile`."""
        self.reconcile()
        query = "SELECT * FROM jobs WHERE finished_at IS NULL ORDER BY created_at DESC, job_id DESC"
        return tuple(job_from_row(row, ()) for row in self.db.connection.execute(query))

    def wait(self, job_id: str, wait_s: float) -> Job:
        """Block until the job's status changes, it has ended, or `wait_s` seconds have passed."""
        deadline = time.monotonic() + wait_s
        first = job = self.get(job_id)
        while not job.is_final and job.status == first.status and time.monotonic() < deadline:
            time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))
            job = self.get(job_id)
        return job

    def reconcile(self) -> None:
        """Mark every job whose worker is gone, then start what waits; for server start and any doubt."""
        self._settle_all()
        self.start_queued()

    # Starting workers

    def start_queued(self, must_start: str = "") -> None:
        """Start every queued job whose turn it is, oldest first.

        Args:
            must_start: a job whose failure to start is raised; that of others is only recorded with them.

        Raises:
            RagTuneError: the worker of `must_start` could not be started.
        """
        while job := self._reserve():
            try:
                handle = self.executor.submit(job, self.workspace)
            except RagTuneError as error:
                self.fail(job.job_id, error.code, error.message, error.hint)
                if job.job_id == must_start:
                    raise
                _LOG.warning("job %s could not be started: %s", job.job_id, error.message)
                continue
            # The worker may have claimed the job, or even ended, by now.
            self.db.connection.execute(
                "UPDATE jobs SET worker=? WHERE job_id=? AND status='starting' AND worker=?",
                (handle, job.job_id, job.worker),
            )

    def _reserve(self) -> Job | None:
        """Take the oldest job whose turn it is, so that no other process starts it too."""
        with self.db.transaction() as connection:
            active = "SELECT kind FROM jobs WHERE status IN ('starting', 'running')"
            busy = {row["kind"] for row in connection.execute(active)} & ONE_AT_A_TIME
            waiting = connection.execute(
                "SELECT job_id, kind FROM jobs WHERE status='queued' ORDER BY queued_at, job_id"
            ).fetchall()
            for row in waiting:
                if row["kind"] not in busy:
                    connection.execute(
                        "UPDATE jobs SET status='starting', worker=?, heartbeat_at=? WHERE job_id=?",
                        (f"{_STARTER}{process_name()}", to_iso(utc_now()), row["job_id"]),
                    )
                    return read_job(self.db, row["job_id"])
        return None

    # The worker's side

    def claim(self, job_id: str) -> Claim | None:
        """Make the calling process the job's worker.

        Args:
            job_id: the job.

        Returns:
            The claim; None when another process has it, it was cancelled, or it must wait for another job.

        Raises:
            UnknownId: no such job.
        """
        now, me = to_iso(utc_now()), str(process_name())
        with self.db.transaction() as connection:
            job = read_job(self.db, job_id)
            query = "SELECT 1 FROM jobs WHERE kind=? AND status IN ('starting', 'running') AND job_id<>?"
            is_busy = connection.execute(query, (job.kind, job_id)).fetchone() is not None
            if job.state not in ("queued", "starting") or (is_busy and job.kind in ONE_AT_A_TIME):
                return None
            connection.execute(
                "UPDATE jobs SET status='running', worker=?, started_at=?, heartbeat_at=?, message='started'"
                " WHERE job_id=?",
                (me, now, now, job_id),
            )
            add_event(self.db, job_id, "started")
            return Claim(self.db, read_job(self.db, job_id), self._ended)

    def fail(self, job_id: str, code: str, message: str, hint: str = "") -> None:
        """End a job that has not ended yet, with the reason."""
        error = {"code": code, "message": message, "hint": hint}
        self._end(read_job(self.db, job_id), "failed", message, error)

    # The dead

    def _settle_all(self) -> None:
        query = "SELECT job_id FROM jobs WHERE status IN ('starting', 'running')"
        for row in self.db.connection.execute(query).fetchall():
            self._settle(read_job(self.db, row["job_id"]))

    def _settle(self, job: Job) -> bool:
        """Do what a job needs whose worker is gone; True when its row may have changed."""
        if job.state not in ("starting", "running") or self._holder_lives(job):
            return False
        if job.worker.startswith(_STARTER):
            # Its starter died between reserving and starting: nothing has run, so it simply waits again.
            self.db.connection.execute(
                "UPDATE jobs SET status='queued', worker=''"
                " WHERE job_id=? AND status='starting' AND worker=?",
                (job.job_id, job.worker),
            )
            return True
        doing = f"while: {job.message}" if job.state == "running" else "before it began"
        tail = self._log_tail(job.job_id)
        error = {
            "code": DISAPPEARED,
            "message": f"The worker process disappeared {doing}. "
            + (f"Last log lines:\n{tail}" if tail else "Its log is empty."),
            "hint": "It was killed, ran out of memory, or the machine went down. Start the job again;"
            " if memory was short, with a smaller batch_size or max_seq_length.",
        }
        self._end(job, "failed", "worker process disappeared", error)
        return True

    def _end(self, job: Job, status: JobStatus, message: str, error: Mapping[str, str] | None = None) -> None:
        end_job(self.db, job, status, message=message, error=error, ended=self._ended)

    def _holder_lives(self, job: Job) -> bool:
        holder = ProcessName.parse(job.worker.removeprefix(_STARTER))
        if holder is None:
            return self.executor.is_alive(job.worker)
        if holder.is_here:
            return holder.is_alive
        seen = from_iso(job.heartbeat_at or job.created_at)
        return (utc_now() - seen).total_seconds() < _LOST_AFTER_S

    def _log_tail(self, job_id: str) -> str:
        log = self.workspace.job(job_id).log
        if not log.exists():
            return ""
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = handle.read().decode("utf-8", "replace").splitlines()[-_LOG_TAIL_LINES:]
        # A client sees this text: paths of the machine stay out of it.
        text = "\n".join(lines).replace(str(self.workspace.root), ".")
        return text.replace(str(Path.home()), "~").strip()
