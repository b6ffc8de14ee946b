"""Rated queries a day to expect, the smallest effect they can show, and how many an effect needs."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import NormalDist

from ragtune_mcp.core.clock import from_iso, to_iso
from ragtune_mcp.core.experiment.metrics import Metric

POWER = 0.8
DEFAULT_RATED_PER_DAY = 20.0
_LOOK_BACK_DAYS = 14
_MIN_SEARCHES = 50
_MIN_RATED = 10
_MIN_FOR_SD = 30


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the log lets one expect.

    Attributes:
        rated_per_day: queries a day with an opinion on the metric.
        sd: standard deviation of a unit.
        is_measured: False where the log is too short and the documented default stands in.
    """

    rated_per_day: float
    sd: float
    is_measured: bool


def expected_traffic(conn: sqlite3.Connection, metric: Metric, now: datetime) -> Traffic:
    """Rated units a day over the last 14 days; 20 while fewer than 50 searches or 10 ratings are logged."""
    since = to_iso(now - timedelta(days=_LOOK_BACK_DAYS))
    searches, first = conn.execute(
        "SELECT count(*), min(at) FROM exposures WHERE at >= ?", (since,)
    ).fetchone()
    rated, ratings, mean, mean_square = conn.execute(
        "SELECT count(DISTINCT unit), count(*), avg(value), avg(value * value) FROM outcomes"
        " WHERE at >= ? AND kind = ?",
        (since, metric.kind),
    ).fetchone()
    if searches < _MIN_SEARCHES or rated < _MIN_RATED:
        return Traffic(DEFAULT_RATED_PER_DAY, metric.typical_sd, is_measured=False)
    # A burst on the first day says little about the next ones: count at least one whole day.
    days = max(1.0, (now - from_iso(first)).total_seconds() / 86_400.0)
    # The spread of single document ratings says nothing about that of a query's score.
    is_rating = metric.kind != "document" and ratings >= _MIN_FOR_SD
    sd = math.sqrt(max(0.0, mean_square - mean**2)) if is_rating else 0.0
    return Traffic(rated / days, sd or metric.typical_sd, is_measured=True)


def expected_effect(
    traffic: Traffic, duration_hours: float, split: float, alpha: float, *, is_interleaved: bool
) -> float:
    """Minimum detectable effect of the primary metric at the planned end.

    Args:
        traffic: rated queries a day and their spread.
        duration_hours: planned length.
        split: share of the test version.
        alpha: level.
        is_interleaved: every query then informs about both versions, and the unit is the credit.

    Returns:
        The effect in units of the metric (of the credit when interleaved).
    """
    n = max(2.0, traffic.rated_per_day * duration_hours / 24.0)
    if is_interleaved:
        return minimum_detectable_effect(2 * n, 2 * n, traffic.sd, alpha)
    return minimum_detectable_effect(n * (1.0 - split), n * split, traffic.sd, alpha)


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
    # Of n = scale / (split (1 - split)) units in all, each arm gets its share.
    scale = (_z_sum(alpha) * sd / effect) ** 2
    return math.ceil(scale / split), math.ceil(scale / (1.0 - split))
