"""Fixed-horizon tests from sufficient statistics, effect sizes and corrections.

All of it works on (n, sum, sum of squares), so that a result costs the same after 30 ratings and after
30,000. `scipy.special` is imported on first use: it carries every distribution function needed and loads
many times faster than `scipy.stats`, which the tests use as the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, Self

SRM_PRIOR = 100.0
SRM_ALARM = 1000.0


class Moments(NamedTuple):
    """Sufficient statistics of one arm."""

    n: int
    total: float
    squares: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """From the values themselves."""
        return cls(len(values), math.fsum(values), math.fsum(v * v for v in values))

    @property
    def mean(self) -> float:
        """Arithmetic mean; n must be at least 1."""
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Unbiased variance, 0 where rounding would make it negative; n must be at least 2."""
        spread = self.squares - self.total**2 / self.n
        # Sums of equal values differ from 0 only by rounding.
        return spread / (self.n - 1) if spread > 1e-12 * self.squares else 0.0

    def plus(self, other: Moments) -> Moments:
        """Both samples together."""
        return Moments(self.n + other.n, self.total + other.total, self.squares + other.squares)


EMPTY = Moments(0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """mean(test) - mean(baseline) with its standard error, two-sided p and 95 % interval.

    Attributes:
        difference: None while an arm is empty.
        p: None where no test is possible; `reason` then says why.
        df: degrees of freedom; infinite for a normal reference.
        low: lower end of the 95 % interval, None with p.
    """

    difference: float | None
    p: float | None = None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    df: float = math.inf
    reason: str = ""


def t_quantile(probability: float, df: float) -> float:
    """Quantile of Student's t, of the normal distribution for infinite df."""
    if math.isinf(df):
        return NormalDist().inv_cdf(probability)
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def t_tail(t: float, df: float) -> float:
    """P(T <= t), of the normal distribution for infinite df."""
    if math.isinf(df):
        return 0.5 * math.erfc(-t / math.sqrt(2.0))
    from scipy.special import stdtr

    return float(stdtr(df, t))


def welch(test: Moments, baseline: Moments) -> Comparison:
    """Two-sided Welch test of mean(test) - mean(baseline).

    Args:
        test: moments of the test arm.
        baseline: moments of the baseline arm.

    Returns:
        The comparison; p is None with a reason while an arm has fewer than 2 units, and where both variances
        are 0 and the means differ.

    Source: Welch 1947; tested against scipy.stats.ttest_ind(equal_var=False).
    """
    if not test.n or not baseline.n:
        return Comparison(None, reason="an arm has no rated unit")
    difference = test.mean - baseline.mean
    if test.n < 2 or baseline.n < 2:
        return Comparison(difference, reason="an arm has fewer than 2 rated units")
    v1, v0 = test.variance / test.n, baseline.variance / baseline.n
    if v1 + v0 == 0.0:
        if math.isclose(test.mean, baseline.mean, rel_tol=1e-12):
            return Comparison(0.0, p=1.0, low=0.0, high=0.0, se=0.0)
        return Comparison(difference, se=0.0, reason="no variance in either arm")
    df = (v1 + v0) ** 2 / (v1**2 / (test.n - 1) + v0**2 / (baseline.n - 1))
    return _from_error(difference, math.sqrt(v1 + v0), df)


def stratified(phases: Sequence[tuple[Moments, Moments]]) -> Comparison:
    """Comparison across phases with different splits: inverse-variance mean of the phases' differences.

    One phase with data gives Welch's test. A phase without 2 units in both arms, or without variance,
    carries no usable error estimate and is left out.

    Args:
        phases: (test, baseline) moments of each phase.

    Returns:
        The comparison, normal reference when two or more phases are used.
    """
    seen = [(t, b) for t, b in phases if t.n or b.n]
    if len(seen) <= 1:
        return welch(*seen[0]) if seen else welch(EMPTY, EMPTY)
    parts = [(c.difference, c.se) for t, b in seen if (c := welch(t, b)).se]
    if not parts:
        test, baseline = EMPTY, EMPTY
        for t, b in seen:
            test, baseline = test.plus(t), baseline.plus(b)
        pooled = welch(test, baseline)
        return Comparison(pooled.difference, reason="no phase has 2 rated units with variance in both arms")
    weights = [1.0 / se**2 for _, se in parts if se]
    difference = sum(w * d for w, (d, _) in zip(weights, parts, strict=True) if d is not None) / sum(weights)
    return _from_error(difference, 1.0 / math.sqrt(sum(weights)), math.inf)


def one_sample(values: Moments) -> Comparison:
    """Two-sided t test that the mean is 0 (interleaving credit, paired differences)."""
    if values.n < 2:
        return Comparison(values.mean if values.n else None, reason="fewer than 2 rated queries")
    se = math.sqrt(values.variance / values.n)
    if se == 0.0:
        p = 1.0 if values.mean == 0.0 else None
        return Comparison(values.mean, p=p, se=0.0, reason="" if p else "no variance")
    return _from_error(values.mean, se, values.n - 1)


def _from_error(difference: float, se: float, df: float) -> Comparison:
    margin = t_quantile(0.975, df) * se
    p = min(1.0, 2.0 * t_tail(-abs(difference) / se, df))
    return Comparison(difference, p, difference - margin, difference + margin, se, df)


def non_inferiority_bound(comparison: Comparison, level: float = 0.95) -> float | None:
    """One-sided lower confidence bound of test - baseline; non-inferior when it is above -margin."""
    if comparison.difference is None or comparison.se is None:
        return None
    return comparison.difference - t_quantile(level, comparison.df) * comparison.se


def hedges_g(test: Moments, baseline: Moments) -> float | None:
    """Standardised difference with Hedges' small-sample correction; None without pooled variance."""
    n = test.n + baseline.n
    if test.n < 2 or baseline.n < 2:
        return None
    pooled = ((test.n - 1) * test.variance + (baseline.n - 1) * baseline.variance) / (n - 2)
    if pooled == 0.0:
        return None
    return (test.mean - baseline.mean) / math.sqrt(pooled) * (1.0 - 3.0 / (4.0 * n - 9.0))


def superiority(test: Sequence[float], baseline: Sequence[float]) -> float:
    """P(test > baseline) + P(equal) / 2 over all pairs: the Mann-Whitney U of the test arm / (n1 n0)."""
    from bisect import bisect_left, bisect_right

    ordered = sorted(baseline)
    wins = sum(bisect_left(ordered, v) + bisect_right(ordered, v) for v in test)
    return wins / (2.0 * len(test) * len(baseline))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm-adjusted p-values by name (Holm 1979)."""
    adjusted: dict[str, float] = {}
    running = 0.0
    ordered = sorted(p_values.items(), key=lambda entry: entry[1])
    for position, (name, p) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - position) * p))
        adjusted[name] = running
    return adjusted


def srm_log_e(n_test: int, n_baseline: int, split: float) -> float:
    """Log e-value that the assignment counts do not follow `split` (Dirichlet-multinomial, prior weight 100).

    Source: Lindon & Malek 2022, "Anytime-valid inference for multinomial count data".
    """
    a1, a0 = SRM_PRIOR * split, SRM_PRIOR * (1.0 - split)

    def betaln(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    odds = n_test * math.log(split) + n_baseline * math.log1p(-split)
    return betaln(a1 + n_test, a0 + n_baseline) - betaln(a1, a0) - odds


def srm_chi_square_p(n_test: int, n_baseline: int, split: float) -> float:
    """Chi-square p of the same hypothesis; shown, never alarmed on: it is not valid under repeated looks."""
    n = n_test + n_baseline
    if not n:
        return 1.0
    z = (n_test - n * split) / math.sqrt(n * split * (1.0 - split))
    return math.erfc(abs(z) / math.sqrt(2.0))


def fisher_exact(hits_a: int, n_a: int, hits_b: int, n_b: int) -> float:
    """Two-sided Fisher exact p of two shares; 1.0 where an arm is empty or all or none are hits."""
    hits, n = hits_a + hits_b, n_a + n_b
    if not n_a or not n_b or hits in (0, n):
        return 1.0
    import numpy as np
    from scipy.special import gammaln

    def log_choose(total: int, part: np.ndarray | int) -> np.ndarray:
        chosen: np.ndarray = (
            gammaln(total + 1) - gammaln(np.add(part, 1)) - gammaln(np.subtract(total, part) + 1)
        )
        return chosen

    support = np.arange(max(0, hits - n_b), min(hits, n_a) + 1)
    log_p = log_choose(n_a, support) + log_choose(n_b, hits - support) - log_choose(n, hits)
    observed = log_p[hits_a - int(support[0])]
    return float(min(1.0, np.exp(log_p[log_p <= observed + 1e-7]).sum()))
