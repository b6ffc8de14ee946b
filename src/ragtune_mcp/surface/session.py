"""What one server process holds while it runs: the opened workspace and the threads its verbs run in."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from ragtune_mcp.core.app import RagTune
    from ragtune_mcp.core.results import JobStatusResult
    from ragtune_mcp.core.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

# The first round waits until the host has listed the tools.
FIRST_ROUND_S = 2.0
ROUND_EVERY_S = 20.0
POLL_EVERY_S = 0.5
_THREADS = 24
_ENDED = ("completed", "failed", "cancelled")


class Session:
    """The workspace as the surfaces reach it: verbs block, so each runs in a thread.

    The first call opens it, not the start: hosts wait for the list of tools then, which needs nothing of it.

    Args:
        root: the workspace's folder.
        settings: its settings.
        core: the workspace when it is open already; it is then not closed here.
    """

    def __init__(self, root: Path, settings: Settings, core: RagTune | None = None) -> None:
        self.settings = settings
        self._root = root
        self._core = core
        self._is_owned = core is None
        self._opening = threading.Lock()
        self._threads: anyio.CapacityLimiter | None = None

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Session]:
        """Deliver the outbox and look after jobs in the background; close the workspace on the way out."""
        # A limiter of its own: waiting tools never starve the transport, which uses the default one.
        self._threads = anyio.CapacityLimiter(_THREADS)
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(self._tend)
                yield self
                background.cancel_scope.cancel()
        finally:
            if self._is_owned and self._core is not None:
                self._core.close()

    async def call(self, verb: Callable[[RagTune], T]) -> T:
        """Run one verb in a thread.

        A cancelled call returns at once and its thread finishes on its own: every change a verb makes is one
        transaction or one rename, so nothing is left half done.
        """

        def run() -> T:
            return verb(self._opened())

        return await anyio.to_thread.run_sync(run, limiter=self._threads, abandon_on_cancel=True)

    async def wait_for_job(
        self, job_id: str, wait_s: float, report: Callable[[JobStatusResult], Awaitable[None]]
    ) -> JobStatusResult:
        """The job's state, at the latest after `wait_s` seconds and sooner when its status changes.

        Args:
            job_id: a job of this workspace.
            wait_s: seconds, 0 for the state now.
            report: awaited with each state further on than the one before.

        Returns:
            The last state seen.
        """

        def look(core: RagTune) -> JobStatusResult:
            return core.job_status(job_id)

        state = first = await self.call(look)
        deadline = anyio.current_time() + wait_s
        while state.status == first.status and state.status not in _ENDED and anyio.current_time() < deadline:
            await anyio.sleep(min(POLL_EVERY_S, max(0.0, deadline - anyio.current_time())))
            before, state = state, await self.call(look)
            if state.progress > before.progress:
                await report(state)
        return state

    def _opened(self) -> RagTune:
        with self._opening:
            if self._core is None:
                from ragtune_mcp.core.app import RagTune

                self._core = RagTune.open(self._root)
            return self._core

    async def _tend(self) -> None:
        pause = FIRST_ROUND_S
        while True:
            await anyio.sleep(pause)
            pause = ROUND_EVERY_S
            try:
                await self.call(_tend_once)
            except Exception:
                # The workspace could not even be opened: it must not end the server.
                log.exception("background round failed; the next one is in %d s", ROUND_EVERY_S)


def _tend_once(core: RagTune) -> None:
    _attempt("looking at the running test", core.watch_test)
    _attempt("delivering the outbox", partial(_deliver, core))
    for job_id in _attempt("reading the status", lambda: core.status().running_jobs) or ():
        # Looking at a job is what finds out that its worker died and starts the next one in the queue.
        _attempt(f"looking at {job_id}", partial(core.job_status, job_id))
    _attempt("watching the feedback", core.watch_feedback)


def _deliver(core: RagTune) -> None:
    if core.status().outbox_pending:
        result = core.flush_outbox()
        log.info("outbox: %d delivered, %d waiting", result.delivered, result.pending)


def _attempt(name: str, step: Callable[[], T]) -> T | None:
    """Do one thing of a round; what fails is logged and must not keep the others from being done."""
    try:
        return step()
    except Exception:
        log.exception("%s failed; the next try is in %d s", name, ROUND_EVERY_S)
        return None
