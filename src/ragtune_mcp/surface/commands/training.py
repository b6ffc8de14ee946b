"""Commands of training: build a data set, start and follow jobs."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.surface.commands.shell import AsJson, Detach, follow, opened
from ragtune_mcp.surface.commands.show import show


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("generate-training-data")(generate_training_data)
    app.command("start-finetune")(start_finetune)
    app.command("distill")(distill)
    app.command("job-status")(job_status)
    app.command("cancel-job")(cancel_job)


def generate_training_data(
    context: typer.Context,
    min_positive: Annotated[int | None, typer.Option(min=0, help="Refuse with fewer positive pairs.")] = None,
    min_negative: Annotated[int | None, typer.Option(min=0, help="Refuse with fewer negative pairs.")] = None,
    hard_negatives: Annotated[bool | None, typer.Option(help="Mine near misses from the live index.")] = None,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Add queries made from documents.")] = False,
    days_back: Annotated[int, typer.Option(min=1, help="Use feedback of this many past days.")] = 90,
    export_format: Annotated[
        Literal["csv", "json", "jsonl", "triplets"],
        typer.Option("--format", help="csv, json, jsonl or triplets."),
    ] = "csv",
    as_json: AsJson = False,
) -> None:
    """Turn the ratings kept in ConPort into a data set."""
    with opened(context) as core, Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("reading feedback", total=1.0)
        result = core.generate_training_data(
            min_positive_samples=min_positive,
            min_negative_samples=min_negative,
            include_hard_negatives=hard_negatives,
            include_synthetic=synthetic,
            days_back=days_back,
            export_format=export_format,
            progress=lambda share, message: bars.update(bar, completed=share, description=message),
        )
    show(result, as_json)


def start_finetune(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="Data set id or file.")],
    base_model: Annotated[str, typer.Option(help="Model to start from; empty = BASE_MODEL_NAME.")] = "",
    suffix: Annotated[str, typer.Option(help="Begins the version's name.")] = "feedback",
    config: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, e.g. num_epochs=2; repeatable.")
    ] = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Train a new version of the model and check it."""
    is_path = "/" in dataset or "." in dataset
    with opened(context) as core:
        started = core.start_finetune(
            training_data_path=dataset if is_path else "",
            dataset_id="" if is_path else dataset,
            base_model=base_model,
            model_name_suffix=suffix,
            config=dict(_setting(each) for each in config or ()),
        )
        show(started if detach else follow(core, started.job_id), as_json)


def distill(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="A fine-tuned version; see list-models.")],
    layers: Annotated[int, typer.Option(min=2, help="Layers of the student.")] = 3,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Make a smaller, faster student of a version and check that it keeps up."""
    with opened(context) as core:
        started = core.distill(version, layers=layers)
        show(started if detach else follow(core, started.job_id), as_json)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidInput(
            f"--config {text!r} is not of the form NAME=VALUE.", hint="Example: --config num_epochs=2"
        )
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def job_status(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(help="Printed when the job was started.")],
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a job's state."""
    with opened(context) as core:
        show(follow(core, job_id) if wait else core.job_status(job_id), as_json)


def cancel_job(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(help="Printed when the job was started.")],
    as_json: AsJson = False,
) -> None:
    """Stop a job."""
    with opened(context) as core:
        show(core.cancel_job(job_id), as_json)
