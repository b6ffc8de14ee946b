"""What the evidence says: comparisons, guardrails, health and what is still needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ragtune_mcp.core.experiment.counts import ArmTraffic
from ragtune_mcp.core.experiment.decision import MIN_RATED_PER_ARM, Guard
from ragtune_mcp.core.experiment.eprocess import HARM_E_VALUE, e_value
from ragtune_mcp.core.experiment.evidence import Evidence, MetricEvidence
from ragtune_mcp.core.experiment.metrics import CREDIT, METRICS, Metric
from ragtune_mcp.core.experiment.statistics import (
    Comparison,
    Moments,
    fisher_exact,
    hedges_g,
    holm,
    non_inferiority_bound,
    one_sample,
    srm_chi_square_p,
    stratified,
    welch,
)
from ragtune_mcp.core.experiment.traffic import units_needed
from ragtune_mcp.core.experiment.trials import Trial

LATENCY_RATIO = 1.5
_LATENCY_MIN_SEARCHES = 100
_RATE_ALARM = 0.01
_NOVELTY_ALARM = 0.05

Pair = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything the report shows and the decision rests on.

    Attributes:
        metric: what the effect is measured in: the primary metric, or the credit when interleaved.
        rated: rated units of (baseline, test); interleaved: credited queries, twice.
        feedback_rate_p: of the difference between the arms' feedback rates.
        need: units still missing in each arm for 80 % power at the metric's reference effect.
    """

    metric: Metric
    comparison: Comparison
    p_anytime: float
    interval_anytime: tuple[float, float] | None
    hedges_g: float | None
    rated: tuple[int, int]
    is_harmed: bool
    guardrails: Mapping[str, Guard]
    secondary: Mapping[str, float]
    arm_metrics: Mapping[str, Mapping[str, float | int | None]]
    health: Mapping[str, Pair]
    srm_e_value: float
    srm_p: float
    mixed_share: float
    feedback_rate_p: float
    warnings: tuple[str, ...]
    need: Mapping[str, int]


def findings_of(trial: Trial, evidence: Evidence) -> Findings:
    """Summarise the evidence; pure."""
    is_interleaved = trial.mode == "interleave"
    main = evidence.metrics[trial.metrics[0]]
    baseline, test = (joint.raw for joint in main.totals())
    credits = evidence.credit.credits
    comparison = one_sample(credits) if is_interleaved else _compare(main)
    metric = CREDIT if is_interleaved else main.metric
    rated = (credits.n, credits.n) if is_interleaved else (baseline.n, test.n)
    return Findings(
        metric=metric,
        comparison=comparison,
        p_anytime=evidence.credit.mixture.p_anytime if is_interleaved else main.process.p_anytime,
        interval_anytime=_interval_anytime(evidence),
        hedges_g=None if is_interleaved else hedges_g(test, baseline),
        rated=rated,
        is_harmed=(
            evidence.credit.sup_harm >= math.log(HARM_E_VALUE) if is_interleaved else main.process.is_harmed
        ),
        guardrails=_guardrails(trial, evidence),
        secondary=_secondary(trial, evidence),
        arm_metrics={
            name: _arm_metrics(evidence, name, index) for index, name in enumerate(("baseline", "test"))
        },
        health=_health(evidence),
        srm_e_value=e_value(max((ratio.sup for ratio in evidence.ratios.values()), default=0.0)),
        srm_p=_srm_p(evidence),
        mixed_share=evidence.mixed_units / max(1, sum(a.units for a in evidence.arms.values())),
        feedback_rate_p=_feedback_rate_p(evidence),
        warnings=tuple(_warnings(trial, evidence, comparison)),
        need=_need(trial, metric, credits if is_interleaved else baseline.plus(test), rated),
    )


