"""How large an effect a test can find, and how many ratings an effect needs."""

from __future__ import annotations

import math
from statistics import NormalDist

POWER = 0.8


def _z_sum(alpha: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1.0 - alpha / 2.0) + normal.inv_cdf(POWER)


def minimum_detectable_effect(n_baseline: float, n_test: float, sd: float, alpha: float = 0.05) -> float:
    """Smallest true difference found with 80 % power by a two-sided test at `alpha`, in units of the metric.

    Args:
        n_baseline: rated units of the baseline, > 0; may be an expectation.
        n_test: rated units of the test variant, > 0.
        sd: standard deviation of a unit.
        alpha: level of the test.

    Returns:
        The effect; normal approximation.
    """
    return _z_sum(alpha) * sd * math.sqrt(1.0 / n_baseline + 1.0 / n_test)


def units_needed(effect: float, sd: float, split: float = 0.5, alpha: float = 0.05) -> tuple[int, int]:
    """Rated units (baseline, test) for 80 % power at `effect`, a `split` share going to the test variant."""
    per_split = (_z_sum(alpha) * sd / effect) ** 2
    return math.ceil(per_split / (1.0 - split)), math.ceil(per_split / split)
