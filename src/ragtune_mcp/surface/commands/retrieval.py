"""Commands of daily use: search, record-feedback, index."""

from __future__ import annotations

from typing import Annotated

import typer

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.surface.commands.shell import AsJson, Detach, follow, opened
from ragtune_mcp.surface.commands.show import show


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("search")(search)
    app.command("record-feedback")(record_feedback)
    app.command("index")(index)


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=50, help="How many documents.")] = 5,
    unit_id: Annotated[
        str, typer.Option(help="User or conversation; stays on one model during a test.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Search the project's documents; full texts with --json."""
    with opened(context) as core:
        show(core.search(query, k, unit_id), as_json)


def record_feedback(
    context: typer.Context,
    query_id: Annotated[str, typer.Argument(help="From search.")],
    rating: Annotated[
        int, typer.Option(min=0, max=5, help="The answer as a whole, 1..5; 0 = not given.")
    ] = 0,
    document: Annotated[list[str] | None, typer.Option(help="ID=1..5 for one document; repeatable.")] = None,
    helpful: Annotated[
        list[str] | None, typer.Option(help="Id of a document that helped; repeatable.")
    ] = None,
    satisfaction: Annotated[
        int, typer.Option(min=0, max=5, help="The user's mood, 1..5; 0 = not given.")
    ] = 0,
    comment: Annotated[str, typer.Option(help="Free text.")] = "",
    as_json: AsJson = False,
) -> None:
    """Rate the results of a search."""
    with opened(context) as core:
        recorded = core.record_feedback(
            query_id,
            rating=rating,
            document_ratings=dict(_document_rating(each) for each in document or ()),
            user_satisfaction=satisfaction,
            comment=comment,
            helpful_ids=tuple(helpful or ()),
        )
        show(recorded, as_json)


def _document_rating(text: str) -> tuple[str, int]:
    identifier, _, stars = text.rpartition("=")
    if not identifier or stars not in ("1", "2", "3", "4", "5"):
        raise InvalidInput(
            f"--document {text!r} is not of the form ID=1..5.", hint="Example: --document docs/a.md#setup=4"
        )
    return identifier, int(stars)


def index(
    context: typer.Context,
    paths: Annotated[
        list[str] | None, typer.Argument(help="Globs inside the workspace; none = all text files.")
    ] = None,
    source: Annotated[str, typer.Option(help="files, conport or chroma:<collection>.")] = "files",
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Bring the search index up to date."""
    with opened(context) as core:
        result = core.index_documents(paths=tuple(paths or ()), source=source)
        if result.job_id and not detach:
            show(follow(core, result.job_id), as_json)
        else:
            show(result, as_json)
