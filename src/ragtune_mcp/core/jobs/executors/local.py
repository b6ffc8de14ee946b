"""Workers as detached processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from ragtune_mcp.core.errors import JobFailed
from ragtune_mcp.core.jobs.job import Job
from ragtune_mcp.core.jobs.processes import process_name
from ragtune_mcp.core.workspace import Workspace

# -P: a module lying in the workspace must not shadow one of ours.
WORKER = ("-P", "-m", "ragtune_mcp.worker")
_LAUNCH_TIMEOUT_S = 60.0
# The worker's parent exits at once, so init adopts it: a host that kills its server's child tree misses it,
# and nobody leaves a zombie behind.
_LAUNCHER = """
import subprocess, sys
with open(sys.argv[1], "ab") as log:
    worker = subprocess.Popen(sys.argv[3:], cwd=sys.argv[2], stdin=subprocess.DEVNULL, stdout=log,
                              stderr=subprocess.STDOUT, start_new_session=True, close_fds=True)
sys.stdout.write(str(worker.pid))
worker.returncode = 0
"""


class LocalExecutor:
    """One detached process per job, in its own session and process group.

    Args:
        entry: arguments of the Python interpreter; workspace and job id are appended.
    """

    def __init__(self, entry: Sequence[str] = WORKER) -> None:
        self.entry = tuple(entry)

    def submit(self, job: Job, workspace: Workspace) -> str:
        """Start `python -m ragtune_mcp.worker WORKSPACE JOB_ID`, its output appended to the job's log."""
        worker = [sys.executable, *self.entry, str(workspace.root), job.job_id]
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(workspace.job(job.job_id).log)]
        try:
            done = subprocess.run(
                [*launcher, str(workspace.root), *worker],
                # Threads that wait by spinning take the cores from the person at work, and training stalls beside them.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LAUNCH_TIMEOUT_S,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            raise JobFailed(f"The worker of job {job.job_id} could not be started: {lines[-1]}.") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise JobFailed(f"The worker of job {job.job_id} could not be started: {error}.") from error
        return str(process_name(int(done.stdout)))

    def is_alive(self, handle: str) -> bool:
        """False: every handle of this executor is a `ProcessName`, which the store checks itself."""
        return False
