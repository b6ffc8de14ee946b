"""The command line for people: the verbs of the core with tables and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ragtune_mcp import __version__
from ragtune_mcp.core.errors import RagTuneError
from ragtune_mcp.surface.commands import models, retrieval, training, trials, upkeep
from ragtune_mcp.surface.plain_text import visible

app = typer.Typer(
    name="ragtune-mcp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    help="Retrieval that improves with every rating. Without a command, or with `serve`: the MCP server.",
)
for group in (retrieval, training, trials, models, upkeep):
    group.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ragtune-mcp {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    workspace: Annotated[str, typer.Option(help="Project folder; the current project when not given.")] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = workspace


def run(arguments: Sequence[str]) -> None:
    """Run one command and end the process: 0 done, 1 a deliberate error in one line on stderr, 2 wrong usage.

    Args:
        arguments: the command and its options.
    """
    try:
        app(args=list(arguments), prog_name="ragtune-mcp")
    except RagTuneError as error:
        sys.exit(f"ragtune-mcp: {visible(str(error))}")
