"""Commands of deployment: list, promote, roll back, export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import typer

from ragtune_mcp.core.results import SwitchResult
from ragtune_mcp.surface.commands.shell import AsJson, Detach, follow, opened
from ragtune_mcp.surface.commands.show import show

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Reason = Annotated[str, typer.Option(help="Why; kept with the decision.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("list-models")(list_models)
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("export")(export)


def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the versions with their metrics and which one serves."""
    with opened(context) as core:
        show(core.list_models(), as_json)


def promote(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="See list-models.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if its gate blocked it; needs --reason.")
    ] = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let a version answer all searches."""
    with opened(context) as core:
        _switch(
            lambda confirm: core.promote_model(version, confirm=confirm, force=force, reason=reason),
            yes,
            as_json,
        )


def rollback(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Empty = the version that served before.")] = "",
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Return to an earlier version."""
    with opened(context) as core:
        _switch(lambda confirm: core.rollback_model(version, confirm=confirm, reason=reason), yes, as_json)


def _switch(switch: Callable[[bool], SwitchResult], yes: bool, as_json: bool) -> None:
    if not yes:
        preview = switch(False)
        show(preview, as_json=False)
        typer.confirm(f"Switch to {preview.to_version}?", abort=True, err=True)
    show(switch(True), as_json)


def export(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="See list-models.")],
    format: Annotated[Literal["ollama", "onnx"], typer.Option(help="ollama or onnx.")] = "ollama",
    name: Annotated[str, typer.Option(help="Ollama model name; empty = after the version.")] = "",
    quantization: Annotated[
        Literal["f16", "q8_0", "f32"], typer.Option(help="f16, q8_0 or f32; Ollama only.")
    ] = "f16",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Write a version for Ollama or ONNX and check that it gives the same vectors."""
    with opened(context) as core:
        result = core.export_model(version, format=format, name=name, quantization=quantization)
        if result.job_id and not detach:
            show(follow(core, result.job_id), as_json)
        else:
            show(result, as_json)
