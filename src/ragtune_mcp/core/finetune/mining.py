"""Hard negatives from the corpus, by the base model and with a positive-aware filter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragtune_mcp.core.finetune.examples import RankingExample


def mine_negatives(
    examples: Sequence[RankingExample],
    queries: np.ndarray,
    positives: np.ndarray,
    documents: np.ndarray,
    texts: Sequence[str],
    *,
    per_example: int,
    margin: float,
    skip: int = 0,
) -> list[RankingExample]:
    """Give every example the documents nearest to its query that are clearly less similar than its positive.

    A document that the base model finds almost as similar as the positive is more often an answer nobody
    rated than a wrong one; those above `(1 - margin) x` the positive's cosine are left out (NV-Retriever,
    Moreira et al. 2024, TopK-PercPos).

    Args:
        examples: without negatives.
        queries: (n, dim) unit vectors of the examples' queries.
        positives: (n, dim) unit vectors of the examples' positives.
        documents: (m, dim) unit vectors of the corpus.
        texts: m texts of the corpus.
        per_example: negatives per example, 0 for none; fewer where the corpus has no more.
        margin: relative margin in [0, 1).
        skip: leave out this many of the nearest eligible documents.

    Returns:
        The examples with negatives, nearest first.
    """
    if not per_example:
        return list(examples)
    mined = []
    ceilings = (1.0 - margin) * np.einsum("nd,nd->n", queries, positives)
    for start in range(0, len(examples), 256):
        part = slice(start, start + 256)
        scores = queries[part] @ documents.T
        for example, row, ceiling in zip(examples[part], scores, ceilings[part], strict=True):
            mined.append(
                example._replace(negatives=_nearest(example, row, float(ceiling), texts, per_example, skip))
            )
    return mined


def _nearest(
    example: RankingExample, scores: np.ndarray, ceiling: float, texts: Sequence[str], count: int, skip: int
) -> tuple[str, ...]:
    found: list[str] = []
    eligible = np.where(scores <= ceiling, scores, -np.inf)
    # Documents of equal text stand under several ids, so more candidates than needed are looked at.
    depth = min(len(eligible), skip + count + 2 * len(example.answers) + 20)
    nearest = np.argpartition(-eligible, depth - 1)[:depth]
    for index in nearest[np.lexsort((nearest, -eligible[nearest]))]:
        text = texts[index]
        if (
            np.isfinite(eligible[index])
            and text not in example.answers
            and text not in found
            and text != example.query
        ):
            found.append(text)
        if len(found) == skip + count:
            break
    return tuple(found[skip:])