def remaining_text(trial: Trial, found: Findings, now: datetime) -> str:
    """What a running test still waits for."""
    hours = max(0.0, (trial.ends_at - now).total_seconds() / 3600.0)
    need = found.need
    if trial.mode == "interleave":
        ratings = f"{need['baseline']} more rated queries"
    else:
        ratings = f"{need['baseline']} baseline and {need['test']} test ratings more"
    return f"{hours:.1f} h left; {ratings} for 80 % power at {found.metric.reference_effect:g}"


def _interval_anytime(evidence: Evidence) -> tuple[float, float] | None:
    main = evidence.metrics[evidence.primary]
    candidates = evidence.credit.candidates if evidence.is_interleaved else main.candidates
    return (candidates.low, candidates.high) if candidates else None


def _compare(evidence: MetricEvidence) -> Comparison:
    """Fixed-horizon comparison over the phases, adjusted for the units' ratings before the test."""
    baseline, test = evidence.totals()
    slope = baseline.plus(test).slope
    return stratified([(t.adjusted(slope), b.adjusted(slope)) for b, t in evidence.sums.values()])


def _guardrails(trial: Trial, evidence: Evidence) -> dict[str, Guard]:
    guards = {}
    if trial.mode == "split":
        guards = {name: _metric_guard(evidence.metrics[name]) for name in trial.metrics[1:]}
    baseline, test = evidence.arms["baseline"], evidence.arms["test"]
    guards["latency_p95"] = Guard.OK if trial.mode == "interleave" else _latency_guard(baseline, test)
    return guards


def _metric_guard(evidence: MetricEvidence) -> Guard:
    baseline, test = evidence.totals()
    if evidence.process.is_harmed:
        return Guard.HARMED
    if min(baseline.n, test.n) < MIN_RATED_PER_ARM:
        return Guard.NO_DATA
    bound = non_inferiority_bound(_compare(evidence))
    return Guard.OK if bound is not None and bound > -evidence.metric.margin else Guard.UNCLEAR


def _latency_guard(baseline: ArmTraffic, test: ArmTraffic) -> Guard:
    """`FAILED` when even the favourable ends of both 95th percentiles' intervals differ by more than half."""
    if min(baseline.searches, test.searches) < _LATENCY_MIN_SEARCHES:
        return Guard.NO_DATA
    low, _ = _percentile_interval(test, 0.95)
    _, high = _percentile_interval(baseline, 0.95)
    return Guard.FAILED if low > LATENCY_RATIO * high else Guard.OK


def _percentile_interval(traffic: ArmTraffic, share: float) -> tuple[float, float]:
    """Distribution-free 95 % interval of a quantile: order statistics at binomial ranks (normal limit)."""
    n = traffic.searches
    half = 1.96 * math.sqrt(n * share * (1.0 - share))
    low, high = max(1, math.floor(n * share - half)), min(n, math.ceil(n * share + half) + 1)
    return traffic.latency_ms(low), traffic.latency_ms(high)


def _secondary(trial: Trial, evidence: Evidence) -> dict[str, float]:
    if trial.mode == "interleave":
        return {}
    p_values = {
        name: p for name in trial.metrics[1:] if (p := _compare(evidence.metrics[name]).p) is not None
    }
    return holm(p_values)


def _arm_metrics(evidence: Evidence, name: str, index: int) -> dict[str, float | int | None]:
    traffic = evidence.arms[name]
    means: dict[str, float | int | None] = {}
    for metric in METRICS:
        moments = evidence.metrics[metric].totals()[index].raw
        means[f"avg_{metric}"] = moments.mean if moments.n else None
    means["n_exposed"] = traffic.units
    means["n_rated"] = traffic.rated_units
    return means


