"""The results of a test: a pure function of its event log and the clock; a final decision is latched."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.experiment.decision import Decision, Facts, Recommendation, decide
from ragtune_mcp.core.experiment.decision_log import (
    final_decision,
    log_decision,
    logged_decisions,
    roll_back_trouble,
    undecided,
)
from ragtune_mcp.core.experiment.evidence import Evidence
from ragtune_mcp.core.experiment.findings import Findings, findings_of, remaining_text
from ragtune_mcp.core.experiment.live import LiveEvidence
from ragtune_mcp.core.experiment.markdown import markdown_report
from ragtune_mcp.core.experiment.outcomes import EDIT_WINDOW
from ragtune_mcp.core.experiment.reading import Effect, Reading
from ragtune_mcp.core.experiment.replay import kept_replay
from ragtune_mcp.core.experiment.statistics import superiority
from ragtune_mcp.core.experiment.trials import Trial, TrialStore
from ragtune_mcp.core.experiment.units import current_value


class AbReport:
    """Reads tests: results on demand, and a watch that decides without being asked.

    Args:
        db: the workspace's database.
        trials: its tests.
        clock: the present moment.
    """

    def __init__(self, db: Database, trials: TrialStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._db = db
        self._trials = trials
        self._clock = clock
        self._live = LiveEvidence(db)

    def results(self, test_id: str = "") -> Reading:
        """The results now; reading them as often as one likes does not spend any error probability.

        A final decision is latched: it ends the test and no later call can change it.

        Args:
            test_id: "" for the latest test.

        Returns:
            The results.

        Raises:
            UnknownId: no such test.
        """
        with self._live.look():
            trial = self._trials.get(test_id) if test_id else self._trials.latest()
            return self._read(trial, settled_before=None)

    def monitor(self) -> tuple[Reading, ...]:
        """Look unasked at the tests not decided yet, after feedback, so that harm or a win ends one at once.

        Uses only feedback that can no longer be edited, and leaves the look at the planned end to `results`
        until late feedback can no longer arrive.

        Returns:
            The results of the tests that were due for a look, oldest first.
        """
        now = self._clock()
        with self._live.look() as conn:
            trials = [self._trials.get(test_id) for test_id in undecided(conn)]
            return tuple(
                self._read(trial, settled_before=now - EDIT_WINDOW if trial.is_running else None)
                for trial in trials
                if not trial.ended_as_planned or now > trial.grace_ends_at
            )

    def evidence(self, test_id: str) -> Evidence:
        """A copy of the running statistics behind the results, for plots and reports."""
        with self._live.look():
            trial = self._trials.get(test_id)
            state = self._live.advance(trial, None).to_state()
        return Evidence.from_state(trial.metrics[0], state, is_interleaved=trial.mode == "interleave")

    def document(self, test_id: str) -> str:
        """The test on one page of Markdown, with its decision log and a stored replay."""
        with self._live.look() as conn:
            reading = self.results(test_id)
            trial = self._trials.get(reading.test_id)
            decisions = logged_decisions(conn, trial.test_id)
            return markdown_report(reading, decisions, self._chance_of_better(conn, trial))

    def _chance_of_better(self, conn: sqlite3.Connection, trial: Trial) -> float | None:
        """P(test > baseline) + P(equal) / 2 of two units on the primary metric; None where it has no meaning."""
        if trial.mode == "interleave":
            return None
        arms: tuple[list[float], list[float]] = ([], [])
        for change in self._live.units(conn, trial):
            value = current_value(trial.primary, change.after)
            if value is not None:
                arms[change.in_test].append(value)
        baseline, test = arms
        return superiority(test, baseline) if test and baseline else None

    def _read(self, trial: Trial, settled_before: datetime | None) -> Reading:
        conn = self._db.connection
        evidence = self._live.advance(trial, settled_before)
        found = findings_of(trial, evidence)
        latched = final_decision(conn, trial.test_id)
        decision = latched or decide(self._facts(trial, found))
        if latched is None:
            log_decision(
                conn, trial, decision, self._clock(), n=sum(found.rated), p_anytime=found.p_anytime,
                p_value=found.comparison.p,
            )  # fmt: skip
            if decision.is_final:
                trial = self._trials.get(trial.test_id)
        trouble = roll_back_trouble(conn, trial.test_id) if trial.status == "ramping" else ()
        return _results(trial, found, decision, kept_replay(conn, trial.test_id), trouble)

    def _facts(self, trial: Trial, found: Findings) -> Facts:
        reused = self._db.connection.execute(
            "SELECT count(*) FROM trials WHERE salt = ?", (trial.salt,)
        ).fetchone()[0]
        interval = (found.comparison.low, found.comparison.high)
        return Facts(
            is_over=not trial.is_running,
            ended_as_planned=trial.ended_as_planned,
            elapsed_s=(self._clock() - trial.started_at).total_seconds(),
            duration_s=trial.duration_s,
            rated=found.rated,
            difference=found.comparison.difference,
            interval=interval if interval[0] is not None and interval[1] is not None else None,  # type: ignore[arg-type]
            p_anytime=found.p_anytime,
            p_fixed=found.comparison.p,
            is_harmed=found.is_harmed,
            guardrails=found.guardrails,
            srm_e_value=found.srm_e_value,
            mixed_share=found.mixed_share,
            feedback_rate_p=found.feedback_rate_p,
            salt_reused=reused > 1,
            early_alpha=trial.early_alpha,
            final_alpha=trial.final_alpha,
            margin=found.metric.margin,
            remaining=remaining_text(trial, found, self._clock()),
        )


def _results(
    trial: Trial, found: Findings, decision: Decision, replayed: dict[str, Any], trouble: tuple[str, ...]
) -> Reading:
    is_significant = 0.0 < trial.early_alpha >= found.p_anytime
    if trial.ended_as_planned and found.comparison.p is not None:
        is_significant = is_significant or found.comparison.p <= trial.final_alpha
    low, high = found.comparison.low, found.comparison.high
    return Reading(
        test_id=trial.test_id,
        status="completed" if trial.status == "ramping" else trial.status,
        mode=trial.mode,
        baseline_version=trial.baseline_version,
        test_version=trial.test_version,
        baseline_metrics=found.arm_metrics["baseline"],
        test_metrics=found.arm_metrics["test"],
        statistical_significance=is_significant,
        p_value=found.comparison.p,
        p_value_valid=trial.ended_as_planned,
        p_anytime=found.p_anytime,
        effect=Effect(
            found.metric.name,
            found.comparison.difference,
            None if low is None or high is None else (low, high),
            found.interval_anytime,
            found.hedges_g,
        ),
        srm={"e_value": found.srm_e_value, "p": found.srm_p, "alarm": found.srm_e_value > 1000.0},
        guardrails={name: str(state) for name, state in found.guardrails.items()},
        secondary=found.secondary,
        health=found.health,
        recommendation=str(decision.recommendation),
        reasons=(*trouble, *decision.reasons, *_why_no_p(found), *_why_stopped(trial)),
        warnings=found.warnings,
        next_step=_next_step(trial, decision, is_blocked=bool(trouble)),
        need=found.need if trial.status == "active" else {},
        tallies=trial.tallies,
        replay=replayed,
        minimum_detectable_effect=trial.minimum_detectable_effect,
        start_time=trial.started_at,
        estimated_end_time=trial.ends_at,
        ended_at=trial.ended_at,
    )


def _why_no_p(found: Findings) -> tuple[str, ...]:
    return (f"no p_value: {found.comparison.reason}",) if found.comparison.reason else ()


def _why_stopped(trial: Trial) -> tuple[str, ...]:
    return (f"stopped: {trial.end_reason}",) if trial.status == "stopped" else ()


def _next_step(trial: Trial, decision: Decision, *, is_blocked: bool) -> str:
    if is_blocked:
        return (
            f"Restore the files of {trial.baseline_version}, or wait for the job that the reason names; the"
            f" roll-back from {trial.test_version} is tried again every 20 s."
        )
    if trial.status == "ramping":
        return (
            f"Nothing: {trial.split:.0%} of searches get {trial.test_version}; harm rolls it back by itself."
        )
    if trial.ramp_phase is not None:
        undone = f"{trial.test_version} was rolled back during its ramp; train again with the feedback since."
        return undone if trial.ramp_result == "roll_back" else "Nothing: the ramp is over."
    return {
        Recommendation.DEPLOY: f"promote_model(version={trial.test_version!r})",
        Recommendation.KEEP: "Keep the baseline; train again with the feedback collected since.",
        Recommendation.CONTINUE: "Go on searching and rating.",
        Recommendation.INCONCLUSIVE: "Start a longer test, or rate more of the results.",
        Recommendation.INVESTIGATE: f"stop_ab_test(test_id={trial.test_id!r}) and find what is broken.",
    }[decision.recommendation]


def summary(trial: Trial) -> dict[str, Any]:
    """The test as it is logged to ConPort: what was compared, how and when."""
    return {
        "test_id": trial.test_id,
        "status": trial.status,
        "mode": trial.mode,
        "baseline_model": trial.baseline_version,
        "test_model": trial.test_version,
        "traffic_split": trial.split,
        "metrics": list(trial.metrics),
        "start_time": to_iso(trial.started_at),
        "estimated_end_time": to_iso(trial.ends_at),
        "minimum_detectable_effect": trial.minimum_detectable_effect,
        "gate": dict(trial.gate),
        "force_reason": trial.force_reason,
        "ramp": trial.ramp_result or ("running" if trial.status == "ramping" else ""),
    }
