"""Verbs of live comparison: start, read and stop a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.errors import (
    Conflict,
    FeatureDisabled,
    GateBlocked,
    IntegrityError,
    InvalidInput,
    NotReady,
    ServiceUnavailable,
)
from ragtune_mcp.core.experiment.decision_log import final_decision, mark_told, told_mark, untold
from ragtune_mcp.core.experiment.plot import effect_svg
from ragtune_mcp.core.experiment.ramp import RampOutcome
from ragtune_mcp.core.experiment.reading import Reading
from ragtune_mcp.core.experiment.replay import Replay, keep_replay, rated_queries, replay
from ragtune_mcp.core.experiment.report import summary
from ragtune_mcp.core.experiment.trials import Trial
from ragtune_mcp.core.models.registry import ModelVersion
from ragtune_mcp.core.results import AbResults, AbTestStarted, Recommendation, VariantMetrics
from ragtune_mcp.core.verbs.training import TrainingVerbs
from ragtune_mcp.core.workspace import sha256_text

_REPLAY_WARM_UP_S = 60.0
METRICS = ("response_quality", "relevance_score", "user_satisfaction")


class TrialVerbs(TrainingVerbs):
    """start_ab_test, ab_results, stop_ab_test."""

    def start_ab_test(
        self,
        *,
        baseline_model: str = "",
        test_model: str = "",
        traffic_split: float | None = None,
        duration_hours: float | None = None,
        metrics: Sequence[str] | None = None,
        mode: str = "split",
        force: bool = False,
        reason: str = "",
    ) -> AbTestStarted:
        """Check both models and their indexes, then send a share of the queries to the test model."""
        if not self.settings.ab_testing_enabled:
            raise FeatureDisabled(
                "A/B testing is switched off by AB_TESTING_ENABLED=false.",
                hint="Set AB_TESTING_ENABLED=true.",
            )
        self.trials.refuse_second()
        baseline = self.registry.resolve(baseline_model or self.champion())
        test = self.registry.resolve(test_model or self._challenger())
        if baseline.version == test.version:
            raise InvalidInput(
                f"baseline_model and test_model are both {test.version!r}.",
                hint="Name two different versions; see list_models.",
            )
        if baseline.version != self.champion():
            self.require_gate(baseline, force, reason)
        forced = self.require_gate(test, force, reason)
        for model in (baseline, test):
            self.registry.verify(model.version)
        for model in (baseline, test):
            self.require_index(model)
            self.encoders.check(model.version)
        trial = self._start(
            baseline.version,
            test.version,
            split=self.settings.ab_test_traffic_split if traffic_split is None else traffic_split,
            duration_hours=self.settings.ab_test_duration_hours if duration_hours is None else duration_hours,
            metrics=METRICS if metrics is None else tuple(metrics),
            mode=mode,
            gate=test.gate,
            force_reason=forced,
            alpha=self.settings.ab_test_significance_level,
        )
        return AbTestStarted(
            test_id=trial.test_id,
            status="active",
            start_time=to_iso(trial.started_at),
            estimated_end_time=to_iso(trial.ends_at),
            minimum_detectable_effect=trial.minimum_detectable_effect,
            warnings=list(trial.warnings),
        )

    def ab_results(self, test_id: str = "") -> AbResults:
        """Where a test stands now; may be read after every rating without inflating its error rates."""
        answer = _result(self.ab_report.results(test_id))
        self._log_end_of_trial(answer)
        return answer

    def watch_test(self) -> None:
        """Look at tests unasked, so that harm, a win or a planned end is acted on, and every end told."""
        self._watch_ramp()
        self.ab_report.monitor()
        # Also ends decided elsewhere: by the circuit breaker, or by a process that died before it told.
        for test_id in untold(self.db.connection):
            self._log_end_of_trial(_result(self.ab_report.results(test_id)))

    def stop_ab_test(self, test_id: str, reason: str) -> AbResults:
        """End a test early; the baseline serves all queries again."""
        if not reason.strip():
            raise InvalidInput(
                "reason is empty.", hint="Say in a few words why the test ends; it is kept with the test."
            )
        self.trials.stop(test_id, reason)
        return self.ab_results(test_id)

    def set_ab_split(self, test_id: str, traffic_split: float) -> AbResults:
        """Change the share of new units that get the test model; those already seen keep their variant."""
        with self.db.transaction():
            self._log_trial(self.trials.set_split(test_id, traffic_split), {})
        return self.ab_results(test_id)

    def plot_ab_results(self, test_id: str = "") -> Path:
        """Write the effect and its always-valid band over time as SVG; returns the file."""
        identifier = self._trial_id(test_id)
        target = self.workspace.plots / f"{identifier}.svg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            effect_svg(self.trials.get(identifier), self.ab_report.evidence(identifier)), encoding="utf-8"
        )
        return target

    def report_ab_test(self, test_id: str = "") -> Path:
        """Write the test on one page of Markdown; returns the file."""
        identifier = self._trial_id(test_id)
        target = self.workspace.reports / f"{identifier}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.ab_report.document(identifier), encoding="utf-8")
        return target

    def replay_ab_test(self, test_id: str = "") -> Replay:
        """Answer the rated queries again with both versions and keep the comparison beside the test; not causal."""
        trial = self.trials.get(self._trial_id(test_id))
        for version in (trial.baseline_version, trial.test_version):
            self.encoders.get(version, wait_s=_REPLAY_WARM_UP_S)
        compared = replay(
            rated_queries(self.db.connection),
            trial.baseline_version,
            trial.test_version,
            self.searcher.search,
        )
        keep_replay(self.db.connection, trial.test_id, compared, utc_now())
        return compared

    def require_gate(self, model: ModelVersion, force: bool, reason: str) -> str:
        """Refuse a version the gate blocked unless forced with a reason.

        Args:
            model: the version to test or promote.
            force: the caller insists.
            reason: why; kept with the test or the promotion.

        Returns:
            The reason when the gate was overridden, else "".

        Raises:
            GateBlocked: blocked and not forced.
            InvalidInput: forced without a reason.
        """
        if model.kind == "base" or model.gate is None or model.gate.get("verdict") != "block":
            return ""
        if not force:
            raise GateBlocked(
                f"{model.version} was blocked by the gate: {'; '.join(model.gate.get('reasons', []))}",
                hint="Collect more ratings and train again, or pass force=true with a reason.",
            )
        if not reason.strip():
            raise InvalidInput(
                "force=true needs a reason.", hint="Say why the gate's verdict is overridden; it is recorded."
            )
        return reason

    def has_index(self, version: str) -> bool:
        """True when a version can answer searches: its collection is complete and its encoder exported."""
        return self.index.is_intact(version) and self.encoders.is_exported(version)

    def require_index(self, model: ModelVersion) -> None:
        """Raise NotReady, starting the missing index job, unless the version can answer searches."""
        if self.has_index(model.version):
            return
        state = self.index.state(model.version)
        job = self.submit_once("index", {"version": model.version})
        lack = (
            f"The index of {model.version} lacks {state.to_encode} of {state.documents} documents; "
            f"job {job.job_id} adds them{about(state.estimate_s)}."
        )
        if state.state == "gone":
            lack = (
                f"The vectors of {model.version} are gone from the store; job {job.job_id} makes those of "
                f"{state.documents} documents anew{about(state.estimate_s)}."
            )
        elif not state.to_encode and not self.encoders.is_exported(model.version):
            lack = (
                f"The serving encoder of {model.version} is missing or damaged; job {job.job_id} exports it."
            )
        raise NotReady(
            lack,
            hint=f"Call job_status with job_id={job.job_id!r}, wait_s=30 until completed, then repeat this call.",
        )

    def require_still_indexed(self, version: str) -> None:
        """Called in the transaction that lets a version answer: raise Conflict when its index fell behind since."""
        if not self.index.is_ready(version):
            raise Conflict(
                f"Documents changed while {version} was being checked, and its index lacks them.",
                hint="Repeat the call.",
            )

    def _trial_id(self, test_id: str) -> str:
        return self.trials.get(test_id).test_id if test_id else self.trials.latest().test_id

    def _challenger(self) -> str:
        version = self.registry.alias("challenger")
        if version is None:
            raise InvalidInput(
                "test_model is empty and there is no challenger.",
                hint="Call start_finetune first, or name a version from list_models.",
            )
        return version

    def _start(self, baseline: str, test: str, **plan: Any) -> Trial:
        with self.db.transaction():
            self.require_still_indexed(baseline)
            self.require_still_indexed(test)
            trial = self.trials.start(baseline, test, salt=self._salt(), **plan)
            self._log_trial(trial, {})
        return trial

    def _salt(self) -> str:
        # A fixed salt replaces the test's id in the hash, so that a replay assigns the same again; the number of
        # the test keeps it apart from the other tests of the workspace.
        salt, earlier = self.settings.ragtune_ab_salt, len(self.trials.list())
        return f"{salt}/{earlier}" if salt and earlier else salt

    def _watch_ramp(self) -> None:
        due = self.ramp.due()
        if due is None:
            return
        try:
            if due.outcome is RampOutcome.ROLL_BACK:
                # As for a roll-back by hand; before the transaction, since it may take seconds.
                baseline = self.registry.verify(due.trial.baseline_version)
                self.require_index(baseline)
                self.encoders.check(baseline.version)
            with self.db.transaction():
                self._conclude_ramp(due.outcome)
        except (IntegrityError, ServiceUnavailable, NotReady, Conflict) as error:
            # A version that cannot answer must not serve; the ramp goes on, and the next look tries again.
            self._log_blocked(f"the roll-back is blocked: {error.message}")

    def _conclude_ramp(self, outcome: RampOutcome) -> None:
        end = self.ramp.check(outcome)
        if end is None:
            return
        trial, why = end.trial, "; ".join(end.reasons)
        if outcome is RampOutcome.ROLL_BACK:
            self.require_still_indexed(trial.baseline_version)
            self.registry.set_alias(
                "champion", trial.baseline_version, actor="ramp", reason=why, action="rollback"
            )
            told = f"Rolled back by itself: {trial.test_version} -> {trial.baseline_version}"
        else:
            told = f"Ramp complete: all searches use {trial.test_version}"
        self.outbox.put_decision(
            summary=told,
            rationale=why,
            tags=("ragtune", "model", str(end.outcome)),
            link_to=("custom_data", f"ABTests:{trial.test_id}"),
            dedupe_key=f"{end.outcome}:{trial.test_id}",
        )
        self._log_trial(trial, {"ramp_reasons": list(end.reasons)})

    def _log_blocked(self, why: str) -> None:
        with self.db.transaction():
            trial = self.ramp.block(why)
            if trial is not None:
                self._log_trial(trial, {"ramp_reasons": [why]})

    def _log_end_of_trial(self, answer: AbResults) -> None:
        # Only what is new: people read the results of an ended test as often as they like.
        mark = sha256_text(answer.model_dump_json())
        if answer.status == "active" or told_mark(self.db.connection, answer.test_id) == mark:
            return
        self.report_ab_test(answer.test_id)
        with self.db.transaction() as conn:
            self._log_trial(self.trials.get(answer.test_id), answer.model_dump(mode="json"))
            mark_told(conn, answer.test_id, mark)

    def _log_trial(self, trial: Trial, outcome: dict[str, object]) -> None:
        # Every write replaces the row, so what was decided is said again in each.
        decision = final_decision(self.db.connection, trial.test_id)
        decided = (
            {"recommendation": str(decision.recommendation), "reasons": list(decision.reasons)}
            if decision
            else {}
        )
        self.outbox.put_custom_data("ABTests", trial.test_id, {**summary(trial), **decided, **outcome})


def _result(reading: Reading) -> AbResults:
    effect = reading.effect
    return AbResults(
        test_id=reading.test_id,
        status=reading.status,
        mode=reading.mode,
        baseline_model=reading.baseline_version,
        test_model=reading.test_version,
        baseline_metrics=VariantMetrics(**_short(reading.baseline_metrics)),
        test_metrics=VariantMetrics(**_short(reading.test_metrics)),
        statistical_significance=reading.statistical_significance,
        p_value=_short(reading.p_value),
        p_value_valid=reading.p_value_valid,
        p_anytime=_short(reading.p_anytime),
        effect={name: _short(getattr(effect, name)) for name in effect.__slots__},
        srm=_short({name: reading.srm[name] for name in ("p", "alarm")}),
        guardrails=dict(reading.guardrails),
        health={**_rates(reading), **reading.tallies},
        recommendation=cast(Recommendation, reading.recommendation),
        reasons=[*reading.reasons, *reading.warnings],
        replay=_short(reading.replay),
        needed=dict(reading.need),
        next_step=reading.next_step,
    )


def _rates(reading: Reading) -> dict[str, Any]:
    """The rates an assistant should see: that of fallbacks only where there were any."""
    names = ["feedback_rate", *(["fallback_rate"] if any(reading.health["fallback_rate"]) else [])]
    return {name: _short(reading.health[name]) for name in names}


def about(seconds: float | None) -> str:
    """How long encoding will take, as the end of a clause; nothing where that is not known."""
    return "" if seconds is None else f", about {max(1, round(seconds))} s of encoding"


def _short(value: Any) -> Any:
    """Floats to 3 significant digits, also inside mappings and pairs: a report is read, not computed with."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, Mapping):
        return {name: _short(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return [_short(entry) for entry in value]
    return value
