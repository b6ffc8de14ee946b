"""Commands of live comparison."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from ragtune_mcp.surface.commands.shell import AsJson, opened
from ragtune_mcp.surface.commands.show import show


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("start-ab-test")(start_ab_test)
    app.command("ab-results")(ab_results)
    app.command("set-ab-split")(set_ab_split)
    app.command("stop-ab-test")(stop_ab_test)


def start_ab_test(
    context: typer.Context,
    baseline: Annotated[str, typer.Option(help="Empty = the serving version.")] = "",
    test: Annotated[str, typer.Option(help="Empty = the newest version that passed its gate.")] = "",
    split: Annotated[
        float | None, typer.Option(min=0.01, max=0.99, help="Share of searches for the test model.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.01, max=8760, help="How long.")] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; the first one decides, the others are guardrails; none = all three."),
    ] = None,
    mode: Annotated[Literal["split", "interleave"], typer.Option(help="split or interleave.")] = "split",
    force: Annotated[
        bool, typer.Option("--force", help="Test a version its gate blocked; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept with the test.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let a new version answer a share of the searches."""
    with opened(context) as core:
        started = core.start_ab_test(
            baseline_model=baseline,
            test_model=test,
            traffic_split=split,
            duration_hours=hours,
            metrics=metrics or None,
            mode=mode,
            force=force,
            reason=reason,
        )
        show(started, as_json)


def ab_results(
    context: typer.Context,
    test_id: Annotated[str, typer.Argument(help="Empty = the latest test.")] = "",
    plot: Annotated[
        Path | None, typer.Option(help="Also write the effect over time to this SVG file.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write the test on one page of Markdown.")] = None,
    replay: Annotated[
        bool, typer.Option(help="First answer the rated queries again with both models; seconds to minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where a live comparison stands."""
    if plot and plot.suffix.lower() != ".svg":
        raise typer.BadParameter(
            f"{plot} does not end in .svg; the plot is an SVG image", param_hint="--plot"
        )
    with opened(context) as core:
        if replay:
            core.replay_ab_test(test_id)
        show(core.ab_results(test_id), as_json)
        if plot:
            shutil.copyfile(core.plot_ab_results(test_id), plot)
            typer.echo(f"plot: {plot}", err=True)
        if report:
            shutil.copyfile(core.report_ab_test(test_id), report)
            typer.echo(f"report: {report}", err=True)


def set_ab_split(
    context: typer.Context,
    test_id: Annotated[str, typer.Argument(help="Printed when the test was started.")],
    split: Annotated[
        float, typer.Argument(min=0.01, max=0.99, help="New share of searches for the test model.")
    ],
    as_json: AsJson = False,
) -> None:
    """Change the share of the test model in a running comparison; searches already seen keep their variant."""
    with opened(context) as core:
        show(core.set_ab_split(test_id, split), as_json)


def stop_ab_test(
    context: typer.Context,
    test_id: Annotated[str, typer.Argument(help="Printed when the test was started.")],
    reason: Annotated[str, typer.Option(help="Why; kept with the test.")],
    as_json: AsJson = False,
) -> None:
    """End a live comparison before its time."""
    with opened(context) as core:
        show(core.stop_ab_test(test_id, reason), as_json)
