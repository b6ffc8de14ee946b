"""What the commands share: opening the workspace, following a job, and the options they all have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ragtune_mcp.core.errors import JobFailed
from ragtune_mcp.core.results import JobStatusResult
from ragtune_mcp.surface.plain_text import visible

if TYPE_CHECKING:
    from ragtune_mcp.core.app import RagTune

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; the job goes on in the background.")]

_POLL_S = 0.5


@contextmanager
def opened(context: typer.Context) -> Iterator[RagTune]:
    """The workspace the command line names, closed afterwards."""
    # Imported here: --help and mistakes in the command line need nothing of the core.
    from ragtune_mcp.core.app import RagTune

    core = RagTune.open(context.obj)
    try:
        yield core
    finally:
        core.close()


def follow(core: RagTune, job_id: str) -> JobStatusResult:
    """Show a job's progress until it ends; Ctrl-C leaves it running.

    Args:
        core: the open workspace.
        job_id: the job.

    Returns:
        Its last state, completed or cancelled.

    Raises:
        JobFailed: it failed, with the reason.
    """
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task(job_id, total=100)
            while (state := core.job_status(job_id)).status in ("queued", "running"):
                bars.update(
                    bar, completed=state.progress, description=visible(state.message or state.status)[:60]
                )
                time.sleep(_POLL_S)
    except KeyboardInterrupt:
        typer.echo(f"{job_id} goes on in the background; see: ragtune-mcp job-status {job_id}", err=True)
        raise typer.Exit(130) from None
    if state.error:
        raise JobFailed(
            f"{job_id} failed: {state.error.message}",
            hint=state.error.hint,
            code=state.error.code or "job_failed",
        )
    return state
