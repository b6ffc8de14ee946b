"""After a win: 80 % of searches go to the promoted version, 20 % stay on the old one, then 100 %.

The harm process starts afresh with the ramp. Going on with the test's own would leave it far behind, since
the win was evidence against harm (docs/ab-testing.md has the simulated difference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.experiment.decision import Recommendation
from ragtune_mcp.core.experiment.decision_log import (
    ROLL_BACK_BLOCKED,
    append_entry,
    failure_reason,
    final_decision,
    roll_back_trouble,
)
from ragtune_mcp.core.experiment.eprocess import e_value
from ragtune_mcp.core.experiment.evidence import Evidence
from ragtune_mcp.core.experiment.live import LiveEvidence
from ragtune_mcp.core.experiment.trials import Trial, TrialStore, begin_phase, end_ramp

RAMP_SHARE = 0.8
RAMP_LENGTH = timedelta(hours=24)


class RampOutcome(StrEnum):
    """How a ramp ends."""

    COMPLETE = "ramp_complete"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class RampEnd:
    """A ramp at its end: `ROLL_BACK` asks for the baseline version to serve again."""

    trial: Trial
    outcome: RampOutcome
    reasons: tuple[str, ...]


class Ramp:
    """Starts and watches the ramp of the winning version.

    Args:
        db: the workspace's database.
        trials: its tests.
        clock: the present moment.
    """

    def __init__(self, db: Database, trials: TrialStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._db = db
        self._trials = trials
        self._clock = clock
        self._live = LiveEvidence(db, of_ramp=True)

    def begin(self, test_id: str) -> Trial:
        """Send 80 % of units to the winner of a test for 24 hours; belongs in the promotion's transaction.

        Args:
            test_id: a test that decided for its test version.

        Returns:
            The test, ramping.

        Raises:
            Conflict: the test has not been won, was ramped before, or another test runs.
            UnknownId: no such test.
        """
        now = self._clock()
        with self._db.transaction() as conn:
            trial = self._trials.get(test_id)
            decision = final_decision(conn, test_id)
            if decision is None or decision.recommendation is not Recommendation.DEPLOY:
                raise Conflict(
                    f"The test {test_id!r} was not won by the test model.",
                    hint="Only a version that won its test is ramped.",
                )
            if trial.ramp_phase is not None:
                raise Conflict(f"The winner of {test_id!r} was ramped before.")
            running = self._trials.active()
            if running is not None:
                raise Conflict(f"The test {running.test_id!r} runs on this index.", code="test_running")
            begin_phase(conn, trial, RAMP_SHARE, now)
            conn.execute(
                "UPDATE trials SET status = 'ramping', ramp_phase = ?, ramp_ends_at = ? WHERE test_id = ?",
                (trial.phase + 1, to_iso(now + RAMP_LENGTH), test_id),
            )
            append_entry(conn, trial, "ramp", (f"{RAMP_SHARE:.0%} of units to {trial.test_version}",), now)
        return self._trials.get(test_id)

    def due_for(self, baseline_version: str, test_version: str) -> str:
        """The latest test, if `test_version` won it against `baseline_version` and was not ramped; else ""."""
        row = self._db.connection.execute("SELECT test_id FROM trials ORDER BY rowid DESC LIMIT 1").fetchone()
        if row is None:
            return ""
        trial, decision = (
            self._trials.get(row["test_id"]),
            final_decision(self._db.connection, row["test_id"]),
        )
        is_won = decision is not None and decision.recommendation is Recommendation.DEPLOY
        is_same = (trial.baseline_version, trial.test_version) == (baseline_version, test_version)
        return trial.test_id if is_won and is_same and trial.ramp_phase is None else ""

    def check(self, prepared: RampOutcome | None = None) -> RampEnd | None:
        """End the ramp if harm shows, if the new version fails, or if its time is over.

        For use after searches and feedback, inside the transaction that moves the pointer back.

        Args:
            prepared: the only end that the caller is ready for; None for any.

        Returns:
            How it ended, once; None while it goes on and where none runs.
        """
        with self._live.look() as conn:
            end = self.due()
            if end is None or prepared not in (None, end.outcome):
                return None
            append_entry(conn, end.trial, end.outcome, end.reasons, self._clock())
            end_ramp(conn, end.trial, end.outcome)
            return RampEnd(self._trials.get(end.trial.test_id), end.outcome, end.reasons)

    def due(self) -> RampEnd | None:
        """How `check` would end the ramp now; for use outside a transaction.

        It only reads, so that a look neither takes the write lock nor counts the ramp anew.
        """
        trial = self._trials.active()
        if trial is None or trial.ramp_phase is None or trial.ramp_ends_at is None:
            return None
        harm = harm_reasons(trial, self._live.advance(trial, None))
        failure = failure_reason(self._db.connection, trial.test_id, trial.ramp_phase)
        reasons = (*harm, failure) if failure else harm
        if reasons:
            return RampEnd(trial, RampOutcome.ROLL_BACK, reasons)
        if self._clock() < trial.ramp_ends_at:
            return None
        quiet = f"no harm in {RAMP_LENGTH.total_seconds() / 3600.0:.0f} h at {RAMP_SHARE:.0%}"
        return RampEnd(trial, RampOutcome.COMPLETE, (quiet,))

    def block(self, reason: str) -> Trial | None:
        """Log why the ramp cannot be rolled back although it should be.

        Args:
            reason: what is in the way.

        Returns:
            The ramping test the first time; None when this is its last logged step, and where none ramps.
        """
        with self._db.transaction() as conn:
            trial = self._trials.active()
            if trial is None or trial.ramp_phase is None or roll_back_trouble(conn, trial.test_id):
                return None
            append_entry(conn, trial, ROLL_BACK_BLOCKED, (reason,), self._clock())
            return trial


def harm_reasons(trial: Trial, evidence: Evidence) -> tuple[str, ...]:
    """Which metrics of the test show harm in the ramp, in words."""
    processes = {name: evidence.metrics[name].process for name in trial.metrics}
    return tuple(
        f"harm on {name}: e-value {e_value(process.sup_harm):.3g} >= 20 during the ramp"
        for name, process in processes.items()
        if process.is_harmed
    )
