"""One list from two rankings, and what its ratings say about each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ragtune_mcp.core.experiment.assignment import Variant
from ragtune_mcp.core.experiment.metrics import discount

CREDIT_CLIP = 0.5
MIDPOINT_RATING = 3.0
HELPFUL_RATING = 5.0


class Pick(NamedTuple):
    """A document of the interleaved list and the variant that put it there."""

    document_id: str
    team: Variant


def team_draft(baseline: Sequence[str], test: Sequence[str], k: int, coins: int) -> list[Pick]:
    """Interleave two rankings by team draft.

    The variant with fewer picks so far chooses its best document not yet shown; a coin decides ties.

    Args:
        baseline: document ids, best first, without repeats.
        test: the same of the test variant.
        k: length of the list, >= 1.
        coins: fair coins as bits, lowest first; 1 lets the test variant pick.

    Returns:
        At most k picks, every document once.

    Source: Radlinski, Kurup & Joachims 2008, "How does clickthrough data reflect retrieval quality?".
    """
    used: set[str] = set()
    picks: list[Pick] = []
    counts = {Variant.BASELINE: 0, Variant.TEST: 0}
    while len(picks) < k:
        best_a = next((doc for doc in baseline if doc not in used), None)
        best_b = next((doc for doc in test if doc not in used), None)
        if best_a is None and best_b is None:
            break
        test_picks = best_b is not None and best_a is None
        if best_a is not None and best_b is not None:
            test_picks = counts[Variant.TEST] < counts[Variant.BASELINE]
            if counts[Variant.TEST] == counts[Variant.BASELINE]:
                test_picks, coins = bool(coins & 1), coins >> 1
        team = Variant.TEST if test_picks else Variant.BASELINE
        document = best_b if test_picks else best_a
        picks.append(Pick(str(document), team))
        used.add(str(document))
        counts[team] += 1
    return picks


def discount_gap(document_id: str, baseline: Sequence[str], test: Sequence[str], k: int) -> float:
    """Discount of a document's rank in the test ranking minus that in the baseline, each cut at k."""

    def of(ranking: Sequence[str]) -> float:
        top = list(ranking[:k])
        return discount(top.index(document_id) + 1) if document_id in top else 0.0

    return of(test) - of(baseline)


def delta_dcg_credit(rated: Iterable[tuple[float, float]], expected_rating: float) -> float:
    """Credit of one query to the test variant: the DCG difference that its rated documents show.

    Args:
        rated: (rating 1..5, `discount_gap`) of each rated document shown.
        expected_rating: mean of earlier document ratings, 1..5; the midpoint 3 before the first.

    Returns:
        A value in [-1, 1]: the sum of (rating - expected)/4 * gap, over 0.5 and clipped. Mean 0 when both
        rankings are equally good and the list is shown without regard to teams.
    """
    credit = sum((rating - expected_rating) / 4.0 * gap for rating, gap in rated)
    return max(-1.0, min(1.0, credit / CREDIT_CLIP))
