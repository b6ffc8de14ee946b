"""Evidence that stays valid when it is read after every rating.

A betting e-process on the randomised difference of two arms, its confidence sequence, and the same
mixture for values with mean 0 under the null (interleaving credit). Under the null the e-value is a
nonnegative martingale that starts at 1, so P(it ever reaches 1/a) <= a (Ville): however often it is read,
under drift, with any number of units.

Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting"; a mixture
over a fixed grid of bets instead of tuned ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ARM_BETS: Array = np.array([-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
CREDIT_BETS: Array = np.array([t / 10 for t in range(-9, 10) if t])
HARM_E_VALUE = 20.0
HARM_MIN_PER_ARM = 10
_SHRINK = 5.0
_MIN_FOR_SLOPE = 10
_LOG_2 = math.log(2.0)


def e_value(log_value: float) -> float:
    """exp, held at 1e300 so that overwhelming evidence stays a number."""
    return math.exp(min(log_value, 690.0))


def log_mean_exp(log_values: Array) -> Array:
    """Log of the mean of exponentials over the last axis."""
    top = log_values.max(axis=-1, keepdims=True)
    means: Array = np.log(np.exp(log_values - top).mean(axis=-1)) + top[..., 0]
    return means


@dataclass(slots=True)
class Mixture:
    """Wealth of a grid of constant bets on a sequence in [-1, 1] whose conditional mean is 0 under the null.

    Attributes:
        bets: symmetric grid, negatives first; the two-sided e-value averages all, a one-sided one its half.
        log_wealth: log of each bet's wealth.
        sup: largest log e-value (two-sided) so far, from 0 for the empty sequence.
    """

    bets: Array
    log_wealth: Array = field(default_factory=lambda: np.zeros(0))
    sup: float = 0.0

    def __post_init__(self) -> None:
        if not self.log_wealth.size:
            self.log_wealth = np.zeros(len(self.bets))

    def extend(self, steps: Array) -> Array:
        """Bet on further values.

        Args:
            steps: (n,) values in [-1, 1], in arrival order.

        Returns:
            (n, 3): log e-values after each value: two-sided, less, greater.
        """
        if not len(steps):
            return np.zeros((0, 3))
        half = len(self.bets) // 2
        wealth = self.log_wealth + np.cumsum(np.log1p(steps[:, None] * self.bets), axis=0)
        less, greater = log_mean_exp(wealth[:, :half]), log_mean_exp(wealth[:, half:])
        path = np.stack([np.logaddexp(less, greater) - _LOG_2, less, greater], axis=1)
        self.log_wealth = wealth[-1]
        self.sup = max(self.sup, float(path[:, 0].max()))
        return path

    @property
    def p_anytime(self) -> float:
        """Always-valid p-value: 1 over the largest e-value so far, at most 1."""
        return min(1.0, math.exp(-self.sup))


@dataclass(slots=True)
class Predictor:
    """Mean of the values before each one, which bets are made against; prior 0.5 with weight 2.

    With a covariate z the prediction moves along the regression of y on z over the earlier units only
    (CUPED-like), so it stays predictable. Sums are added one by one: any batching gives the same numbers.
    """

    n: int = 0
    y: float = 0.0
    z: float = 0.0
    zz: float = 0.0
    zy: float = 0.0

    def add(self, y: float, z: float) -> float:
        """Predict a value from those before it, then take it in.

        Args:
            y: scaled value in [0, 1].
            z: covariate known independently of the arm, roughly unit variance; 0 for none.

        Returns:
            The prediction in (0, 1).
        """
        m = (1.0 + self.y) / (self.n + 2.0)
        if self.n >= _MIN_FOR_SLOPE:
            sxx = self.zz - self.z**2 / self.n
            if sxx > 0.0:
                slope = (self.zy - self.z * self.y / self.n) / (sxx + _SHRINK)
                m = min(0.98, max(0.02, m + slope * (z - self.z / self.n)))
        self.n += 1
        self.y += y
        self.z += z
        self.zz += z * z
        self.zy += z * y
        return m

    def to_state(self) -> list[float]:
        """Plain numbers, exact under JSON."""
        return [self.n, self.y, self.z, self.zz, self.zy]


class Units(NamedTuple):
    """Units in arrival order, as columns of length n.

    Attributes:
        y: values scaled to [0, 1].
        m: prediction of each from those before it.
        w: 1.0 for the test arm, 0.0 for the baseline.
        p: logged probability of the test arm, in (0, 1).
    """

    y: Array
    m: Array
    w: Array
    p: Array

    @classmethod
    def of(
        cls,
        values: Sequence[float],
        in_test: Sequence[float],
        propensity: Sequence[float],
        covariate: Sequence[float],
        bounds: tuple[float, float],
        predictor: Predictor,
    ) -> Self:
        """Scale values within `bounds` and predict each; the predictor takes them in."""
        lo, hi = bounds
        y = [(value - lo) / (hi - lo) for value in values]
        m = [predictor.add(scaled, z) for scaled, z in zip(y, covariate, strict=True)]
        return cls(np.array(y), np.array(m), np.asarray(in_test, float), np.asarray(propensity, float))

    def part(self, start: int, stop: int) -> Self:
        """Units start..stop."""
        return type(self)(*(column[start:stop] for column in self))

    def steps(self, d0: Array | float) -> Array:
        """Scaled, centred product of assignment and outcome less a difference d0 (scaled), in [-1, 1].

        Args:
            d0: a number, or (g,) candidates.

        Returns:
            (n,), or (n, g).
        """
        y, m, w, p = self if isinstance(d0, float) else (column[:, None] for column in self)
        q = p * (1.0 - p)
        x = (w - p) * (y - m) - q * d0
        b = np.maximum(m, 1.0 - m) * np.maximum(p, 1.0 - p) + q * np.abs(d0)
        scaled: Array = x / b
        return scaled


@dataclass(slots=True)
class ArmProcess:
    """The e-process of one metric: do the arms differ, and is the test arm harmed?

    Attributes:
        n_arm: rated units of the baseline and the test arm.
        sup_harm: largest log e-value of "test is worse", once both arms had 10 units.
    """

    mixture: Mixture = field(default_factory=lambda: Mixture(ARM_BETS))
    n_arm: list[int] = field(default_factory=lambda: [0, 0])
    sup_harm: float = 0.0

    def extend(self, units: Units) -> Array:
        """Add units; returns (n, 3) log e-values after each: two-sided, less, greater."""
        path = self.mixture.extend(units.steps(0.0))
        if len(path):
            n_test = self.n_arm[1] + np.cumsum(units.w)
            n_base = self.n_arm[0] + np.cumsum(1.0 - units.w)
            less = path[np.minimum(n_test, n_base) >= HARM_MIN_PER_ARM, 1]
            if len(less):
                self.sup_harm = max(self.sup_harm, float(less.max()))
            self.n_arm = [int(n_base[-1]), int(n_test[-1])]
        return path

    @property
    def p_anytime(self) -> float:
        """Always-valid two-sided p-value."""
        return self.mixture.p_anytime

    @property
    def is_harmed(self) -> bool:
        """Whether the evidence that the test arm is worse ever reached 20 to 1 with 10 units in each arm."""
        return self.sup_harm >= math.log(HARM_E_VALUE)

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "wealth": self.mixture.log_wealth.tolist(),
            "sup": [self.mixture.sup, self.sup_harm],
            "n_arm": self.n_arm,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `to_state`."""
        sup, sup_harm = state["sup"]
        return cls(Mixture(ARM_BETS, np.array(state["wealth"]), sup), list(state["n_arm"]), sup_harm)
