"""Ranking metrics per query, on graded judgements.

A ranking is a list of document ids, best first; `grades` maps document id to gain, and a document without an
entry or with gain 0 is not relevant. Values agree with ir_measures (trec_eval) on rankings without ties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Grades = Mapping[str, float]
Run = Mapping[str, Sequence[str]]
Qrels = Mapping[str, Grades]


def ndcg(ranking: Sequence[str], grades: Grades, k: int = 10) -> float:
    """Graded nDCG at k: linear gain, log2 discount, in [0, 1].

    Source: Järvelin & Kekäläinen 2002; ir_measures nDCG@k.
    """
    ideal = sum(
        gain / math.log2(rank + 1) for rank, gain in enumerate(sorted(grades.values(), reverse=True)[:k], 1)
    )
    found = sum(
        grades.get(document, 0.0) / math.log2(rank + 1) for rank, document in enumerate(ranking[:k], 1)
    )
    return found / ideal if ideal > 0 else 0.0


def precision(ranking: Sequence[str], grades: Grades, k: int = 10) -> float:
    """Share of the first k that are relevant; k counts also where fewer were retrieved."""
    return sum(grades.get(document, 0.0) > 0 for document in ranking[:k]) / k


def recall(ranking: Sequence[str], grades: Grades, k: int = 10) -> float:
    """Share of the relevant documents that stand in the first k."""
    relevant = sum(gain > 0 for gain in grades.values())
    return sum(grades.get(document, 0.0) > 0 for document in ranking[:k]) / relevant if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], grades: Grades, k: int = 10) -> float:
    """1 / rank of the first relevant document, 0 when none stands in the first k."""
    for rank, document in enumerate(ranking[:k], 1):
        if grades.get(document, 0.0) > 0:
            return 1 / rank
    return 0.0


def average_precision(ranking: Sequence[str], grades: Grades, k: int = 100) -> float:
    """Mean of the precisions at the ranks of the relevant documents; those below rank k count 0."""
    relevant = sum(gain > 0 for gain in grades.values())
    found, total = 0, 0.0
    for rank, document in enumerate(ranking[:k], 1):
        if grades.get(document, 0.0) > 0:
            found += 1
            total += found / rank
    return total / relevant if relevant else 0.0


MEASURES: dict[str, tuple[Callable[[Sequence[str], Grades, int], float], int]] = {
    "ndcg@10": (ndcg, 10),
    "mrr@10": (reciprocal_rank, 10),
    "p@5": (precision, 5),
    "p@10": (precision, 10),
    "r@5": (recall, 5),
    "r@10": (recall, 10),
    "map@100": (average_precision, 100),
}


def evaluate_run(run: Run, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Every measure for every judged query.

    Args:
        run: query id -> document ids, best first; a query without an entry retrieved nothing.
        qrels: query id -> grades; a query without a relevant document is left out.

    Returns:
        Measure name -> query id -> value in [0, 1].
    """
    judged = [query for query, grades in qrels.items() if any(gain > 0 for gain in grades.values())]
    return {
        name: {query: measure(run.get(query, ()), qrels[query], k) for query in judged}
        for name, (measure, k) in MEASURES.items()
    }
