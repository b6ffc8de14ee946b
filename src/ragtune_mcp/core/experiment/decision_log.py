"""The append-only log of decisions; the final one of a test is latched and can never be flipped."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.experiment.decision import Decision, Recommendation
from ragtune_mcp.core.experiment.trials import Trial, end_trial

BREAKER_IN_A_ROW = 3
BREAKER_SHARE = 0.05
BREAKER_MIN_SEARCHES = 20
BREAKER_WINDOW = 1000
ROLL_BACK_BLOCKED = "roll_back_blocked"


def final_decision(conn: sqlite3.Connection, test_id: str) -> Decision | None:
    """The latched decision of a test, None while there is none."""
    row = conn.execute("SELECT * FROM decisions WHERE test_id = ? AND is_final = 1", (test_id,)).fetchone()
    if row is None:
        return None
    return Decision(Recommendation(row["recommendation"]), tuple(json.loads(row["reasons"])), is_final=True)


def last_entry(conn: sqlite3.Connection, test_id: str) -> str:
    """The newest recommendation or step of the ramp in a test's log, "" for an empty log."""
    row = conn.execute(
        "SELECT recommendation FROM decisions WHERE test_id = ? ORDER BY seq DESC LIMIT 1", (test_id,)
    ).fetchone()
    return "" if row is None else str(row[0])


def undecided(conn: sqlite3.Connection) -> list[str]:
    """Tests without a final decision, oldest first."""
    rows = conn.execute(
        "SELECT test_id FROM trials WHERE test_id NOT IN (SELECT test_id FROM decisions WHERE is_final = 1)"
        " ORDER BY rowid"
    )
    return [row["test_id"] for row in rows]


def untold(conn: sqlite3.Connection) -> list[str]:
    """Decided tests whose end nobody was told, oldest first."""
    rows = conn.execute(
        "SELECT test_id FROM trials WHERE told = ''"
        " AND test_id IN (SELECT test_id FROM decisions WHERE is_final = 1) ORDER BY rowid"
    )
    return [row["test_id"] for row in rows]


def told_mark(conn: sqlite3.Connection, test_id: str) -> str:
    """The mark left by `mark_told`, "" without one."""
    row = conn.execute("SELECT told FROM trials WHERE test_id = ?", (test_id,)).fetchone()
    return str(row["told"])


def mark_told(conn: sqlite3.Connection, test_id: str, mark: str) -> None:
    """Remember what was told of an ended test; belongs in the transaction that tells it."""
    conn.execute("UPDATE trials SET told = ? WHERE test_id = ?", (mark, test_id))


def roll_back_trouble(conn: sqlite3.Connection, test_id: str) -> tuple[str, ...]:
    """Why a ramp that should be rolled back is not; empty where nothing is in the way."""
    row = conn.execute(
        "SELECT recommendation, reasons FROM decisions WHERE test_id = ? ORDER BY seq DESC LIMIT 1",
        (test_id,),
    ).fetchone()
    is_blocked = row is not None and row["recommendation"] == ROLL_BACK_BLOCKED
    return tuple(json.loads(row["reasons"])) if is_blocked else ()


def logged_decisions(conn: sqlite3.Connection, test_id: str) -> list[dict[str, Any]]:
    """The log of a test, oldest first: at, recommendation, reasons, n."""
    rows = conn.execute("SELECT * FROM decisions WHERE test_id = ? ORDER BY seq", (test_id,))
    return [
        {
            "at": r["at"],
            "recommendation": r["recommendation"],
            "reasons": json.loads(r["reasons"]),
            "n": r["n"],
        }
        for r in rows
    ]


def log_decision(
    conn: sqlite3.Connection,
    trial: Trial,
    decision: Decision,
    at: datetime,
    *,
    n: int,
    p_anytime: float | None = None,
    p_value: float | None = None,
) -> None:
    """Append a decision that differs from the last one, or is final; a final one ends the running test.

    Args:
        conn: a connection inside a transaction.
        trial: the test.
        decision: what was decided.
        at: when.
        n: rated units it rests on.
        p_anytime: always-valid p at that time.
        p_value: fixed-horizon p at that time.
    """
    if not decision.is_final and last_entry(conn, trial.test_id) == decision.recommendation:
        return
    append_entry(
        conn, trial, decision.recommendation, decision.reasons, at, n=n, p_anytime=p_anytime, p_value=p_value,
        is_final=decision.is_final,
    )  # fmt: skip
    if decision.is_final:
        end_trial(conn, trial, "completed", at, "decision")


def append_entry(
    conn: sqlite3.Connection,
    trial: Trial,
    recommendation: str,
    reasons: Sequence[str],
    at: datetime,
    *,
    n: int = 0,
    p_anytime: float | None = None,
    p_value: float | None = None,
    is_final: bool = False,
) -> None:
    """Append one row: a recommendation, or a step of the ramp; arguments as in `log_decision`."""
    conn.execute(
        "INSERT INTO decisions (test_id, at, recommendation, reasons, n, p_anytime, p_value, is_final)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            trial.test_id,
            to_iso(at),
            recommendation,
            json.dumps(reasons),
            n,
            p_anytime,
            p_value,
            int(is_final),
        ),
    )


def break_circuit(conn: sqlite3.Connection, trial: Trial, at: datetime) -> None:
    """After a failure: end the test if its version fails too often; a ramp is ended by its watch."""
    if trial.ramp_phase is not None or final_decision(conn, trial.test_id) is not None:
        return
    reason = failure_reason(conn, trial.test_id, 0)
    if reason:
        log_decision(conn, trial, Decision(Recommendation.KEEP, (reason,), is_final=True), at, n=0)


def failure_reason(conn: sqlite3.Connection, test_id: str, first_phase: int) -> str:
    """Why the test version counts as broken: 3 failures in a row, or over 5 % of its last 20 to 1000 answers.

    An encoder that is loading or an index being built says nothing about the version: such answers are left out.

    Args:
        conn: any connection.
        test_id: the test.
        first_phase: count searches from this phase on.

    Returns:
        The reason, "" for a sound version.
    """
    rows = conn.execute(
        "SELECT a.failure FROM answers a JOIN exposures e ON e.seq = a.exposure_seq"
        " WHERE a.test_id = ? AND e.assigned != 'baseline' AND e.phase >= ? AND a.failure != ?"
        " ORDER BY a.seq DESC LIMIT ?",
        (test_id, first_phase, NotReady.code, BREAKER_WINDOW),
    ).fetchall()
    failed = sum(1 for row in rows if row["failure"])
    in_a_row = len(rows) >= BREAKER_IN_A_ROW and all(row["failure"] for row in rows[:BREAKER_IN_A_ROW])
    too_many = len(rows) >= BREAKER_MIN_SEARCHES and failed > BREAKER_SHARE * len(rows)
    if not (in_a_row or too_many):
        return ""
    why = f"{BREAKER_IN_A_ROW} in a row" if in_a_row else f"over {BREAKER_SHARE:.0%}"
    return f"circuit breaker: the test model failed on {failed} of {len(rows)} searches ({why})"
