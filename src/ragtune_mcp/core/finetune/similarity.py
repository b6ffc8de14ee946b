"""How well a model's similarities agree with labels: triplet accuracies and correlations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.finetune.examples import RELEVANT_LABEL, is_positive


def pair_metrics(
    encode: Callable[[Sequence[str]], np.ndarray], pairs: Sequence[TrainingPair]
) -> dict[str, float | None]:
    """Accuracies and correlations of a model on held-out pairs.

    Accuracy is the share of (query, positive, other) triplets of one query whose positive is nearer; the
    other document is one that was rated low or mined. Correlation is between cosine and label over rated
    pairs.

    Args:
        encode: texts -> (n, dim) unit vectors.
        pairs: held-out pairs.

    Returns:
        cosine_accuracy, manhattan_accuracy, euclidean_accuracy, pearson, spearman; None where undefined.
    """
    queries = encode([pair.query for pair in pairs])
    documents = encode([pair.document for pair in pairs])
    positives, others = _triplet_indices(pairs)
    found: dict[str, float | None] = {}
    distances = {
        "cosine": 1.0 - np.einsum("nd,nd->n", queries, documents),
        "manhattan": np.abs(queries - documents).sum(1),
        "euclidean": np.sqrt(((queries - documents) ** 2).sum(1)),
    }
    for name, distance in distances.items():
        found[f"{name}_accuracy"] = (
            float(np.mean(distance[positives] < distance[others])) if len(positives) else None
        )
    rated = np.array([pair.rating is not None for pair in pairs], dtype=bool)
    labels = np.array([pair.label for pair in pairs])[rated]
    found["pearson"], found["spearman"] = correlations(1.0 - distances["cosine"][rated], labels)
    return found


def correlations(similarities: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    """Pearson and Spearman correlation of (n,) arrays; None where one of them is constant or n < 3."""
    if len(labels) < 3 or np.ptp(labels) == 0 or np.ptp(similarities) == 0:
        return None, None
    from scipy.stats import pearsonr, spearmanr

    return float(pearsonr(similarities, labels).statistic), float(spearmanr(similarities, labels).statistic)


def _triplet_indices(pairs: Sequence[TrainingPair]) -> tuple[np.ndarray, np.ndarray]:
    positives: dict[str, list[int]] = defaultdict(list)
    others: dict[str, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        if is_positive(pair):
            positives[pair.query].append(index)
        elif pair.label < RELEVANT_LABEL:
            others[pair.query].append(index)
    triplets = [(p, o) for query, found in positives.items() for p in found for o in others[query]]
    left, right = zip(*triplets, strict=True) if triplets else ((), ())
    return np.array(left, dtype=np.int64), np.array(right, dtype=np.int64)
