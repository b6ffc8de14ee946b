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


def exposures_since(conn: sqlite3.Connection, test_id: str, seq: int) -> list[ExposureEvent]:
    """Exposures after `seq`, in order."""
    rows = conn.execute(
        "SELECT seq, phase, assigned, propensity, is_first, NOT is_first AND assigned !="
        " (SELECT f.assigned FROM exposures f WHERE f.test_id = e.test_id AND f.unit = e.unit"
        " ORDER BY f.seq LIMIT 1) FROM exposures e WHERE test_id = ? AND seq > ? ORDER BY seq",
        (test_id, seq),
    )
    return [ExposureEvent(*row) for row in rows]


def answers_since(conn: sqlite3.Connection, test_id: str, seq: int) -> list[AnswerEvent]:
    """Answers after `seq`, in order."""
    rows = conn.execute(
        "SELECT a.seq, e.assigned, a.failure != '', a.results = '[]', a.latency_ms FROM answers a"
        " JOIN exposures e ON e.seq = a.exposure_seq WHERE a.test_id = ? AND a.seq > ? ORDER BY a.seq",
        (test_id, seq),
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
    conn: sqlite3.Connection, test_id: str, seq: int, upto: int, *, with_ramp: bool
) -> list[UnitChange]:
    """Units with opinions in (seq, upto], each with all its opinions up to `upto`; late ones are left out.

    Edits made in time are always included: one may stand beyond `upto` while the rating it replaces does not.
    """
    states = "('counted', 'edit', 'late_edit', 'ramp')" if with_ramp else "('counted', 'edit', 'late_edit')"
    columns = (
        "unit, seq, submission, query_id, rater, kind, item, value, rank, gap, replaces, state, exposure_seq"
    )
    where = f"test_id = ? AND state IN {states} AND (seq <= ? OR state = 'edit')"
    arguments: list[object] = [test_id, upto]
    if seq:
        units = [
            row[0]
            for row in conn.execute(
                "SELECT DISTINCT unit FROM outcomes WHERE test_id = ? AND seq > ? AND seq <= ?"
                f" AND state IN {states}",
                (test_id, seq, upto),
            )
        ]
        where += " AND unit IN (SELECT value FROM json_each(?))"
        arguments.append(json.dumps(units))
    by_unit: dict[str, list[Opinion]] = defaultdict(list)
    exposure_of: dict[str, int] = {}
    for row in conn.execute(f"SELECT {columns} FROM outcomes WHERE {where} ORDER BY seq", arguments):
        by_unit[row[0]].append(Opinion(*row[1:12]))
        exposure_of.setdefault(row[0], row[12])
    arms = _arms(conn, test_id, list(exposure_of.values()), whole=not seq)
    changes = []
    for unit, opinions in by_unit.items():
        phase, assigned, propensity = arms[exposure_of[unit]]
        before = [o for o in opinions if o.seq <= seq]
        after = [o for o in opinions if o.seq <= upto]
        edits = {o.replaces: o.value for o in opinions if o.state == "edit" and o.replaces is not None}
        changes.append(UnitChange(phase, assigned == Variant.TEST, propensity, before, after, edits))
    return changes


def _arms(
    conn: sqlite3.Connection, test_id: str, exposure_seqs: list[int], *, whole: bool
) -> dict[int, tuple[int, str, float]]:
    if whole:
        rows = conn.execute(
            "SELECT seq, phase, assigned, propensity FROM exposures WHERE test_id = ?", (test_id,)
        )
    else:
        rows = conn.execute(
            "SELECT seq, phase, assigned, propensity FROM exposures"
            " WHERE seq IN (SELECT value FROM json_each(?))",
            (json.dumps(exposure_seqs),),
        )
    return {row[0]: (row[1], row[2], row[3]) for row in rows}
