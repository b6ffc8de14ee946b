"""The life of one worker process: claim a job, do it, record how it ended, start the next."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import JobCancelled, JobFailed, RagTuneError
from ragtune_mcp.core.jobs.claim import Claim
from ragtune_mcp.core.jobs.job import Job
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.workspace import JobPaths, Workspace

_LOG = logging.getLogger(__name__)
_HEARTBEAT_S = 2.0


@dataclass(frozen=True, slots=True)
class JobContext:
    """What a handler is given.

    Attributes:
        job: the job; its `spec` is the input.
        paths: its files.
        workspace: the workspace.
        db: its database.
    """

    job: Job
    paths: JobPaths
    workspace: Workspace
    db: Database
    _claim: Claim
    _terminated: threading.Event

    def progress(self, fraction: float, message: str, **fields: Any) -> None:
        """Report the share done in [0, 1]; raises JobCancelled when the job was cancelled."""
        self._check_terminated()
        self._claim.progress(fraction, message, fields)

    def event(self, message: str, **fields: Any) -> None:
        """Report something worth seeing that is not progress."""
        self._claim.event(message, fields)

    def check_cancelled(self) -> None:
        """Raise JobCancelled when the job was cancelled or the process was told to end (SIGTERM)."""
        self._check_terminated()
        self._claim.check_cancelled()

    def _check_terminated(self) -> None:
        if self._terminated.is_set():
            raise JobCancelled(f"The worker of job {self.job.job_id} received SIGTERM.")


Handler = Callable[[JobContext], dict[str, Any]]


def run(job_id: str, store: JobStore, handlers: Mapping[str, Handler]) -> Job:
    """Do one job in this process.

    Args:
        job_id: the job; nothing happens when it is no longer to be claimed.
        store: the jobs of its workspace.
        handlers: job kind -> function that does it and returns the JSON-serialisable result.

    Returns:
        The job as it ended.

    Raises:
        UnknownId: no such job.
    """
    claim = store.claim(job_id)
    if claim is None:
        _LOG.info("job %s is not to be started", job_id)
        return store.get(job_id)
    try:
        with _heartbeat(claim), _terminated_on_sigterm() as terminated:
            context = JobContext(
                claim.job, store.workspace.job(job_id), store.workspace, store.db, claim, terminated
            )
            _perform(claim, context, handlers)
    finally:
        store.reconcile()
    return store.get(job_id)


def _perform(claim: Claim, context: JobContext, handlers: Mapping[str, Handler]) -> None:
    job = claim.job
    try:
        if job.kind not in handlers:
            raise JobFailed(f"Nothing here can do a job of kind {job.kind!r}.")
        claim.finish(handlers[job.kind](context))
        _LOG.info("job %s completed", job.job_id)
    except JobCancelled as error:
        _LOG.info("job %s stopped: %s", job.job_id, error.message)
        claim.cancelled()
    except RagTuneError as error:
        _LOG.error("job %s failed: %s", job.job_id, error)
        claim.fail(error.code, error.message, error.hint)
    except Exception as error:
        # The last line of a process: whatever a library raised becomes the recorded reason.
        _LOG.exception("job %s failed", job.job_id)
        log = context.workspace.relative(context.paths.log)
        claim.fail("job_failed", f"{type(error).__name__}: {error}", f"The traceback is in {log}.")


@contextmanager
def _heartbeat(claim: Claim) -> Iterator[None]:
    """Record a sign of life every two seconds, from a thread of its own."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_HEARTBEAT_S):
            try:
                claim.beat()
            except sqlite3.OperationalError as error:
                _LOG.warning("no heartbeat recorded: %s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _terminated_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; only the main thread of a process can listen for signals."""
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        # Nothing else: a signal may arrive in the middle of a transaction.
        terminated.set()

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)
