"""The running statistics of one test: updated event by event, equal to a recomputation from the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ragtune_mcp.core.experiment.assignment import Variant
from ragtune_mcp.core.experiment.eprocess import CREDIT_BETS, ArmProcess, ConfidenceSequence, Mixture
from ragtune_mcp.core.experiment.interleaving import MIDPOINT_RATING, delta_dcg_credit
from ragtune_mcp.core.experiment.ledger import AnswerEvent, ExposureEvent
from ragtune_mcp.core.experiment.metrics import METRICS, QUALITY, Metric
from ragtune_mcp.core.experiment.statistics import EMPTY, SRM_PRIOR, Moments
from ragtune_mcp.core.experiment.units import (
    First,
    UnitChange,
    current_value,
    first_credited,
    first_value,
)

POSITIVE_RATING = 4.0
_LATENCY_RATIO = math.log(1.02)
_EVERY_POINT_UP_TO = 40
_POINT_GROWTH = 1.05
HARM_MIN_QUERIES = 20


@dataclass(slots=True)
class ArmTraffic:
    """Counts of one arm.

    Attributes:
        units: distinct units exposed.
        rated_units: of those, units with any feedback.
        positives: units whose answer rating stands at 4 or more.
        searches: answered searches.
        latencies: number of answers by bucket; a bucket is 2 % wide.
    """

    units: int = 0
    rated_units: int = 0
    positives: int = 0
    searches: int = 0
    fallbacks: int = 0
    empty: int = 0
    latencies: dict[int, int] = field(default_factory=dict)

    def add_answer(self, event: AnswerEvent) -> None:
        """Count one answered search."""
        self.searches += 1
        self.fallbacks += event.failed
        self.empty += event.is_empty
        bucket = round(math.log(max(event.latency_ms, 0.01)) / _LATENCY_RATIO)
        self.latencies[bucket] = self.latencies.get(bucket, 0) + 1

    def latency_ms(self, rank: int) -> float:
        """The `rank`-th smallest latency, from 1, within 1 %."""
        seen = 0
        for bucket in sorted(self.latencies):
            seen += self.latencies[bucket]
            if seen >= rank:
                return math.exp(bucket * _LATENCY_RATIO)
        return math.nan


@dataclass(slots=True)
class Ratio:
    """Sample ratio of one phase: counts, the log e-value now and its largest value so far."""

    split: float
    baseline: int = 0
    test: int = 0
    log_e: float = 0.0
    sup: float = 0.0

    def add(self, *, in_test: bool) -> None:
        """One more unit; the e-value grows by the ratio of predictive to planned probability."""
        weight = SRM_PRIOR + self.baseline + self.test
        share = (SRM_PRIOR * self.split + self.test) / weight
        if in_test:
            self.test += 1
            self.log_e += math.log(share / self.split)
        else:
            self.baseline += 1
            self.log_e += math.log((1.0 - share) / (1.0 - self.split))
        self.sup = max(self.sup, self.log_e)


@dataclass(slots=True)
class MetricEvidence:
    """One metric: present unit values by phase (fixed horizon) and frozen ones in order (always valid).

    Attributes:
        sums: phase -> [baseline, test] moments of the units' present values.
        frozen: [baseline, test] moments of the frozen values.
        sequence: confidence sequence, kept for the primary metric.
        points: of the primary metric: [n, baseline moments, test moments, low, high] at growing n.
    """

    metric: Metric
    process: ArmProcess
    sequence: ConfidenceSequence | None
    sums: dict[int, list[Moments]] = field(default_factory=dict)
    frozen: list[Moments] = field(default_factory=lambda: [EMPTY, EMPTY])
    points: list[list[float]] = field(default_factory=list)

    @classmethod
    def empty(cls, metric: Metric, *, is_primary: bool) -> Self:
        """Before the first rating."""
        sequence = ConfidenceSequence(metric.lo, metric.hi, metric.grid_step) if is_primary else None
        return cls(metric, ArmProcess(metric.lo, metric.hi), sequence)

    def replace(self, phase: int, in_test: bool, old: float | None, new: float | None) -> None:
        """Exchange a unit's present value."""
        arms = self.sums.setdefault(phase, [EMPTY, EMPTY])
        n, total, squares = arms[in_test]
        if old is not None:
            n, total, squares = n - 1, total - old, squares - old * old
        if new is not None:
            n, total, squares = n + 1, total + new, squares + new * new
        arms[in_test] = Moments(n, total, squares)

    def append(self, firsts: Sequence[tuple[First, UnitChange]]) -> None:
        """Add frozen values in order of arrival."""
        values = np.array([first.value for first, _ in firsts])
        in_test = np.array([float(change.in_test) for _, change in firsts])
        propensity = np.array([change.propensity for _, change in firsts])
        start = 0
        while start < len(values):
            n = self.frozen[0].n + self.frozen[1].n
            stop = min(len(values), start + _next_point(n) - n) if self.sequence else len(values)
            part = slice(start, stop)
            self.process.extend(values[part], in_test[part], propensity[part])
            for arm in (0, 1):
                chosen = values[part][in_test[part] == arm]
                self.frozen[arm] = self.frozen[arm].plus(
                    Moments(len(chosen), float(chosen.sum()), float((chosen * chosen).sum()))
                )
            if self.sequence:
                self.sequence.extend(values[part], in_test[part], propensity[part])
                self._add_point(n + stop - start, is_due=n + stop - start == _next_point(n))
            start = stop

    def _add_point(self, n: int, *, is_due: bool) -> None:
        if is_due and self.sequence:
            self.points.append([n, *self.frozen[0], *self.frozen[1], self.sequence.low, self.sequence.high])

    def totals(self) -> tuple[Moments, Moments]:
        """(baseline, test) moments over all phases."""
        baseline, test = EMPTY, EMPTY
        for b, t in self.sums.values():
            baseline, test = baseline.plus(b), test.plus(t)
        return baseline, test

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "process": self.process.to_state(),
            "sequence": self.sequence.to_state() if self.sequence else None,
            "sums": {str(phase): [list(arm) for arm in arms] for phase, arms in self.sums.items()},
            "frozen": [list(arm) for arm in self.frozen],
            "points": self.points,
        }

    @classmethod
    def from_state(cls, metric: Metric, state: dict[str, Any]) -> Self:
        """The inverse of `to_state`."""
        return cls(
            metric,
            ArmProcess.from_state(state["process"]),
            ConfidenceSequence.from_state(state["sequence"]) if state["sequence"] else None,
            {int(phase): [Moments(*arm) for arm in arms] for phase, arms in state["sums"].items()},
            [Moments(*arm) for arm in state["frozen"]],
            state["points"],
        )


