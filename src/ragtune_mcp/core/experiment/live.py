"""Keeps a test's running statistics up to date: in memory, with a checkpoint for new processes."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.experiment.evidence import STATE_FORMAT, Evidence
from ragtune_mcp.core.experiment.ledger import (
    RAMP_STATES,
    TEST_STATES,
    Span,
    answers_since,
    changes_since,
    exposures_since,
    newest_outcome,
)
from ragtune_mcp.core.experiment.trials import Trial
from ragtune_mcp.core.experiment.units import UnitChange

_CHECKPOINT_EVENTS = 500


class LiveEvidence:
    """The evidence of each test, advanced by what was logged since it was last looked at.

    Args:
        db: the workspace's database.
        of_ramp: count the ramp after a win instead of the test; then nothing is checkpointed.
    """

    def __init__(self, db: Database, *, of_ramp: bool = False) -> None:
        self._db = db
        self._of_ramp = of_ramp
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Evidence, int]] = {}

    def advance(self, trial: Trial, settled_before: datetime | None) -> Evidence:
        """Take in what is new and mark it as read; must run inside `look`, but for a ramp, which is only read.

        Args:
            trial: the test.
            settled_before: take in feedback only up to this moment; None for all of it.

        Returns:
            The evidence; owned by this object, not to be changed.
        """
        conn = self._db.connection
        with self._lock:
            # Taken out while it changes: a failure must not leave it half advanced.
            known = self._known.pop(trial.test_id) if trial.test_id in self._known else None
            evidence, saved_at = known or self._load(conn, trial)
            self._take_in(conn, trial, evidence, settled_before)
            if not self._of_ramp:
                saved_at = self._save(conn, trial, evidence, saved_at)
            self._known[trial.test_id] = (evidence, saved_at)
        return evidence

    def units(self, conn: sqlite3.Connection, trial: Trial) -> list[UnitChange]:
        """Every rated unit with all its opinions, read from the log."""
        span = self._span(trial)
        upto = newest_outcome(conn, trial.test_id, 0, None)
        return changes_since(conn, trial.test_id, 0, upto, span)

    @contextmanager
    def look(self) -> Iterator[sqlite3.Connection]:
        """A transaction to `advance` in, after which memory never holds more than the log does."""
        is_inner = self._db.connection.in_transaction
        try:
            with self._db.transaction() as conn:
                yield conn
        except BaseException:
            self._forget()
            raise
        # The caller's transaction may still be rolled back.
        if is_inner:
            self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._known.clear()

    def _load(self, conn: sqlite3.Connection, trial: Trial) -> tuple[Evidence, int]:
        # A ramp splits units even after an interleaved test.
        is_interleaved = trial.mode == "interleave" and not self._of_ramp
        row = conn.execute(
            "SELECT state FROM trial_checkpoints WHERE test_id = ?", (trial.test_id,)
        ).fetchone()
        state = json.loads(row["state"]) if row is not None and not self._of_ramp else {}
        if state.get("format") != STATE_FORMAT:
            return Evidence.empty(trial.metrics[0], is_interleaved=is_interleaved), 0
        evidence = Evidence.from_state(trial.metrics[0], state, is_interleaved=is_interleaved)
        return evidence, sum(evidence.seqs)

    def _take_in(
        self, conn: sqlite3.Connection, trial: Trial, evidence: Evidence, settled_before: datetime | None
    ) -> None:
        span, test_id = self._span(trial), trial.test_id
        evidence.add_exposures(exposures_since(conn, test_id, evidence.seqs[0], span))
        evidence.add_answers(answers_since(conn, test_id, evidence.seqs[1], span))
        upto = newest_outcome(conn, test_id, evidence.seqs[2], settled_before)
        if upto > evidence.seqs[2]:
            evidence.add_ratings(changes_since(conn, test_id, evidence.seqs[2], upto, span), upto)

    def _span(self, trial: Trial) -> Span:
        if self._of_ramp:
            return Span(trial.ramp_phase or 0, trial.phase, RAMP_STATES)
        return Span(0, trial.phase if trial.ramp_phase is None else trial.ramp_phase - 1, TEST_STATES)

    def _save(self, conn: sqlite3.Connection, trial: Trial, evidence: Evidence, saved_at: int) -> int:
        if evidence.seqs[2] > trial.read_seq:
            conn.execute(
                "UPDATE trials SET read_seq = ? WHERE test_id = ?", (evidence.seqs[2], trial.test_id)
            )
        position = sum(evidence.seqs)
        if position - saved_at < _CHECKPOINT_EVENTS:
            return saved_at
        conn.execute(
            "INSERT INTO trial_checkpoints VALUES (?, ?, ?) ON CONFLICT (test_id)"
            " DO UPDATE SET at = excluded.at, state = excluded.state",
            (trial.test_id, to_iso(utc_now()), json.dumps(evidence.to_state())),
        )
        return position
