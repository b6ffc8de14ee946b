"""Base against tuned model on held-out feedback, each query against the whole corpus."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ragtune_mcp.core.finetune.intervals import Interval, paired_interval
from ragtune_mcp.core.finetune.metrics import Qrels, Run, evaluate_run

_DEPTH = 100
_EXAMPLES = 5
_SHOWN = 5
PRIMARY = "ndcg@10"


@dataclass(frozen=True, slots=True)
class Vectors:
    """One model's view of queries and corpus.

    Attributes:
        queries: query id -> (dim,) unit vector.
        documents: (m, dim) float32 unit vectors, in the order of `ids`.
        ids: m document ids.
    """

    queries: Mapping[str, np.ndarray]
    documents: np.ndarray
    ids: Sequence[str]

    def rank(self, k: int = _DEPTH) -> dict[str, list[str]]:
        """Query id -> ids of the k nearest documents by cosine, best first; ties by position in the
        corpus.
        """
        names = list(self.queries)
        if not names:
            return {}
        found = rank_vectors(np.stack([self.queries[name] for name in names]), self.documents, k)
        return {name: [self.ids[index] for index in row] for name, row in zip(names, found, strict=True)}


def rank_vectors(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k nearest documents of each query.

    Args:
        queries: (n, dim) unit vectors.
        documents: (m, dim) unit vectors.
        k: at most m are returned.

    Returns:
        (n, min(k, m)) int, best first; equal scores in corpus order.
    """
    k = min(k, len(documents))
    found = np.zeros((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ documents.T
        # Threshold first, then a stable sort of the survivors, so that ties do not depend on the partition.
        thresholds = np.partition(scores, len(documents) - k, axis=1)[:, len(documents) - k] if k else None
        for row, line in enumerate(scores):
            kept = (
                np.flatnonzero(line >= thresholds[row])
                if thresholds is not None
                else np.zeros(0, dtype=np.int64)
            )
            found[start + row] = kept[np.argsort(-line[kept], kind="stable")][:k]
    return found


def rank_corpus(
    encode: Callable[[Sequence[str]], np.ndarray],
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    k: int = _DEPTH,
) -> dict[str, list[str]]:
    """Rank the whole corpus for every query.

    Args:
        encode: texts -> (n, dim) unit vectors.
        queries: query id -> text.
        corpus: document id -> text.
        k: ranking depth.

    Returns:
        Query id -> document ids, best first.
    """
    vectors = encode(list(queries.values()))
    return Vectors(
        dict(zip(queries, vectors, strict=True)), encode(list(corpus.values())), list(corpus)
    ).rank(k)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Per-query values of both models on the same judgements.

    Attributes:
        base, tuned: measure -> query id -> value.
        groups: query id -> group of near-duplicates; a query without one stands alone.
    """

    base: Mapping[str, Mapping[str, float]]
    tuned: Mapping[str, Mapping[str, float]]
    groups: Mapping[str, str] = field(default_factory=dict)

    def differences(self, measure: str = PRIMARY) -> np.ndarray:
        """(n,) tuned minus base, in the order of the queries."""
        return np.array(
            [self.tuned[measure][query] - self.base[measure][query] for query in self.base[measure]]
        )

    def group_differences(self, measure: str = PRIMARY) -> np.ndarray:
        """(g,) tuned minus base, averaged over the queries of a group."""
        found: dict[str, list[float]] = {}
        for query, base in self.base[measure].items():
            found.setdefault(self.groups.get(query, query), []).append(self.tuned[measure][query] - base)
        return np.array([np.mean(values) for values in found.values()])

    def gain(self, measure: str = PRIMARY, seed: int = 0) -> Interval:
        """Mean difference with its paired 95 % interval."""
        groups = [self.groups.get(query, query) for query in self.base[measure]] if self.groups else None
        return paired_interval(self.differences(measure), seed, groups=groups)

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Means of both models and the gain of every measure, with n."""
        return {
            "queries": len(self.base[PRIMARY]),
            "base": {name: _mean(values) for name, values in self.base.items()},
            "tuned": {name: _mean(values) for name, values in self.tuned.items()},
            "gain": {name: self.gain(name, seed).to_dict() for name in self.base},
        }


def compare(base: Run, tuned: Run, qrels: Qrels, groups: Mapping[str, str] | None = None) -> Comparison:
    """Both runs on the same judgements."""
    return Comparison(evaluate_run(base, qrels), evaluate_run(tuned, qrels), groups or {})


def restricted(qrels: Qrels, documents: Collection[str], *, inside: bool) -> dict[str, dict[str, float]]:
    """The judgements on documents inside (or outside) a set; queries left without a relevant document drop
    out.
    """
    kept = {
        query: {document: gain for document, gain in grades.items() if (document in documents) is inside}
        for query, grades in qrels.items()
    }
    return {query: grades for query, grades in kept.items() if any(grades.values())}


def report(
    base: Run,
    tuned: Run,
    qrels: Qrels,
    rated: Collection[str],
    groups: Mapping[str, str],
    seed: int = 0,
) -> dict[str, Any]:
    """The evaluation as stored with a version.

    Args:
        base: rankings of the base model.
        tuned: rankings of the tuned model.
        qrels: held-out judgements.
        rated: ids of documents rated in the training part; gains on them and on all others are given apart.
        groups: query -> group of near-duplicates, which an interval takes as one observation.
        seed: of the intervals.

    Returns:
        JSON-ready: overall, `seen` and `unseen` documents, biggest gains and worst regressions with rankings,
        and the (g,) `differences` of the groups.
    """
    overall = compare(base, tuned, qrels, groups)
    seen = compare(base, tuned, restricted(qrels, rated, inside=True), groups)
    unseen = compare(base, tuned, restricted(qrels, rated, inside=False), groups)
    return {
        **overall.summary(seed),
        "seen": seen.gain(seed=seed).to_dict(),
        "unseen": unseen.gain(seed=seed).to_dict(),
        **_extremes(overall, base, tuned),
        "differences": overall.group_differences(),
    }


def _extremes(found: Comparison, base: Run, tuned: Run) -> dict[str, Any]:
    names = list(found.base[PRIMARY])
    order = [names[index] for index in np.argsort(found.differences(), kind="stable")]

    def shown(query: str) -> dict[str, Any]:
        return {
            "query": query,
            "base": round(found.base[PRIMARY][query], 4),
            "tuned": round(found.tuned[PRIMARY][query], 4),
            "base_ranking": list(base[query][:_SHOWN]),
            "tuned_ranking": list(tuned[query][:_SHOWN]),
        }

    def delta(query: str) -> float:
        return found.tuned[PRIMARY][query] - found.base[PRIMARY][query]

    return {
        "gains": [shown(query) for query in reversed(order[-_EXAMPLES:]) if delta(query) > 0],
        "regressions": [shown(query) for query in order[:_EXAMPLES] if delta(query) < 0],
    }


def _mean(values: Mapping[str, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None
