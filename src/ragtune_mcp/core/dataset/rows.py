"""One row of a data file as a pair, with the value named where it is none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args

from ragtune_mcp.core.dataset.grouping import group_queries
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS, PairKind, SplitName, TrainingPair
from ragtune_mcp.core.dataset.split import assign_splits, in_splits
from ragtune_mcp.core.errors import InvalidInput

_KINDS: tuple[PairKind, ...] = get_args(PairKind)
_SPLITS: tuple[SplitName, ...] = get_args(SplitName)
_Word = TypeVar("_Word", bound=str)


def pair_of_row(row: Any, where: str) -> TrainingPair:
    """Read one row.

    Args:
        row: a mapping of field names to values; texts may stand for numbers, as in csv.
        where: file and line, for the message.

    Returns:
        The pair; fields that are missing have their defaults, the kind follows the label.

    Raises:
        InvalidInput: a field is missing or has a value it cannot have.
    """
    if not isinstance(row, Mapping):
        raise InvalidInput(f"{where}: a {type(row).__name__} is not a pair.")
    label = _number(row, "label", where, 0.0, 1.0)
    return TrainingPair(
        query=_text(row, "query", where),
        document=_text(row, "document", where),
        label=label,
        kind=_one_of(row, "kind", _KINDS, "positive" if label >= 0.5 else "negative", where),
        weight=1.0 if _absent(row, "weight") else _number(row, "weight", where, 0.0, 1.0, above=True),
        rating=None if _absent(row, "rating") else _number(row, "rating", where, 1.0, 5.0),
        document_id=_optional(row, "document_id", where),
        query_group=_optional(row, "query_group", where),
        split=_one_of(row, "split", _SPLITS, "train", where),
        feedback_ids=_ids(row, where),
    )


def with_groups_and_splits(pairs: Sequence[TrainingPair], where: str) -> list[TrainingPair]:
    """The pairs with query groups worked out where none has one, and splits where none is held out.

    Args:
        pairs: of one file.
        where: the file, for the message.

    Returns:
        The pairs; as they are where all have a group.

    Raises:
        InvalidInput: some have a group and some have not, so that neither can be trusted.
    """
    without = next((pair for pair in pairs if not pair.query_group), None)
    if without is None:
        return list(pairs)
    if any(pair.query_group for pair in pairs):
        raise InvalidInput(
            f"{where}: the query {without.query[:80]!r} has no query_group, but others have one.",
            hint="Give every row a query_group, or leave the column out; loading then works groups out.",
        )
    groups = group_queries(pair.query for pair in pairs)
    if any(pair.split != "train" for pair in pairs):
        return [replace(pair, query_group=groups[pair.query]) for pair in pairs]
    scorable = dict.fromkeys(groups.values(), False)
    for pair in pairs:
        scorable[groups[pair.query]] |= pair.kind not in NEGATIVE_KINDS
    return in_splits(pairs, groups, assign_splits(scorable))


def _absent(row: Mapping[str, Any], name: str) -> bool:
    return row.get(name) is None or row[name] == ""


def _one_of(row: Mapping[str, Any], name: str, words: tuple[_Word, ...], default: _Word, where: str) -> _Word:
    value = row.get(name) or default
    for word in words:
        if word == value:
            return word
    raise InvalidInput(f"{where}: the {name} {value!r} is not one of {', '.join(words)}.")


def _number(
    row: Mapping[str, Any], name: str, where: str, low: float, high: float, *, above: bool = False
) -> float:
    value = row.get(name)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high or (above and number == low):
        raise InvalidInput(
            f"{where}: {name} {value!r} is not a number in {'(' if above else '['}{low:g}, {high:g}]."
        )
    return number


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{where}: {name} {value!r} is not a text.")
    return value


def _optional(row: Mapping[str, Any], name: str, where: str) -> str:
    return "" if _absent(row, name) else _text(row, name, where)


def _ids(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = row.get("feedback_ids") or []
    try:
        ids = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        ids = None
    if not isinstance(ids, list | tuple) or not all(isinstance(i, str) for i in ids):
        raise InvalidInput(f"{where}: feedback_ids {value!r} is not an array of texts.")
    return tuple(ids)
