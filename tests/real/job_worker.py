"""A worker process like `ragtune_mcp.worker`, with handlers made for the tests."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.jobs.executors.local import LocalExecutor
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.jobs.worker import JobContext, run
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


def work(ctx: JobContext) -> dict[str, object]:
    """Do what the spec's "do" says; every way of working leaves one line per run in `runs`."""
    with (ctx.paths.folder / "runs").open("a") as runs:
        runs.write(f"{os.getpid()}\n")
    ctx.progress(0.5, "working", pid=os.getpid())
    if ctx.job.spec["do"] == "wait":
        for _ in range(6000):
            ctx.check_cancelled()
            if (ctx.workspace.root / "go").exists():
                break
            time.sleep(0.01)
    if ctx.job.spec["do"] == "ignore":
        time.sleep(60)
    if ctx.job.spec["do"] == "resume":
        ctx.paths.checkpoints.mkdir(exist_ok=True)
        done = len(list(ctx.paths.checkpoints.iterdir()))
        (ctx.paths.checkpoints / str(done)).touch()
        if done == 0:
            os.abort()
        return {"resumed_at": done}
    sys.stdout.write("written to stdout\n")
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "is_session_leader": os.getsid(0) == os.getpid(),
        "is_group_leader": os.getpgid(0) == os.getpid(),
        "cwd": os.getcwd(),
        "stdin_at_end": sys.stdin.read() == "",
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    root, job_id = Path(sys.argv[1]), sys.argv[2]
    workspace = Workspace(root, Settings.load(root))
    store = JobStore(Database(workspace.database), workspace, LocalExecutor((__file__,)))
    run(job_id, store, dict.fromkeys(("finetune", "index", "export"), work))
