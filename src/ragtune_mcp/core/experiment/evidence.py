"""The running statistics of one test: updated event by event, equal to a recomputation from the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from ragtune_mcp.core.experiment.assignment import Variant
from ragtune_mcp.core.experiment.confidence import (
    Candidates,
    add_credits,
    add_units,
    arm_candidates,
    credit_candidates,
)
from ragtune_mcp.core.experiment.counts import ArmTraffic, Ratio
from ragtune_mcp.core.experiment.eprocess import ARM_BETS, CREDIT_BETS, ArmProcess, Mixture, Predictor, Units
from ragtune_mcp.core.experiment.interleaving import MIDPOINT_RATING, delta_dcg_credit
from ragtune_mcp.core.experiment.ledger import AnswerEvent, ExposureEvent
from ragtune_mcp.core.experiment.metrics import METRICS, QUALITY, Metric
from ragtune_mcp.core.experiment.statistics import EMPTY, JointMoments, Moments
from ragtune_mcp.core.experiment.units import (
    ON_DOCUMENTS,
    First,
    UnitChange,
    current_value,
    first_credited,
    first_value,
)

# A checkpoint of another format is not read: the log rebuilds it.
STATE_FORMAT = 2
POSITIVE_RATING = 4.0
HARM_MIN_QUERIES = 20
_EVERY_POINT_UP_TO = 40
_POINT_GROWTH = 1.05


class Point(NamedTuple):
    """The state after n units: moments of both arms and the interval; a credit is compared with n zeros."""

    n: int
    baseline: Moments
    test: Moments
    low: float
    high: float

    @property
    def effect(self) -> float | None:
        """mean(test) - mean(baseline), None while an arm is empty."""
        return self.test.mean - self.baseline.mean if self.test.n and self.baseline.n else None

    def to_state(self) -> list[Any]:
        """Plain numbers, exact under JSON."""
        return [self.n, list(self.baseline), list(self.test), self.low, self.high]

    @classmethod
    def from_state(cls, state: list[Any]) -> Self:
        """The inverse of `to_state`."""
        return cls(state[0], Moments(*state[1]), Moments(*state[2]), state[3], state[4])


def next_point(n: int) -> int:
    """The size after n at which the trajectory gets a point: every unit at first, then every 5 %."""
    if n < _EVERY_POINT_UP_TO:
        return n + 1
    point = float(_EVERY_POINT_UP_TO)
    while math.ceil(point) <= n:
        point *= _POINT_GROWTH
    return math.ceil(point)


@dataclass(slots=True)
class MetricEvidence:
    """One metric: present unit values by phase (fixed horizon) and frozen ones in order (always valid).

    Attributes:
        sums: phase -> [baseline, test] moments of the units' present values.
        frozen: [baseline, test] moments of the frozen values.
        candidates: differences not rejected at any time, kept for the primary metric.
        points: trajectory of the primary metric.
    """

    metric: Metric
    process: ArmProcess
    predictor: Predictor
    candidates: Candidates | None
    sums: dict[int, list[JointMoments]] = field(default_factory=dict)
    frozen: list[Moments] = field(default_factory=lambda: [EMPTY, EMPTY])
    points: list[Point] = field(default_factory=list)

    @classmethod
    def empty(cls, metric: Metric, *, is_primary: bool) -> Self:
        """Before the first rating."""
        candidates = arm_candidates(metric.lo, metric.hi, metric.grid_step) if is_primary else None
        return cls(metric, ArmProcess(), Predictor(), candidates)

    def replace(self, change: UnitChange, old: float | None, new: float | None) -> None:
        """Exchange a unit's present value."""
        arms = self.sums.setdefault(change.phase, [JointMoments(), JointMoments()])
        if old is not None:
            arms[change.in_test] = arms[change.in_test].add(old, change.covariate, -1)
        if new is not None:
            arms[change.in_test] = arms[change.in_test].add(new, change.covariate)

    def append(self, firsts: Sequence[tuple[First, UnitChange]]) -> None:
        """Add frozen values in order of arrival."""
        if not firsts:
            return
        values = [first.value for first, _ in firsts]
        arms = [float(change.in_test) for _, change in firsts]
        units = Units.of(
            values,
            arms,
            [change.propensity for _, change in firsts],
            [change.covariate for _, change in firsts],
            (self.metric.lo, self.metric.hi),
            self.predictor,
        )
        self.process.extend(units)
        start = 0
        while start < len(values):
            n = self.frozen[0].n + self.frozen[1].n
            stop = min(len(values), start + next_point(n) - n) if self.candidates else len(values)
            for arm in (0, 1):
                chosen = [v for v, a in zip(values[start:stop], arms[start:stop], strict=True) if a == arm]
                self.frozen[arm] = self.frozen[arm].plus(Moments.of(chosen))
            if self.candidates:
                add_units(self.candidates, units.part(start, stop), self.metric.hi - self.metric.lo)
                self._add_point(is_due=n + stop - start == next_point(n))
            start = stop

    def _add_point(self, *, is_due: bool) -> None:
        if is_due:
            self.points.append(self.present)

    @property
    def present(self) -> Point:
        """The state after the last unit; for a metric with an interval."""
        baseline, test = self.frozen
        low, high = (self.candidates.low, self.candidates.high) if self.candidates else (math.nan, math.nan)
        return Point(baseline.n + test.n, baseline, test, low, high)

    def totals(self) -> tuple[JointMoments, JointMoments]:
        """(baseline, test) moments over all phases."""
        baseline, test = JointMoments(), JointMoments()
        for b, t in self.sums.values():
            baseline, test = baseline.plus(b), test.plus(t)
        return baseline, test

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "process": self.process.to_state(),
            "predictor": self.predictor.to_state(),
            "candidates": self.candidates.to_state() if self.candidates else None,
            "sums": {str(phase): [list(arm) for arm in arms] for phase, arms in self.sums.items()},
            "frozen": [list(arm) for arm in self.frozen],
            "points": [point.to_state() for point in self.points],
        }

    @classmethod
    def from_state(cls, metric: Metric, state: dict[str, Any]) -> Self:
        """The inverse of `to_state`."""
        candidates, (n, *sums) = state["candidates"], state["predictor"]
        return cls(
            metric,
            ArmProcess.from_state(state["process"]),
            Predictor(int(n), *sums),
            Candidates.from_state(candidates, ARM_BETS) if candidates else None,
            {int(phase): [JointMoments(*arm) for arm in arms] for phase, arms in state["sums"].items()},
            [Moments(*arm) for arm in state["frozen"]],
            [Point.from_state(point) for point in state["points"]],
        )


