"""What one server process holds while it runs: the opened workspace and the threads its verbs run in."""

from __future__ import annotations

import functools
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from ragtune_mcp.core.errors import NotReady, RagTuneError

if TYPE_CHECKING:
    from ragtune_mcp.core.app import RagTune
    from ragtune_mcp.core.results import JobStatusResult
    from ragtune_mcp.core.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_EVERY_S = 20.0
POLL_EVERY_S = 0.5
_THREADS = 24
_ENDED = ("completed", "failed", "cancelled")


class Session:
    """The workspace as the surfaces reach it. Verbs block, so each runs in a thread.

    Args:
        root: the workspace's folder.
        settings: its settings.
        core: the workspace when it is open already; it is then not closed here.
    """

    def __init__(self, root: Path, settings: Settings, core: RagTune | None = None) -> None:
        self.settings = settings
        self._root = root
        self._core = core
        self._threads: anyio.CapacityLimiter | None = None

    @property
    def core(self) -> RagTune:
        """The open workspace.

        Raises:
            NotReady: the session has not been opened.
        """
        if self._core is None:
            raise NotReady("The workspace is not open yet.", hint="Repeat the call in a moment.")
        return self._core

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """Open the workspace, deliver the outbox in the background, and close everything on the way out."""
        # A limiter of its own: waiting tools never starve the transport, which uses the default one.
        self._threads = anyio.CapacityLimiter(_THREADS)
        owned = self._core is None
        if owned:
            self._core = await anyio.to_thread.run_sync(self._open)
        try:
            async with anyio.create_task_group() as background:
                background.start_soon(self._tend)
                yield self
                background.cancel_scope.cancel()
        finally:
            if owned:
                core, self._core = self.core, None
                core.close()

    async def call(self, verb: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Run one verb in a thread.

        A cancelled call returns at once and its thread finishes on its own: every change a verb makes is one
        transaction or one rename, so nothing is left half done.
        """
        return await anyio.to_thread.run_sync(
            functools.partial(verb, *args, **kwargs), limiter=self._threads, abandon_on_cancel=True
        )

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
        state = first = await self.call(self.core.job_status, job_id)
        deadline = anyio.current_time() + wait_s
        while state.status == first.status and state.status not in _ENDED and anyio.current_time() < deadline:
            await anyio.sleep(min(POLL_EVERY_S, max(0.0, deadline - anyio.current_time())))
            before, state = state, await self.call(self.core.job_status, job_id)
            if state.progress > before.progress:
                await report(state)
        return state

    def _open(self) -> RagTune:
        from ragtune_mcp.core.app import RagTune

        return RagTune.open(self._root)

    async def _tend(self) -> None:
        while True:
            await anyio.sleep(FLUSH_EVERY_S)
            try:
                await self.call(self._tend_once)
            except (RagTuneError, sqlite3.Error):
                log.exception("background round failed; the next one is in %d s", FLUSH_EVERY_S)

    def _tend_once(self) -> None:
        status = self.core.status()
        if status.outbox_pending:
            result = self.core.flush_outbox()
            log.info("outbox: %d delivered, %d waiting", result.delivered, result.pending)
        for job_id in status.running_jobs:
            # Looking at a job is what finds out that its worker died and starts the next one in the queue.
            self.core.job_status(job_id)
