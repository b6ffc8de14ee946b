"""Uncertainty of paired differences: bootstrap intervals for showing, sign flips for deciding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over n queries with its 95 % interval; all None when n is 0, the bounds None with one query or
    group of them.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON-ready fields."""
        return asdict(self)


def paired_interval(
    differences: Sequence[float] | np.ndarray,
    seed: int = 0,
    confidence: float = 0.95,
    groups: Sequence[str] | None = None,
) -> Interval:
    """Mean of per-query differences with a percentile bootstrap interval over queries, or groups of them.

    The interval is for showing. It is somewhat narrow below 30 queries, so decisions use `sign_flip_p`.

    Args:
        differences: (n,) metric of one model minus that of the other, per query.
        seed: of the resampling.
        confidence: coverage.
        groups: (n,) group of each query; near-duplicates say nothing new, so groups are resampled whole.

    Returns:
        The interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0:
        return Interval(None, None, None, 0)
    mean = float(values.mean())
    names = range(len(values)) if groups is None else groups
    _, member = np.unique(np.array(names), return_inverse=True)
    sums, sizes = np.bincount(member, values), np.bincount(member)
    count = len(sizes)
    if count == 1:
        return Interval(mean, None, None, len(values))
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, count, (500, count)) for _ in range(_RESAMPLES // 500))
    means = np.concatenate([sums[rows].sum(1) / sizes[rows].sum(1) for rows in drawn])
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(values))


def sign_flip_p(
    differences: Sequence[float] | np.ndarray,
    alternative: Literal["greater", "less", "two-sided"],
    seed: int = 0,
    resamples: int = 20_000,
) -> float:
    """p-value of a paired sign-flip permutation test of mean 0; exact up to 14 queries.

    Args:
        differences: (n,) per query.
        alternative: "greater" tests mean > 0, "less" mean < 0.
        seed: of the random flips.
        resamples: random flips.

    Returns:
        p in (0, 1]; 1.0 when there is no non-zero difference.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    if not np.any(values):
        return 1.0
    result = permutation_test(
        (values,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        alternative=alternative,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)
