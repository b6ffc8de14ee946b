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
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ARM_BETS: Array = np.array([-0.6, -0.5, -0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
CREDIT_BETS: Array = np.array([t / 10 for t in range(-9, 10) if t])
HARM_E_VALUE = 20.0
HARM_MIN_PER_ARM = 10
_SHRINK = 5.0
_MIN_FOR_SLOPE = 10


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
        last_greater: log e-value of the upper side now.
    """

    bets: Array
    log_wealth: Array = field(default_factory=lambda: np.zeros(0))
    sup: float = 0.0
    last_greater: float = 0.0

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
        path = np.stack(
            [log_mean_exp(wealth), log_mean_exp(wealth[:, :half]), log_mean_exp(wealth[:, half:])], axis=1
        )
        self.log_wealth = wealth[-1]
        self.sup = max(self.sup, float(path[:, 0].max()))
        self.last_greater = float(path[-1, 2])
        return path

    @property
    def p_anytime(self) -> float:
        """Always-valid p-value: 1 over the largest e-value so far, at most 1."""
        return float(min(1.0, np.exp(-self.sup)))


@dataclass(slots=True)
class Predictor:
    """Mean of the values before each one, which bets are made against; prior 0.5 with weight 2.

    With a covariate z the prediction moves along the regression of y on z over the earlier units only
    (CUPED-like), so it stays predictable.
    """

    n: int = 0
    y: float = 0.0
    z: float = 0.0
    zz: float = 0.0
    zy: float = 0.0

    def extend(self, y: Array, z: Array | None = None) -> Array:
        """Predict each of the next values from those before it.

        Args:
            y: (n,) scaled values in [0, 1], in arrival order.
            z: (n,) covariate known independently of the arm, roughly unit variance; None for none.

        Returns:
            (n,) predictions in (0, 1).
        """
        if not len(y):
            return np.zeros(0)
        z = np.zeros(len(y)) if z is None else z
        before = np.arange(self.n, self.n + len(y), dtype=float)
        prior_y, self.y = _running(self.y, y)
        prior_z, self.z = _running(self.z, z)
        prior_zz, self.zz = _running(self.zz, z * z)
        prior_zy, self.zy = _running(self.zy, z * y)
        self.n += len(y)
        m: Array = (1.0 + prior_y) / (before + 2.0)
        count = np.maximum(before, 1.0)
        sxx = prior_zz - prior_z**2 / count
        beta = (prior_zy - prior_z * prior_y / count) / (sxx + _SHRINK)
        adjusted = np.clip(m + beta * (z - prior_z / count), 0.02, 0.98)
        return np.where((before >= _MIN_FOR_SLOPE) & (sxx > 0.0), adjusted, m)

    def to_state(self) -> list[float]:
        """Plain numbers, exact under JSON."""
        return [self.n, self.y, self.z, self.zz, self.zy]


def _running(start: float, values: Array) -> tuple[Array, float]:
    """The sum before each value, and after the last; added one by one, so that batches give the same."""
    sums = np.cumsum(np.concatenate(([start], values)))
    return sums[:-1], float(sums[-1])


def arm_steps(y: Array, w: Array, p: Array, m: Array, d0: Array | float) -> Array:
    """Section 3 of the method: the scaled, centred product of assignment and outcome, in [-1, 1]."""
    q = p * (1.0 - p)
    x = (w - p) * (y - m) - q * d0
    b = np.maximum(m, 1.0 - m) * np.maximum(p, 1.0 - p) + q * np.abs(d0)
    steps: Array = x / b
    return steps


@dataclass(slots=True)
class ArmProcess:
    """The e-process of one metric: do the arms differ, and is the test arm harmed?

    Attributes:
        lo: smallest value of the metric.
        hi: largest.
        n_arm: rated units of the baseline and the test arm.
        sup_harm: largest log e-value of "test is worse", once both arms had 10 units.
    """

    lo: float
    hi: float
    predictor: Predictor = field(default_factory=Predictor)
    mixture: Mixture = field(default_factory=lambda: Mixture(ARM_BETS))
    n_arm: list[int] = field(default_factory=lambda: [0, 0])
    sup_harm: float = 0.0

    def extend(
        self, values: Array, in_test: Array, propensity: Array, covariate: Array | None = None
    ) -> Array:
        """Add units in arrival order.

        Args:
            values: (n,) metric values in [lo, hi].
            in_test: (n,) 1.0 for the test arm, 0.0 for the baseline.
            propensity: (n,) logged probability of the test arm, in (0, 1).
            covariate: (n,) or None, see `Predictor`.

        Returns:
            (n, 3) log e-values after each unit: two-sided, less, greater.
        """
        y = (values - self.lo) / (self.hi - self.lo)
        m = self.predictor.extend(y, covariate)
        path = self.mixture.extend(arm_steps(y, in_test, propensity, m, 0.0))
        if len(y):
            n_test = self.n_arm[1] + np.cumsum(in_test)
            n_base = self.n_arm[0] + np.cumsum(1.0 - in_test)
            enough = (n_test >= HARM_MIN_PER_ARM) & (n_base >= HARM_MIN_PER_ARM)
            if enough.any():
                self.sup_harm = max(self.sup_harm, float(path[enough, 1].max()))
            self.n_arm = [int(n_base[-1]), int(n_test[-1])]
        return path

    @property
    def p_anytime(self) -> float:
        """Always-valid two-sided p-value."""
        return self.mixture.p_anytime

    @property
    def is_harmed(self) -> bool:
        """Whether the evidence that the test arm is worse ever reached 20 to 1 with 10 units in each arm."""
        return bool(self.sup_harm >= np.log(HARM_E_VALUE))

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, exact under JSON."""
        return {
            "bounds": [self.lo, self.hi],
            "predictor": self.predictor.to_state(),
            "wealth": self.mixture.log_wealth.tolist(),
            "sup": [self.mixture.sup, self.sup_harm, self.mixture.last_greater],
            "n_arm": self.n_arm,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `to_state`."""
        sup, sup_harm, greater = state["sup"]
        return cls(
            lo=state["bounds"][0],
            hi=state["bounds"][1],
            predictor=Predictor(*state["predictor"]),
            mixture=Mixture(ARM_BETS, np.array(state["wealth"]), sup, greater),
            n_arm=list(state["n_arm"]),
            sup_harm=sup_harm,
        )


def arm_e_values(
    values: Sequence[float],
    in_test: Sequence[float],
    propensity: Sequence[float] | float,
    bounds: tuple[float, float],
    covariate: Sequence[float] | None = None,
) -> Array:
    """The whole path of `ArmProcess` at once.

    Args:
        values: metric values in arrival order.
        in_test: 1 for the test arm, 0 for the baseline, per unit.
        propensity: logged probability of the test arm, per unit or one for all.
        bounds: smallest and largest value of the metric.
        covariate: per unit, or None.

    Returns:
        (n, 3) e-values after each unit: two-sided, less, greater.
    """
    p = np.broadcast_to(np.asarray(propensity, dtype=float), (len(values),))
    z = None if covariate is None else np.asarray(covariate, dtype=float)
    path = ArmProcess(*bounds).extend(np.asarray(values, dtype=float), np.asarray(in_test, dtype=float), p, z)
    e_values: Array = np.exp(path)
    return e_values