@dataclass(slots=True)
class CreditEvidence:
    """Interleaving: credits in order of arrival, and the mean document rating they are measured against."""

    mixture: Mixture = field(default_factory=lambda: Mixture(CREDIT_BETS))
    candidates: Candidates = field(default_factory=credit_candidates)
    credits: Moments = EMPTY
    sup_harm: float = 0.0
    n_ratings: int = 0
    rating_total: float = 0.0
    points: list[Point] = field(default_factory=list)

    def append(self, changes: Iterable[UnitChange]) -> None:
        """Credit the units whose documents were rated for the first time, in order of arrival."""
        fresh = [
            query
            for change in changes
            if (query := first_credited(change)) and not any(o.kind in ON_DOCUMENTS for o in change.before)
        ]
        for query in sorted(fresh):
            no_mean = query.are_marks or not self.n_ratings
            expected = MIDPOINT_RATING if no_mean else self.rating_total / self.n_ratings
            self._add(delta_dcg_credit(query.rated, expected))
            if not query.are_marks:
                self.n_ratings += len(query.rated)
                self.rating_total += sum(rating for rating, _ in query.rated)

    def _add(self, credit: float) -> None:
        n = self.credits.n + 1
        is_point = next_point(n - 1) == n
        self.credits = self.credits.plus(Moments(1, credit, credit * credit))
        path = self.mixture.extend(np.array([credit]))
        if self.credits.n >= HARM_MIN_QUERIES:
            self.sup_harm = max(self.sup_harm, float(path[-1, 1]))
        add_credits(self.candidates, np.array([credit]))
        if is_point:
            self.points.append(self.present)

    @property
    def present(self) -> Point:
        """The state after the last credit."""
        n = self.credits.n
        return Point(n, Moments(n, 0.0, 0.0), self.credits, self.candidates.low, self.candidates.high)

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "wealth": self.mixture.log_wealth.tolist(),
            "sup": [self.mixture.sup, self.sup_harm],
            "candidates": self.candidates.to_state(),
            "credits": list(self.credits),
            "ratings": [self.n_ratings, self.rating_total],
            "points": [point.to_state() for point in self.points],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `to_state`."""
        return cls(
            Mixture(CREDIT_BETS, np.array(state["wealth"]), state["sup"][0]),
            Candidates.from_state(state["candidates"], CREDIT_BETS),
            Moments(*state["credits"]),
            state["sup"][1],
            state["ratings"][0],
            state["ratings"][1],
            [Point.from_state(point) for point in state["points"]],
        )


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

    @property
    def points(self) -> list[Point]:
        """The trajectory of the effect."""
        return self.credit.points if self.is_interleaved else self.metrics[self.primary].points

    @property
    def present(self) -> Point:
        """Where the trajectory stands after the last unit."""
        if self.is_interleaved:
            return self.credit.present
        return self.metrics[self.primary].present

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
                old = current_value(METRICS[name], change.before)
                new = current_value(METRICS[name], change.after)
                if new != old:
                    evidence.replace(change, old, new)
                if old is None and new is not None and (first := first_value(METRICS[name], change)):
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
            "format": STATE_FORMAT,
            "seqs": self.seqs,
            "mixed": self.mixed_units,
            "arms": {name: traffic.to_state() for name, traffic in self.arms.items()},
            "ratios": {str(phase): ratio.to_state() for phase, ratio in self.ratios.items()},
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
            {name: ArmTraffic.from_state(counts) for name, counts in state["arms"].items()},
            {int(phase): Ratio(*values) for phase, values in state["ratios"].items()},
            {name: MetricEvidence.from_state(METRICS[name], s) for name, s in state["metrics"].items()},
            CreditEvidence.from_state(state["credit"]),
            state["mixed"],
        )
