"""What a unit is worth: the three metrics of a test, from the opinions on one query."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ragtune_mcp.core.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a test.

    Attributes:
        kind: of the opinions it is made of: answer, document or satisfaction.
        lo: smallest possible value.
        hi: largest possible value.
        margin: largest loss that counts as "not worse", and the half-width of "equivalent".
        typical_sd: standard deviation assumed before any rating is known.
        reference_effect: the effect that "ratings still needed" is counted for.
        grid_step: resolution of the confidence sequence.
    """

    name: str
    kind: str
    lo: float
    hi: float
    margin: float
    typical_sd: float
    reference_effect: float
    grid_step: float


QUALITY = Metric("response_quality", "answer", 1.0, 5.0, 0.3, 1.0, 0.4, 0.02)
RELEVANCE = Metric("relevance_score", "document", 0.0, 1.0, 0.05, 0.3, 0.1, 0.005)
SATISFACTION = Metric("user_satisfaction", "satisfaction", 1.0, 5.0, 0.3, 1.0, 0.4, 0.02)
METRICS = {metric.name: metric for metric in (QUALITY, RELEVANCE, SATISFACTION)}

# The interleaving credit, in units of delta-DCG clipped at 0.5; not a metric a caller names.
CREDIT = Metric("interleaving_credit", "document", -1.0, 1.0, 0.05, 0.35, 0.1, 0.01)


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """The metrics of a test; the first is the primary one.

    Args:
        names: of `METRICS`, each at most once.

    Returns:
        The same names.

    Raises:
        InvalidInput: none, an unknown or a repeated one.
    """
    chosen = tuple(names)
    unknown = [name for name in chosen if name not in METRICS]
    if unknown:
        raise InvalidInput(f"Unknown metric {unknown[0]!r}.", hint=f"Known metrics: {', '.join(METRICS)}.")
    if not chosen or len(set(chosen)) != len(chosen):
        raise InvalidInput(
            f"The metrics {list(chosen)} are empty or repeat a name.", hint="The first one is primary."
        )
    return chosen


def discount(rank: int | None) -> float:
    """1 / log2(rank + 1), rank from 1; 0 for a document that was not in the list."""
    return 1.0 / math.log2(rank + 1) if rank else 0.0


def relevance_score(rated: Iterable[tuple[int, float]]) -> float:
    """Discounted gain of the judged documents of one list, as a share of the same list rated 5 throughout.

    nDCG with linear gain (rating - 1)/4 and log2 discount over judged documents only, normalised by an all-5
    list instead of the list's own best order: the own order would give 1.0 to a list rated 2 throughout.

    Args:
        rated: (rank from 1, rating 1..5) of at least one judged document.

    Returns:
        A value in [0, 1].
    """
    gained = best = 0.0
    for rank, rating in rated:
        weight = discount(rank)
        gained += weight * (rating - 1.0) / 4.0
        best += weight
    return gained / best
