"""Commands of upkeep: status, import, explain, flush, stop-store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from ragtune_mcp.surface.commands.shell import AsJson, opened
from ragtune_mcp.surface.commands.show import show


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("status")(status)
    app.command("import-feedback")(import_feedback)
    app.command("explain")(explain)
    app.command("flush")(flush)
    app.command("stop-store")(stop_store)
    app.command("conport-reindex")(conport_reindex)


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the workspace at a glance."""
    with opened(context) as core:
        show(core.status(), as_json)


def import_feedback(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(help="Folders of JSON files, or JSONL and CSV files, in the workspace.")
    ],
    as_json: AsJson = False,
) -> None:
    """Take over ratings collected elsewhere."""
    with opened(context) as core:
        show(core.import_feedback(paths), as_json)


def explain(
    context: typer.Context,
    identifier: Annotated[
        str, typer.Argument(help="Id of a search, rating, data set, job, version or test.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what an id is and what it is linked to, from a search to the version its rating trained and back."""
    with opened(context) as core:
        show(core.explain(identifier), as_json)


def flush(context: typer.Context, as_json: AsJson = False) -> None:
    """Deliver now what waits for ConPort."""
    with opened(context) as core:
        show(asdict(core.flush_outbox()), as_json)


def stop_store(context: typer.Context, as_json: AsJson = False) -> None:
    """End the vector store's process; the next search starts it again."""
    with opened(context) as core:
        show({"stopped": core.stop_store()}, as_json)


def conport_reindex(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Whose vectors; empty = the serving version.")] = "",
    restore: Annotated[
        bool, typer.Option("--restore", help="Put back what ConPort had before the first time.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only the plan is shown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let ConPort's own semantic search use a version; its processes must be stopped."""
    with opened(context) as core:
        show(core.conport_restore() if restore else core.conport_reindex(version, confirm=yes), as_json)