def _health(evidence: Evidence) -> dict[str, Pair]:
    def both(value: Callable[[ArmTraffic], float], whole: Callable[[ArmTraffic], int]) -> Pair:
        baseline, test = evidence.arms["baseline"], evidence.arms["test"]
        return value(baseline) if whole(baseline) else None, value(test) if whole(test) else None

    def units(traffic: ArmTraffic) -> int:
        return traffic.units

    def searches(traffic: ArmTraffic) -> int:
        return traffic.searches

    return {
        "feedback_rate": both(lambda a: a.rated_units / a.units, units),
        "positives_per_exposure": both(lambda a: a.positives / a.units, units),
        "fallback_rate": both(lambda a: a.fallbacks / a.searches, searches),
        "empty_rate": both(lambda a: a.empty / a.searches, searches),
        "latency_p50_ms": both(lambda a: a.latency_ms(math.ceil(0.5 * a.searches)), searches),
        "latency_p95_ms": both(lambda a: a.latency_ms(math.ceil(0.95 * a.searches)), searches),
    }


def _srm_p(evidence: Evidence) -> float:
    """Smallest chi-square p over the phases, for show."""
    ratios = evidence.ratios.values()
    return min((srm_chi_square_p(r.test, r.baseline, r.split) for r in ratios), default=1.0)


def _feedback_rate_p(evidence: Evidence) -> float:
    """Fisher p of the difference between the arms' feedback rates; 1 for interleaved lists, which share them."""
    baseline, test = evidence.arms["baseline"], evidence.arms["test"]
    return fisher_exact(test.rated_units, test.units, baseline.rated_units, baseline.units)


def _warnings(trial: Trial, evidence: Evidence, comparison: Comparison) -> list[str]:
    if trial.mode == "interleave":
        return []
    baseline, test = evidence.arms["baseline"], evidence.arms["test"]
    warnings = []
    rate_p = _feedback_rate_p(evidence)
    if rate_p < _RATE_ALARM:
        warnings.append(
            f"feedback rates differ between the arms (Fisher p {rate_p:.2g}): averages may mislead"
        )
    if comparison.p is not None and comparison.p < _NOVELTY_ALARM and baseline.units and test.units:
        gap = test.positives / test.units - baseline.positives / baseline.units
        if gap * (comparison.difference or 0.0) < 0:
            warnings.append(
                "positives per exposure and the average disagree in sign: read the averages with caution"
            )
    if not trial.is_running:
        novelty = _novelty(evidence.metrics[trial.metrics[0]])
        if novelty:
            warnings.append(novelty)
    return warnings


def _novelty(main: MetricEvidence) -> str:
    """Does the effect of the first half of the units differ from that of the second?"""
    half = sum(arm.n for arm in main.frozen) // 2
    point = next((p for p in reversed(main.points) if p.n <= half), None)
    if point is None:
        return ""
    late_baseline, late_test = main.frozen[0].minus(point.baseline), main.frozen[1].minus(point.test)
    first, second = welch(point.test, point.baseline), welch(late_test, late_baseline)
    if not first.se or not second.se or first.difference is None or second.difference is None:
        return ""
    z = (first.difference - second.difference) / math.hypot(first.se, second.se)
    p = math.erfc(abs(z) / math.sqrt(2.0))
    if p >= _NOVELTY_ALARM:
        return ""
    change = f"from {first.difference:+.2f} to {second.difference:+.2f}"
    return f"the effect changed {change} between the halves of the test (p {p:.2g})"


def _need(trial: Trial, metric: Metric, all_rated: Moments, rated: tuple[int, int]) -> dict[str, int]:
    sd = math.sqrt(all_rated.variance) if all_rated.n >= MIN_RATED_PER_ARM else 0.0
    sd = sd or metric.typical_sd
    if trial.mode == "interleave":
        total = units_needed(metric.reference_effect, sd, 0.5, trial.alpha)[0]
        wanted = (math.ceil(total / 2), math.ceil(total / 2))
    else:
        wanted = units_needed(metric.reference_effect, sd, trial.split, trial.alpha)
    return {"baseline": max(0, wanted[0] - rated[0]), "test": max(0, wanted[1] - rated[1])}
