"""Tests: started once, one running at a time, ended by their planned end, a decision or a stop."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from ragtune_mcp.core.clock import from_iso, to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import Conflict, InvalidInput, UnknownId
from ragtune_mcp.core.experiment.metrics import CREDIT, METRICS, Metric, check_metrics
from ragtune_mcp.core.experiment.plan import Mode, StopRule, check_gate, check_plan, check_split
from ragtune_mcp.core.experiment.traffic import Traffic, expected_effect, expected_traffic
from ragtune_mcp.core.workspace import new_id

Status = Literal["active", "ramping", "completed", "stopped"]

LARGE_EFFECT = 0.5
SWITCHED_OFF = "A/B testing was switched off by AB_TESTING_ENABLED=false"
_GRACE_SHARE = 0.1
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One test as stored.

    Attributes:
        metrics: names; the first is the primary one and alone gets alpha.
        split: share of units that get the test version in the present phase, (0, 1).
        phase: number of the present phase, from 0; a changed split begins a new one.
        alpha: level of the whole test, split into an early and a final part by `stop_rule`.
        ended_at: None while it runs.
        ramp_phase: first phase of the ramp after a win, None without one.
        ramp_ends_at: when the ramp is complete unless harm shows.
        ramp_result: ramp_complete, roll_back or ramp_stopped; "" before its end.
        gate: the offline verdict it was started with.
        force_reason: why a blocked version is tested all the same; "" otherwise.
        minimum_detectable_effect: of the primary metric, at the traffic expected at the start.
        read_seq: the newest outcome that a reading of the results has used.
        tallies: counts of feedback that was refused, repeated, edited or late.
    """

    test_id: str
    baseline_version: str
    test_version: str
    mode: Mode
    status: Status
    metrics: tuple[str, ...]
    split: float
    phase: int
    alpha: float
    stop_rule: StopRule
    salt: str
    duration_s: float
    started_at: datetime
    ends_at: datetime
    ended_at: datetime | None
    ramp_phase: int | None
    ramp_ends_at: datetime | None
    ramp_result: str
    end_reason: str
    gate: Mapping[str, Any]
    force_reason: str
    minimum_detectable_effect: float
    read_seq: int
    tallies: Mapping[str, int]

    @property
    def primary(self) -> Metric:
        """The metric that decides."""
        return METRICS[self.metrics[0]]

    @property
    def assignment_key(self) -> str:
        """What the bucket hash mixes in beside the salt: the test id; nothing under a fixed salt."""
        return self.test_id if self.salt == f"salt:{self.test_id}" else ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the planned traffic cannot find; empty when the plan is sound."""
        metric = self.primary
        limit = LARGE_EFFECT * (metric.hi - metric.lo) / 4.0
        if self.mode == "interleave" or self.minimum_detectable_effect <= limit:
            return ()
        return (
            f"With the expected feedback only an effect of {self.minimum_detectable_effect:.2f} or more on"
            f" {metric.name} can be found: plan a longer test, ask for more ratings or mode='interleave'.",
        )

    @property
    def is_running(self) -> bool:
        """Whether searches are still assigned by it."""
        return self.status in ("active", "ramping")

    @property
    def early_alpha(self) -> float:
        """Level of the always-valid part: a fifth under the hybrid rule (.01 of .05)."""
        return {"hybrid": self.alpha / 5.0, "anytime": self.alpha, "fixed": 0.0}[self.stop_rule]

    @property
    def final_alpha(self) -> float:
        """Level of the one look at the planned end: four fifths under the hybrid rule (.04 of .05)."""
        return {"hybrid": self.alpha * 0.8, "anytime": 0.0, "fixed": self.alpha}[self.stop_rule]

    @property
    def grace_ends_at(self) -> datetime:
        """Until when feedback on its searches still counts: min(24 h, 10 % of the duration) after the end."""
        return self.ends_at + timedelta(seconds=min(_DAY_S, _GRACE_SHARE * self.duration_s))

    @property
    def ended_as_planned(self) -> bool:
        """Whether it ran to the end stored at its start."""
        return self.status == "completed" and self.end_reason == "planned_end"


class TrialStore:
    """The tests of a workspace.

    Args:
        db: the workspace's database.
        is_enabled: False ends whatever runs at the next look, so that the serving version answers everything.
        clock: the present moment; tests and the demo move it.
    """

    def __init__(
        self, db: Database, *, is_enabled: bool = True, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._db = db
        self._is_enabled = is_enabled
        self._clock = clock

    def start(
        self,
        baseline_version: str,
        test_version: str,
        *,
        split: float = 0.5,
        duration_hours: float = 24.0,
        metrics: Sequence[str] = tuple(METRICS),
        mode: str = "split",
        gate: Mapping[str, Any] | None = None,
        force_reason: str = "",
        verify: Callable[[str], None] | None = None,
        alpha: float = 0.05,
        stop_rule: str = "hybrid",
        salt: str = "",
    ) -> Trial:
        """Start a test.

        Args:
            baseline_version: version that serves now.
            test_version: version to compare with it.
            split: share of units for the test version, in (0, 1).
            duration_hours: > 0; the one fixed-horizon look happens at its end.
            metrics: names of `METRICS`; the first is primary, the others are guardrails.
            mode: "split", or "interleave" (both versions answer every query, documents are credited).
            gate: offline verdict of the test version: {"verdict": pass | warn | block, "reasons": [...]}.
            force_reason: needed to test a blocked version; stored.
            verify: called with each version before anything is written; raises if it is not ready.
            alpha: level of the whole test, in (0, 0.5).
            stop_rule: hybrid, anytime or fixed.
            salt: of the assignment; derived from the test id when empty.

        Returns:
            The running test.

        Raises:
            InvalidInput: a value outside its range, an unknown metric, the same version twice.
            GateBlocked: the gate blocked the test version and no reason to force it was given.
            Conflict: another test runs; the message names it.
        """
        names = check_metrics(metrics)
        check_plan(baseline_version, test_version, split, duration_hours, mode, alpha, stop_rule)
        check_gate(test_version, gate or {}, force_reason)
        self.refuse_second()
        for version in (baseline_version, test_version):
            if verify is not None:
                verify(version)
        now = self._clock()
        test_id = new_id("ab", now)
        with self._db.transaction() as conn:
            self.refuse_second()
            is_interleaved = mode == "interleave"
            traffic = self.traffic(CREDIT if is_interleaved else METRICS[names[0]])
            effect = expected_effect(traffic, duration_hours, split, alpha, is_interleaved=is_interleaved)
            conn.execute(
                "INSERT INTO trials (test_id, baseline_version, test_version, mode, status, metrics, alpha,"
                " stop_rule, salt, duration_s, started_at, ends_at, gate, force_reason,"
                " minimum_detectable_effect) VALUES (?, ?, ?, ?, 'active', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    test_id, baseline_version, test_version, mode, json.dumps(names), alpha, stop_rule,
                    salt or f"salt:{test_id}", duration_hours * 3600.0, to_iso(now),
                    to_iso(now + timedelta(hours=duration_hours)), json.dumps(dict(gate or {})), force_reason,
                    effect,
                ),
            )  # fmt: skip
            conn.execute("INSERT INTO trial_phases VALUES (?, 0, ?, ?)", (test_id, split, to_iso(now)))
        return self.get(test_id)

    def traffic(self, metric: Metric) -> Traffic:
        """Queries a day with an opinion on a metric to expect, from the log where it is long enough."""
        return expected_traffic(self._db.connection, metric, self._clock())

    def active(self) -> Trial | None:
        """The test that assigns searches now; one whose planned end has passed is ended first."""
        row = self._db.connection.execute(_SELECT + " WHERE t.status IN ('active', 'ramping')").fetchone()
        if row is None:
            return None
        trial = self._ended_if_due(_trial(row))
        return trial if trial.is_running else None

    def get(self, test_id: str) -> Trial:
        """One test, ended first where its planned end has passed; raises UnknownId (code `unknown_test`)."""
        row = self._db.connection.execute(_SELECT + " WHERE t.test_id = ?", (test_id,)).fetchone()
        if row is None:
            raise UnknownId(
                f"There is no test {test_id!r}.",
                hint="Call ab_results without test_id for the latest test.",
                code="unknown_test",
            )
        return self._ended_if_due(_trial(row))

    def list(self) -> tuple[Trial, ...]:
        """All tests, oldest first, as stored."""
        return tuple(_trial(row) for row in self._db.connection.execute(_SELECT + " ORDER BY t.rowid"))

    def latest(self) -> Trial:
        """The test started last; raises UnknownId (code `unknown_test`) when none ever was."""
        row = self._db.connection.execute(_SELECT + " ORDER BY t.rowid DESC LIMIT 1").fetchone()
        if row is None:
            raise UnknownId("No test was ever started.", hint="Call start_ab_test.", code="unknown_test")
        return self._ended_if_due(_trial(row))

    def set_split(self, test_id: str, split: float) -> Trial:
        """Change the share of the test version: a new phase; units already seen keep their variant.

        Args:
            test_id: a running test.
            split: the new share, in (0, 1).

        Returns:
            The test as it is then.

        Raises:
            InvalidInput: split outside (0, 1).
            Conflict: the test no longer runs, ramps, or interleaves.
        """
        check_split(split)
        with self._db.transaction() as conn:
            trial = self.get(test_id)
            if trial.status != "active" or trial.mode == "interleave":
                state = trial.status if trial.status != "active" else "interleaved"
                raise Conflict(
                    f"The test {test_id!r} is {state}; it has no split to change.",
                    hint="Only the split of a running test in mode 'split' can be changed.",
                )
            if split != trial.split:
                begin_phase(conn, trial, split, self._clock())
        return self.get(test_id)

    def stop(self, test_id: str, reason: str) -> Trial:
        """End a running test before its planned end; one that has ended stays as it is.

        Args:
            test_id: the test.
            reason: why; kept with the test.

        Returns:
            The test as it is then.

        Raises:
            InvalidInput: no reason given.
            UnknownId: no such test.
        """
        if not reason.strip():
            raise InvalidInput(
                "A test is stopped with a reason, got ''.", hint="Say why; it is kept with the test."
            )
        with self._db.transaction() as conn:
            self._halt(conn, self.get(test_id), reason)
        return self.get(test_id)

    def _halt(self, conn: sqlite3.Connection, trial: Trial, reason: str) -> None:
        if trial.status == "ramping":
            end_ramp(conn, trial, "ramp_stopped")
        elif trial.is_running:
            end_trial(conn, trial, "stopped", self._clock(), reason)

    def refuse_second(self) -> None:
        """Raise Conflict (code `test_running`), naming the test that runs, while one does."""
        running = self.active()
        if running is not None:
            raise Conflict(
                f"The test {running.test_id!r} ({running.status}) already runs on this index.",
                hint=f"Call ab_results or stop_ab_test for {running.test_id}.",
                code="test_running",
            )

    def _ended_if_due(self, trial: Trial) -> Trial:
        is_due = trial.status == "active" and self._clock() >= trial.ends_at
        is_halted = trial.is_running and not self._is_enabled
        if not (is_due or is_halted):
            return trial
        with self._db.transaction() as conn:
            if is_due:
                end_trial(conn, trial, "completed", trial.ends_at, "planned_end")
            else:
                self._halt(conn, trial, SWITCHED_OFF)
            row = conn.execute(_SELECT + " WHERE t.test_id = ?", (trial.test_id,)).fetchone()
        return _trial(row)


def end_trial(conn: sqlite3.Connection, trial: Trial, status: Status, at: datetime, reason: str) -> None:
    """Latch the end of a running test; the first end stands."""
    conn.execute(
        "UPDATE trials SET status = ?, ended_at = coalesce(ended_at, ?),"
        " end_reason = CASE end_reason WHEN '' THEN ? ELSE end_reason END"
        " WHERE test_id = ? AND status IN ('active', 'ramping')",
        (status, to_iso(at), reason, trial.test_id),
    )


def end_ramp(conn: sqlite3.Connection, trial: Trial, result: str) -> None:
    """End the ramp of a decided test."""
    conn.execute(
        "UPDATE trials SET status = 'completed', ramp_result = ? WHERE test_id = ? AND status = 'ramping'",
        (result, trial.test_id),
    )


def begin_phase(conn: sqlite3.Connection, trial: Trial, split: float, at: datetime) -> None:
    """Give new units the test version with another probability from now on."""
    conn.execute(
        "INSERT INTO trial_phases VALUES (?, ?, ?, ?)", (trial.test_id, trial.phase + 1, split, to_iso(at))
    )


def add_tally(conn: sqlite3.Connection, test_id: str, name: str, count: int = 1) -> None:
    """Count a piece of feedback that was refused, repeated, edited or late."""
    conn.execute(
        "UPDATE trials SET tallies = json_set(tallies, '$.' || ?1,"
        " coalesce(json_extract(tallies, '$.' || ?1), 0) + ?2) WHERE test_id = ?3",
        (name, count, test_id),
    )


_SELECT = (
    "SELECT t.*, p.phase, p.split FROM trials t JOIN trial_phases p ON p.test_id = t.test_id"
    " AND p.phase = (SELECT max(phase) FROM trial_phases WHERE test_id = t.test_id)"
)


def _trial(row: sqlite3.Row) -> Trial:
    return Trial(
        test_id=row["test_id"],
        baseline_version=row["baseline_version"],
        test_version=row["test_version"],
        mode=cast(Mode, row["mode"]),
        status=cast(Status, row["status"]),
        metrics=tuple(json.loads(row["metrics"])),
        split=row["split"],
        phase=row["phase"],
        alpha=row["alpha"],
        stop_rule=cast(StopRule, row["stop_rule"]),
        salt=row["salt"],
        duration_s=row["duration_s"],
        started_at=from_iso(row["started_at"]),
        ends_at=from_iso(row["ends_at"]),
        ended_at=from_iso(row["ended_at"]) if row["ended_at"] else None,
        ramp_phase=row["ramp_phase"],
        ramp_ends_at=from_iso(row["ramp_ends_at"]) if row["ramp_ends_at"] else None,
        ramp_result=row["ramp_result"],
        end_reason=row["end_reason"],
        gate=json.loads(row["gate"]),
        force_reason=row["force_reason"],
        minimum_detectable_effect=row["minimum_detectable_effect"],
        read_seq=row["read_seq"],
        tallies=json.loads(row["tallies"]),
    )
