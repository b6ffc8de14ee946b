"""Entry of a worker process: `python -m ragtune_mcp.worker WORKSPACE JOB_ID`.

Started by an executor, never by hand. Whatever is written to stdout and stderr is the job's log.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
from functools import partial

from ragtune_mcp.core.jobs.worker import run


def main(arguments: list[str]) -> int:
    """Do one job.

    Args:
        arguments: workspace folder and job id.

    Returns:
        The exit status: 0 unless the job failed.
    """
    faulthandler.enable()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("httpx", "onnx_ir", "onnxscript", "torch.onnx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    root, job_id = arguments
    # Late, so that the reason why a stage cannot be imported ends in the log.
    from ragtune_mcp.core.app import RagTune
    from ragtune_mcp.core.pipeline import HANDLERS

    app = RagTune.open(root)
    job = run(job_id, app.jobs, {kind: partial(handler, app) for kind, handler in HANDLERS.items()})
    app.close()
    return 1 if job.status == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
