"""How results look on a terminal. What comes from outside is printed as plain text, never as markup."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ragtune_mcp.core.results import (
    AbResults,
    IndexResult,
    JobStatusResult,
    ModelList,
    SearchResults,
    SwitchResult,
    TrainingDataResult,
)
from ragtune_mcp.surface.plain_text import visible

_EXCERPT = 320


def show(result: BaseModel | Mapping[str, Any], as_json: bool) -> None:
    """Print a result on stdout.

    Args:
        result: what a verb returned.
        as_json: as JSON, complete, instead of for people.
    """
    if as_json:
        data = result.model_dump(mode="json", by_alias=True) if isinstance(result, BaseModel) else result
        typer.echo(json.dumps(data, ensure_ascii=False, indent=2, default=str))
    else:
        _show(result, Console(highlight=False))


@singledispatch
def _show(result: Any, console: Console) -> None:
    data = result.model_dump(mode="json", by_alias=True) if isinstance(result, BaseModel) else result
    next_step = data.get("next_step")
    _fields(console, {key: value for key, value in data.items() if key not in ("success", "next_step")})
    _next(console, next_step)


@_show.register
def _(result: SearchResults, console: Console) -> None:
    for hit in result.results:
        _line(console, f"{hit.rank}. {hit.id}  ({hit.score:.3f})", "bold")
        excerpt = visible(hit.text).strip()
        console.print(_text(excerpt[:_EXCERPT] + ("…" if len(excerpt) > _EXCERPT else "")))
    if not result.results:
        console.print("No documents found.")
    _line(console, f"to rate: ragtune-mcp record-feedback {result.query_id} --rating 1..5", "dim")


@_show.register
def _(result: ModelList, console: Console) -> None:
    rows = [
        (
            model.version,
            ", ".join(model.aliases),
            model.gate.verdict if model.gate else "",
            ", ".join(f"{name} {_short(value)}" for name, value in model.metrics.items()),
            model.dataset_id or "",
            "yes" if model.indexed else "no",
        )
        for model in result.models
    ]
    _table(console, ("version", "alias", "gate", "metrics", "data set", "indexed"), rows)


@_show.register
def _(result: TrainingDataResult, console: Console) -> None:
    _line(console, result.training_data_path, "bold")
    _fields(console, result.statistics.model_dump())
    for warning in result.warnings:
        _line(console, f"warning: {warning}", "yellow")
    _next(console, result.next_step)


@_show.register
def _(result: JobStatusResult, console: Console) -> None:
    data = result.model_dump(mode="json", exclude={"events", "next_step", "gate"}, exclude_none=True)
    _fields(console, {key: value for key, value in data.items() if value not in ("", {}, [])})
    if result.gate:
        _line(console, f"gate: {result.gate.verdict}", "bold")
        for reason in result.gate.reasons:
            _line(console, f"  {reason}")
    for event in result.events:
        _line(console, f"  {event.at}  {event.message}", "dim")
    _next(console, result.next_step)


@_show.register
def _(result: AbResults, console: Console) -> None:
    _line(console, f"{result.test_id}: {result.status}, {result.mode}", "bold")
    baseline, test = (each.model_dump() for each in (result.baseline_metrics, result.test_metrics))
    rows = [(name, _short(baseline[name]), _short(test[name])) for name in baseline]
    _table(console, ("", result.baseline_model, result.test_model), rows)
    valid = "" if result.p_value_valid else " (valid only at the planned end)"
    console.print(f"p-value {_short(result.p_value)}{valid}, at any time {_short(result.p_anytime)}")
    _line(console, f"effect {_flat(result.effect)}")
    _line(console, f"recommendation: {result.recommendation}", "bold")
    for reason in result.reasons:
        _line(console, f"  {reason}")
    _next(console, result.next_step)


@_show.register
def _(result: SwitchResult, console: Console) -> None:
    _line(console, f"{result.action}: {result.from_version} -> {result.to_version}", "bold")
    for check in result.checks:
        _line(console, f"  checked: {check}")
    for change in result.will_change:
        _line(console, f"  will change: {change}")
    if result.changed:
        console.print("done")


@_show.register
def _(result: IndexResult, console: Console) -> None:
    _fields(console, result.model_dump(exclude={"next_step", "message", "job_id"}))
    _line(console, result.message)


def _line(console: Console, value: str, style: str = "") -> None:
    # Not folded at the terminal's width: ids and commands are there to be copied.
    console.print(_text(value, style), soft_wrap=True)


def _fields(console: Console, values: Mapping[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(_text(name, "dim"), _text(_flat(value)))
    console.print(table)


def _table(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in head:
        table.add_column(_text(title), overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    console.print(table)


def _next(console: Console, step: str | None) -> None:
    if step:
        _line(console, f"next: {step}", "dim")


def _flat(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return ", ".join(f"{key} {_flat(item)}" for key, item in value.items()) or "none"
        case list():
            return ", ".join(_flat(item) for item in value) or "none"
        case _:
            return _short(value)


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: str, style: str = "") -> Text:
    return Text(visible(value), style=style)
