"""Traffic of each arm and the ratio between them, counted event by event."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self

from ragtune_mcp.core.experiment.ledger import AnswerEvent
from ragtune_mcp.core.experiment.statistics import SRM_PRIOR

_LATENCY_RATIO = math.log(1.02)


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

    def to_state(self) -> list[Any]:
        """Plain numbers, exact under JSON."""
        counts = [self.units, self.rated_units, self.positives, self.searches, self.fallbacks, self.empty]
        return [*counts, sorted(self.latencies.items())]

    @classmethod
    def from_state(cls, state: list[Any]) -> Self:
        """The inverse of `to_state`."""
        units, rated_units, positives, searches, fallbacks, empty, latencies = state
        return cls(units, rated_units, positives, searches, fallbacks, empty, dict(latencies))

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

    def to_state(self) -> list[float]:
        """Plain numbers, exact under JSON."""
        return [self.split, self.baseline, self.test, self.log_e, self.sup]

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
