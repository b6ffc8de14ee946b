"""Reads the event log of a test: what happened after a given sequence number."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from datetime import datetime
from typing import NamedTuple

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.experiment.assignment import Variant
from ragtune_mcp.core.experiment.units import Opinion, UnitChange


class ExposureEvent(NamedTuple):
    """A search assigned by the test; `is_mixed` when its unit was first seen in the other arm."""

    seq: int
    phase: int
    arm: str
    propensity: float
    is_first: bool
    is_mixed: bool


class AnswerEvent(NamedTuple):
    """An answered search, by assigned arm."""

    seq: int
    arm: str
    failed: bool
    is_empty: bool
    latency_ms: float


class Span(NamedTuple):
    """Phases first..last of a test and the feedback that counts in them: the test itself, or its ramp."""

    first: int
    last: int
    states: tuple[str, ...]


TEST_STATES = ("counted", "edit", "late_edit")
RAMP_STATES = ("ramp",)


def exposures_since(conn: sqlite3.Connection, test_id: str, seq: int, span: Span) -> list[ExposureEvent]:
    """Exposures after `seq`, in order."""
    rows = conn.execute(
        "SELECT seq, phase, assigned, propensity, is_first, NOT is_first AND assigned !="
        " (SELECT f.assigned FROM exposures f WHERE f.test_id = e.test_id AND f.unit = e.unit"
        " ORDER BY f.seq LIMIT 1)"
        " FROM exposures e WHERE test_id = ? AND seq > ? AND phase BETWEEN ? AND ? ORDER BY seq",
        (test_id, seq, span.first, span.last),
    )
    return [ExposureEvent(*row) for row in rows]


def answers_since(conn: sqlite3.Connection, test_id: str, seq: int, span: Span) -> list[AnswerEvent]:
    """Answers after `seq`, in order."""
    rows = conn.execute(
        "SELECT a.seq, e.assigned, a.failure != '', a.results = '[]', a.latency_ms FROM answers a"
        " JOIN exposures e ON e.seq = a.exposure_seq"
        " WHERE a.test_id = ? AND a.seq > ? AND e.phase BETWEEN ? AND ? ORDER BY a.seq",
        (test_id, seq, span.first, span.last),
    )
    return [AnswerEvent(*row) for row in rows]


def newest_outcome(conn: sqlite3.Connection, test_id: str, seq: int, settled_before: datetime | None) -> int:
    """The last outcome to use after `seq`: the newest, or the last that can no longer be edited."""
    if settled_before is not None:
        row = conn.execute(
            "SELECT min(seq) FROM outcomes WHERE test_id = ? AND seq > ? AND at > ?",
            (test_id, seq, to_iso(settled_before)),
        ).fetchone()
        if row[0] is not None:
            return int(row[0]) - 1
    row = conn.execute(
        "SELECT max(seq) FROM outcomes WHERE test_id = ? AND seq > ?", (test_id, seq)
    ).fetchone()
    return seq if row[0] is None else int(row[0])


def changes_since(
    conn: sqlite3.Connection, test_id: str, seq: int, upto: int, span: Span
) -> list[UnitChange]:
    """Units with opinions in (seq, upto], each with all its opinions up to `upto`.

    Edits made in time are looked up without that limit: one may stand beyond it while the rating it replaces
    does not.
    """
    states = json.dumps(span.states)
    # Left to itself SQLite reads the whole test by seq to find the few units of a look.
    source = "outcomes INDEXED BY outcomes_unit" if seq else "outcomes"
    where = "test_id = ? AND state IN (SELECT value FROM json_each(?)) AND (seq <= ? OR state = 'edit')"
    arguments: list[object] = [test_id, states, upto]
    if seq:
        units = conn.execute(
            "SELECT DISTINCT unit FROM outcomes WHERE test_id = ? AND seq > ? AND seq <= ?"
            " AND state IN (SELECT value FROM json_each(?))",
            (test_id, seq, upto, states),
        )
        where += " AND unit IN (SELECT value FROM json_each(?))"
        arguments.append(json.dumps([row[0] for row in units]))
    by_unit: dict[str, list[Opinion]] = defaultdict(list)
    columns = "unit, seq, submission, query_id, rater, kind, item, value, rank, gap, replaces, state"
    for row in conn.execute(f"SELECT {columns} FROM {source} WHERE {where} ORDER BY seq", arguments):
        by_unit[row[0]].append(Opinion(*row[1:]))
    first_exposures = _first_exposures(conn, test_id, list(by_unit) if seq else None, span)
    return [
        _change(first_exposures[unit], opinions, seq, upto)
        for unit, opinions in by_unit.items()
        if unit in first_exposures and opinions[0].seq <= upto
    ]


def _change(exposed: sqlite3.Row, opinions: list[Opinion], seq: int, upto: int) -> UnitChange:
    return UnitChange(
        phase=exposed["phase"],
        in_test=exposed["assigned"] == Variant.TEST,
        propensity=exposed["propensity"],
        covariate=exposed["covariate"],
        before=[o for o in opinions if o.seq <= seq],
        after=[o for o in opinions if o.seq <= upto],
        edits={o.replaces: o.value for o in opinions if o.state == "edit" and o.replaces is not None},
    )


def _first_exposures(
    conn: sqlite3.Connection, test_id: str, units: list[str] | None, span: Span
) -> dict[str, sqlite3.Row]:
    """The first exposure of units that entered in the span; of all of them for None."""
    chosen = "" if units is None else " AND unit IN (SELECT value FROM json_each(?))"
    arguments = [test_id, span.first, span.last, *([] if units is None else [json.dumps(units)])]
    rows = conn.execute(
        "SELECT unit, phase, assigned, propensity, covariate FROM exposures"
        f" WHERE test_id = ? AND is_first = 1 AND phase BETWEEN ? AND ?{chosen}",
        arguments,
    )
    return {row["unit"]: row for row in rows}
