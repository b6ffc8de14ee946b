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

    def minus(self, part: Moments) -> Moments:
        """The sample without a part of it."""
        return Moments(self.n - part.n, self.total - part.total, self.squares - part.squares)


EMPTY = Moments(0, 0.0, 0.0)


class JointMoments(NamedTuple):
    """Sufficient statistics of a value v and a covariate z known before the unit was assigned."""

    n: int = 0
    v: float = 0.0
    vv: float = 0.0
    z: float = 0.0
    zz: float = 0.0
    vz: float = 0.0

    def add(self, value: float, covariate: float, sign: int = 1) -> JointMoments:
        """With one unit more; with one less for sign -1."""
        return JointMoments(
            self.n + sign,
            self.v + sign * value,
            self.vv + sign * value * value,
            self.z + sign * covariate,
            self.zz + sign * covariate * covariate,
            self.vz + sign * value * covariate,
        )

    def plus(self, other: JointMoments) -> JointMoments:
        """Both samples together."""
        n, *sums = (a + b for a, b in zip(self, other, strict=True))
        return JointMoments(int(n), *sums)

    @property
    def slope(self) -> float:
        """Regression of the value on the covariate; 0 where the covariate does not vary."""
        if not self.n:
            return 0.0
        return (self.vz - self.z * self.v / self.n) / (self.zz - self.z**2 / self.n + 1e-9)

    @property
    def raw(self) -> Moments:
        """Moments of the value alone."""
        return Moments(self.n, self.v, self.vv)

    def adjusted(self, slope: float) -> Moments:
        """Moments of v - slope * z (CUPED; Deng et al. 2013)."""
        return Moments(
            self.n, self.v - slope * self.z, self.vv - 2.0 * slope * self.vz + slope * slope * self.zz
        )


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
    """Comparison across phases with different splits: size-weighted mean of the phases' differences.

    The weight of a phase is n1 n0 / (n1 + n0), as if variances were equal, so that it does not depend on the
    outcomes; inverse-variance weights let small phases with an accidentally small variance dominate
    (false-positive rate .063 to .20 in simulation, against .049 here; docs/ab-testing.md). The error uses
    each phase's own variances with Satterthwaite's degrees of freedom. One phase gives Welch's test.

    Args:
        phases: (test, baseline) moments of each phase; one without 2 units in both arms is left out.

    Returns:
        The comparison; p is None with a reason as for `welch`.
    """
    seen = [(t, b) for t, b in phases if t.n or b.n]
    usable = [(t, b) for t, b in seen if t.n >= 2 and b.n >= 2]
    if len(seen) <= 1 or not usable:
        test, baseline = EMPTY, EMPTY
        for t, b in seen:
            test, baseline = test.plus(t), baseline.plus(b)
        pooled = welch(test, baseline)
        return (
            pooled
            if len(seen) <= 1
            else Comparison(pooled.difference, reason="no phase has 2 rated units in each arm")
        )
    weights = [t.n * b.n / (t.n + b.n) for t, b in usable]
    shares = [w / sum(weights) for w in weights]
    difference = sum(c * (t.mean - b.mean) for c, (t, b) in zip(shares, usable, strict=True))
    parts = [
        (c * c * arm.variance / arm.n, arm.n - 1)
        for c, arms in zip(shares, usable, strict=True)
        for arm in arms
    ]
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        is_equal = math.isclose(difference, 0.0, abs_tol=1e-12)
        return Comparison(
            difference, p=1.0 if is_equal else None, se=0.0, reason="" if is_equal else "no variance"
        )
    df = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return _from_error(difference, math.sqrt(variance), df)


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
