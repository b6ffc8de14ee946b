"""Weighted opinions on one (query, document) to one rating and one weight; why so: see `judgements`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

# |net| / gross evidence of a two-thirds majority.
MAJORITY = 1 / 3
_EPSILON = 1e-9


def pool_opinions(
    ratings: Sequence[float], weights: Sequence[float], floor: float
) -> tuple[float, float, bool]:
    """Pool opinions.

    Args:
        ratings: of each opinion, 1 to 5.
        weights: trust in each, positive.
        floor: the least pooled weight.

    Returns:
        The pooled rating in [1, 5], its weight in [floor, 1), and whether one side of 3 has its majority. Sums
        are exact (fsum), so that the order of the opinions cannot show in the last digit.
    """
    evidence = [w * (rating - 3) / 2 for w, rating in zip(weights, ratings, strict=True)]
    net, gross = math.fsum(evidence), math.fsum(map(abs, evidence))
    low, high = _weighted_median(ratings, weights)
    # Half the weight on either side of 3 is no majority, however strong one side's words are.
    resolved = abs(net) >= MAJORITY * gross - _EPSILON and not low < 3 < high
    rating = (low + high) / 2 if resolved else 3 + 2 * net / math.fsum(weights)
    return round(rating, 6), max(floor, round(abs(net) / (abs(net) + 1), 6)), resolved


def _weighted_median(ratings: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """The rating at half the weight, twice; or the two ratings that the half falls between."""
    by_rating: dict[float, list[float]] = defaultdict(list)
    for rating, weight in zip(ratings, weights, strict=True):
        by_rating[rating].append(weight)
    steps = sorted(by_rating)
    sums = [math.fsum(by_rating[rating]) for rating in steps]
    half = math.fsum(sums) / 2
    for i, rating in enumerate(steps):
        below = math.fsum(sums[: i + 1])
        if abs(below - half) <= _EPSILON and i + 1 < len(steps):
            return rating, steps[i + 1]
        if below > half:
            return rating, rating
    return steps[-1], steps[-1]
