"""Which candidate to keep: every one is scored on held-out feedback, the base model always among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.finetune.corpus_view import CorpusView
from ragtune_mcp.core.finetune.evaluation import PRIMARY, rank_vectors
from ragtune_mcp.core.finetune.metrics import Qrels, ndcg

if TYPE_CHECKING:
    from torch import Tensor

Encode = Callable[[Sequence[str], "Mapping[str, Tensor] | None"], np.ndarray]

_POOL_DEPTH = 20
_DEPTH = 10
_LEAST_QUERIES = 5


class ValidationSet:
    """Held-out queries, ranked against a pool of documents.

    The pool is every judged document and the base model's 20 nearest ones of each query: a fraction of the
    corpus to encode where the corpus is large.

    Args:
        qrels: query text -> {document id: gain}.
        view: the corpus by the base model.

    Attributes:
        queries: the judged query texts.
        documents: the pool's texts.
    """

    def __init__(self, qrels: Qrels, view: CorpusView) -> None:
        self._qrels = qrels
        self._view = view
        self.queries = list(qrels)
        positions = {document: index for index, document in enumerate(view.ids)}
        self._near = {query: [int(i) for i in view.nearest(query, _POOL_DEPTH)] for query in self.queries}
        self._pools = {
            query: {positions[document] for document in qrels[query]} | set(self._near[query])
            for query in self.queries
        }
        self._pool = sorted(set().union(*self._pools.values()))
        self.documents = [view.texts[index] for index in self._pool]

    def __len__(self) -> int:
        return len(self.queries)

    def sample(
        self, max_tokens: int, token_count: Callable[[Sequence[str]], int], seed: int
    ) -> ValidationSet:
        """As many random queries as a bound on the pool's tokens allows, at least five.

        Args:
            max_tokens: bound.
            token_count: tokens of distinct texts.
            seed: fixes the draw.

        Returns:
            The smaller set; this one when it is small enough.
        """
        order = np.random.default_rng([seed, 1]).permutation(len(self.queries))
        taken: list[str] = []
        pool: set[int] = set()
        for index in order:
            query = self.queries[index]
            pool |= self._pools[query]
            if len(taken) >= _LEAST_QUERIES and token_count([self._view.texts[i] for i in pool]) > max_tokens:
                break
            taken.append(query)
        return ValidationSet(
            {query: self._qrels[query] for query in self.queries if query in taken}, self._view
        )

    def score(self, encode: Encode, weights: Mapping[str, Tensor] | None) -> np.ndarray:
        """nDCG@10 of each query, (n,) in [0, 1], with the given weights over the base ones."""
        vectors = encode([*self.queries, *self.documents], weights)
        return self._score(vectors[: len(self)], vectors[len(self) :])

    def base_score(self) -> np.ndarray:
        """nDCG@10 of each query with the base model, (n,) in [0, 1]; nothing is encoded."""
        return self._score(self._view.of(self.queries), self._view.documents[self._pool])

    def _score(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        ranked = rank_vectors(queries, documents, _DEPTH)
        return np.array(
            [
                ndcg([self._view.ids[self._pool[i]] for i in row], self._qrels[query], _DEPTH)
                for query, row in zip(self.queries, ranked, strict=True)
            ]
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The interpolation kept.

    Attributes:
        alpha: 0 is the base model, 1 the trained one.
        scores: alpha -> mean validation nDCG@10, for those measured.
        queries: how many held-out queries were scored.
        reason: why, in words.
    """

    alpha: float
    scores: Mapping[float, float]
    queries: int
    reason: str

    def score(self, alpha: float) -> float:
        """Mean validation nDCG@10 at an alpha, on the polynomial through the measured ones."""
        return _between(self.scores, alpha)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "alpha": self.alpha,
            "metric": PRIMARY,
            "queries": self.queries,
            "scores": {f"{a:g}": round(s, 4) for a, s in self.scores.items()},
        }


# Mean gain in nDCG@10 by interpolation over four collections with 427 to 500 ratings each (docs/log.md): what
# to expect of a candidate before one validation query has been looked at.
_EXPECTED_GAIN = {0.0: 0.0, 0.25: 0.010, 0.5: 0.0155, 0.75: 0.017, 1.0: 0.017}
# How many validation queries weigh as much as that: the variance of a query's gain (about .15 squared) over
# the variance of the gain between collections (about .03 squared).
_PRIOR_QUERIES = 25


def choose_alpha(scores: Mapping[float, np.ndarray], candidates: Sequence[float]) -> Choice:
    """The interpolation with the best expected gain over the base model; the smaller one of equals.

    The mean gain on the validation queries is shrunk toward the gain measured elsewhere, as if that were
    another 25 queries: a dozen held-out queries say little, a hundred decide (empirical Bayes). Gains of
    candidates that were not measured lie on the polynomial through those that were.

    Args:
        scores: alpha -> (n,) per-query validation scores; empty arrays when nothing was held out.
        candidates: alphas to choose from, 0 among them where the base model may be kept.

    Returns:
        The choice.
    """
    n = len(next(iter(scores.values())))
    if n == 0:
        alpha = max(candidates)
        return Choice(alpha, {}, 0, f"No judged validation query: alpha {alpha:g} is taken untested.")
    means = {alpha: float(values.mean()) for alpha, values in scores.items()}
    share = n / (n + _PRIOR_QUERIES)
    base = means[min(means)]
    expected = {a: share * (_between(means, a) - base) + (1 - share) * _prior(a) for a in candidates}
    alpha = max(sorted(expected), key=lambda a: round(expected[a], 9))
    shown = ", ".join(f"{a:g}: {m:.3f}" for a, m in sorted(means.items()))
    reason = (
        f"Alpha {alpha:g} has the best expected gain ({expected[alpha]:+.3f}): validation nDCG@10 of {n} queries "
        f"is {shown}, weighed against what other collections gained as if that were {_PRIOR_QUERIES} queries."
    )
    return Choice(alpha, means, n, reason)


def _between(means: Mapping[float, float], alpha: float) -> float:
    """Lagrange interpolation through the measured means."""
    total = 0.0
    for own, mean in means.items():
        factors = [(alpha - other) / (own - other) for other in means if other != own]
        total += mean * float(np.prod(factors))
    return total


def _prior(alpha: float) -> float:
    grid = sorted(_EXPECTED_GAIN)
    return float(np.interp(alpha, grid, [_EXPECTED_GAIN[a] for a in grid]))
