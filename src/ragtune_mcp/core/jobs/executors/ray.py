"""Workers as Ray jobs (extra `ray`)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ragtune_mcp.core.errors import ServiceUnavailable
from ragtune_mcp.core.jobs.executors.local import WORKER
from ragtune_mcp.core.jobs.job import Job
from ragtune_mcp.core.workspace import Workspace

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_PREFIX = "ray:"
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"


class RayExecutor:
    """Submits workers to the Ray cluster whose dashboard answers at `address`.

    The entry point runs on the cluster's head node. That node must see the workspace at the same path and on
    a local disk (SQLite's write-ahead log does not work over a network file system), with the same Python
    environment; training may spread from there.
    """

    def __init__(self, address: str = "", entry: Sequence[str] = WORKER) -> None:
        self.address = address or _DEFAULT_ADDRESS
        self.entry = tuple(entry)

    def submit(self, job: Job, workspace: Workspace) -> str:
        """Submit `python -m ragtune_mcp.worker WORKSPACE JOB_ID`, its output appended to the job's log."""
        worker = shlex.join([sys.executable, *self.entry, str(workspace.root), job.job_id])
        log = shlex.quote(str(workspace.job(job.job_id).log))
        try:
            # The attempt is part of the id: Ray refuses an id it has seen.
            submission_id = self._client().submit_job(
                entrypoint=f"exec {worker} >> {log} 2>&1", submission_id=f"{job.job_id}-{job.attempt}"
            )
        except (RuntimeError, ConnectionError) as error:
            raise self._unavailable(error) from error
        return f"{_PREFIX}{submission_id}"

    def is_alive(self, handle: str) -> bool:
        """True while Ray holds the submission pending or running, and while Ray cannot be asked."""
        try:
            status: Any = self._client().get_job_status(handle.removeprefix(_PREFIX))
        except (ConnectionError, ServiceUnavailable):
            return True
        except RuntimeError:
            # Ray does not know the submission: its cluster was restarted.
            return False
        return not status.is_terminal()

    def _client(self) -> JobSubmissionClient:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ServiceUnavailable(
                "RAGTUNE_EXECUTOR is 'ray', but Ray is not installed.", hint="pip install 'ragtune-mcp[ray]'"
            ) from error
        try:
            return JobSubmissionClient(self.address)
        except (RuntimeError, ConnectionError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> ServiceUnavailable:
        return ServiceUnavailable(
            f"Ray does not take jobs at {self.address}: {error}",
            code="ray_unavailable",
            hint="Start Ray (`ray start --head`), correct RAGTUNE_RAY_ADDRESS or set RAGTUNE_EXECUTOR=local.",
        )