def _next_point(n: int) -> int:
    """The size after n at which the trajectory gets a point: every unit at first, then every 5 %."""
    if n < _EVERY_POINT_UP_TO:
        return n + 1
    point = float(_EVERY_POINT_UP_TO)
    while math.ceil(point) <= n:
        point *= _POINT_GROWTH
    return math.ceil(point)


@dataclass(slots=True)
class CreditEvidence:
    """Interleaving: credits in order of arrival, and the mean document rating they are measured against."""

    mixture: Mixture = field(default_factory=lambda: Mixture(CREDIT_BETS))
    credits: Moments = EMPTY
    sup_harm: float = 0.0
    n_ratings: int = 0
    rating_total: float = 0.0

    def append(self, changes: Iterable[UnitChange]) -> None:
        """Credit the units whose documents were rated for the first time, in order of arrival."""
        fresh = [
            query
            for change in changes
            if (query := first_credited(change))
            and not any(o.kind in ("document", "helpful") for o in change.before)
        ]
        for query in sorted(fresh):
            no_mean = query.are_marks or not self.n_ratings
            expected = MIDPOINT_RATING if no_mean else self.rating_total / self.n_ratings
            credit = delta_dcg_credit(query.rated, expected)
            path = self.mixture.extend(np.array([credit]))
            self.credits = self.credits.plus(Moments(1, credit, credit * credit))
            if not query.are_marks:
                self.n_ratings += len(query.rated)
                self.rating_total += sum(rating for rating, _ in query.rated)
            if self.credits.n >= HARM_MIN_QUERIES:
                self.sup_harm = max(self.sup_harm, float(path[-1, 1]))

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "wealth": self.mixture.log_wealth.tolist(),
            "sup": [self.mixture.sup, self.sup_harm],
            "credits": list(self.credits),
            "ratings": [self.n_ratings, self.rating_total],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `to_state`."""
        mixture = Mixture(CREDIT_BETS, np.array(state["wealth"]), state["sup"][0])
        return cls(mixture, Moments(*state["credits"]), state["sup"][1], *state["ratings"])


@dataclass(slots=True)
class Evidence:
    """Everything counted about one test.

    Attributes:
        seqs: last exposure, answer and outcome used.
        arms: traffic by arm; an interleaved search counts in both.
        mixed_units: searches whose unit had the other arm before.
    """

    primary: str
    is_interleaved: bool
    seqs: list[int]
    arms: dict[str, ArmTraffic]
    ratios: dict[int, Ratio]
    metrics: dict[str, MetricEvidence]
    credit: CreditEvidence
    mixed_units: int = 0

    @classmethod
    def empty(cls, primary: str, *, is_interleaved: bool) -> Self:
        """Before the first event."""
        metrics = {
            name: MetricEvidence.empty(metric, is_primary=name == primary and not is_interleaved)
            for name, metric in METRICS.items()
        }
        arms = {str(arm): ArmTraffic() for arm in (Variant.BASELINE, Variant.TEST)}
        return cls(primary, is_interleaved, [0, 0, 0], arms, {}, metrics, CreditEvidence())

    def add_exposures(self, events: Iterable[ExposureEvent]) -> None:
        """Count exposures in order."""
        for event in events:
            self.seqs[0] = event.seq
            self.mixed_units += event.is_mixed
            if not event.is_first:
                continue
            for arm in self._arms_of(event.arm):
                arm.units += 1
            if not self.is_interleaved:
                ratio = self.ratios.setdefault(event.phase, Ratio(event.propensity))
                ratio.add(in_test=event.arm == Variant.TEST)

    def add_answers(self, events: Iterable[AnswerEvent]) -> None:
        """Count answers in order."""
        for event in events:
            self.seqs[1] = event.seq
            for arm in self._arms_of(event.arm):
                arm.add_answer(event)

    def add_ratings(self, changes: Sequence[UnitChange], upto: int) -> None:
        """Take in every unit with opinions up to sequence number `upto`."""
        self.seqs[2] = upto
        for change in changes:
            self._count_unit(change)
        if self.is_interleaved:
            self.credit.append(changes)
            return
        for name, evidence in self.metrics.items():
            firsts = []
            for change in changes:
                old, new = (
                    current_value(METRICS[name], change.before),
                    current_value(METRICS[name], change.after),
                )
                if new != old:
                    evidence.replace(change.phase, change.in_test, old, new)
                if old is None and new is not None:
                    first = first_value(METRICS[name], change)
                    if first is not None:
                        firsts.append((first, change))
            evidence.append(sorted(firsts, key=lambda entry: entry[0].seq))

    def _arms_of(self, arm: str) -> list[ArmTraffic]:
        return list(self.arms.values()) if arm == Variant.BOTH else [self.arms[arm]]

    def _count_unit(self, change: UnitChange) -> None:
        arm = Variant.TEST if change.in_test else Variant.BASELINE
        was, now = current_value(QUALITY, change.before), current_value(QUALITY, change.after)
        for traffic in self._arms_of(Variant.BOTH if self.is_interleaved else arm):
            traffic.rated_units += not change.before
            traffic.positives += int((now or 0.0) >= POSITIVE_RATING) - int((was or 0.0) >= POSITIVE_RATING)

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "seqs": self.seqs,
            "mixed": self.mixed_units,
            "arms": {
                name: [
                    a.units,
                    a.rated_units,
                    a.positives,
                    a.searches,
                    a.fallbacks,
                    a.empty,
                    sorted(a.latencies.items()),
                ]
                for name, a in self.arms.items()
            },
            "ratios": {
                str(phase): [r.split, r.baseline, r.test, r.log_e, r.sup] for phase, r in self.ratios.items()
            },
            "metrics": {name: evidence.to_state() for name, evidence in self.metrics.items()},
            "credit": self.credit.to_state(),
        }

    @classmethod
    def from_state(cls, primary: str, state: dict[str, Any], *, is_interleaved: bool) -> Self:
        """The inverse of `to_state`."""
        return cls(
            primary,
            is_interleaved,
            list(state["seqs"]),
            {name: ArmTraffic(*counts[:6], dict(counts[6])) for name, counts in state["arms"].items()},
            {int(phase): Ratio(*values) for phase, values in state["ratios"].items()},
            {name: MetricEvidence.from_state(METRICS[name], s) for name, s in state["metrics"].items()},
            CreditEvidence.from_state(state["credit"]),
            state["mixed"],
        )
