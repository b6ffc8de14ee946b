"""Confidence sequences: intervals that cover at all times at once, however often they are read.

Every value on a grid is tested by its own e-process; one that was ever rejected stays out, so the interval
only narrows and the work falls as it does.

Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ragtune_mcp.core.experiment.eprocess import ARM_BETS, CREDIT_BETS, Array, Units, log_mean_exp

_CHUNK = 32


@dataclass(slots=True)
class Candidates:
    """The grid values not yet rejected, with the wealth of every bet against each.

    Attributes:
        values: (g,) candidates, ascending.
        log_wealth: (g, bets).
        low: smallest candidate, kept if all should ever be rejected.
        high: largest.
    """

    bets: Array
    alpha: float
    values: Array
    log_wealth: Array
    low: float
    high: float

    @classmethod
    def grid(cls, lo: float, hi: float, step: float, bets: Array, alpha: float = 0.05) -> Self:
        """All multiples of `step` in [lo, hi], none rejected."""
        values = np.arange(round(lo / step), round(hi / step) + 1, dtype=np.float64) * step
        return cls(bets, alpha, values, np.zeros((len(values), len(bets))), lo, hi)

    def extend(self, steps: Array) -> None:
        """Bet on (n, g) values in [-1, 1], one column a candidate, and drop the candidates that lose."""
        if not len(self.values):
            return
        wealth = self.log_wealth + np.cumsum(np.log1p(steps[:, :, None] * self.bets), axis=0)
        alive = log_mean_exp(wealth).max(axis=0) < -np.log(self.alpha)
        self.values, self.log_wealth = self.values[alive], wealth[-1, alive]
        if len(self.values):
            self.low, self.high = float(self.values[0]), float(self.values[-1])

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "alpha": self.alpha,
            "hull": [self.low, self.high],
            "values": self.values.tolist(),
            "wealth": self.log_wealth.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], bets: Array) -> Self:
        """The inverse of `to_state`."""
        values = np.array(state["values"], dtype=np.float64)
        wealth = np.array(state["wealth"], dtype=np.float64).reshape(len(values), len(bets))
        return cls(bets, state["alpha"], values, wealth, *state["hull"])


def arm_candidates(lo: float, hi: float, step: float) -> Candidates:
    """Candidates for mean(test) - mean(baseline) of a metric in [lo, hi]: the full range, in steps."""
    return Candidates.grid(lo - hi, hi - lo, step, ARM_BETS)


def add_units(candidates: Candidates, units: Units, width: float) -> None:
    """Test every candidate difference against units, in arrival order.

    Args:
        candidates: as `arm_candidates` made them.
        units: scaled by `width`.
        width: hi - lo of the metric.
    """
    for start in range(0, len(units.y), _CHUNK):
        candidates.extend(units.part(start, start + _CHUNK).steps(candidates.values / width))


def credit_candidates(step: float = 0.01) -> Candidates:
    """Candidates for the mean of interleaving credits in [-1, 1]."""
    return Candidates.grid(-1.0, 1.0, step, CREDIT_BETS)


def add_credits(candidates: Candidates, credits: Array) -> None:
    """Test every candidate mean against (n,) credits in [-1, 1], in arrival order."""
    for start in range(0, len(credits), _CHUNK):
        mu = candidates.values
        candidates.extend((credits[start : start + _CHUNK, None] - mu) / (1.0 + np.abs(mu)))
