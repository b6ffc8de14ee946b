"""Where a job's worker process runs."""

from __future__ import annotations

from typing import Protocol

from ragtune_mcp.core.jobs.job import Job
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


class Executor(Protocol):
    """Starts workers that outlive the process that asked for them."""

    def submit(self, job: Job, workspace: Workspace) -> str:
        """Start the worker of a job, whose folder exists.

        Args:
            job: the job, queued.
            workspace: the workspace it belongs to.

        Returns:
            A handle: the text of a `ProcessName`, or anything else that `is_alive` understands.

        Raises:
            JobFailed: the worker could not be started.
            ServiceUnavailable: the executor's own service does not answer.
        """
        ...

    def is_alive(self, handle: str) -> bool:
        """True while the worker of a handle that is not a `ProcessName` runs or waits to run."""
        ...


def executor_for(settings: Settings) -> Executor:
    """The executor that RAGTUNE_EXECUTOR names."""
    if settings.ragtune_executor == "ray":
        from ragtune_mcp.core.jobs.executors.ray import RayExecutor

        return RayExecutor(settings.ragtune_ray_address)
    from ragtune_mcp.core.jobs.executors.local import LocalExecutor

    return LocalExecutor()
