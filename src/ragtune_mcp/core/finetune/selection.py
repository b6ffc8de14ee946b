"""Which candidate to keep: every one is scored on held-out feedback, the base model always among them.

Two choices: the training step (`KeptStep`), and the interpolation with the base model (`choose_alpha`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ragtune_mcp.core.finetune.evaluation import PRIMARY, Vectors, rank_vectors
from ragtune_mcp.core.finetune.metrics import Qrels, ndcg

_POOL_DEPTH = 20

# Texts -> (n, dim) unit vectors.
Encode = Callable[[Sequence[str]], np.ndarray]


class ValidationSet:
    """Held-out queries, ranked against a pool of documents.

    The pool is every judged document and the base model's nearest ones of each query: on the corpora measured
    it orders candidates as the whole corpus does, at a fraction of the encoding.

    Args:
        qrels: the judged queries.
        texts: of every document.
        base: the base model's view of queries and corpus.

    Attributes:
        queries: the judged query texts.
        documents: the pool's texts.
        base: (n,) scores of the base model, in the order of the queries.
    """

    def __init__(self, qrels: Qrels, texts: Mapping[str, str], base: Vectors) -> None:
        self.queries = list(qrels)
        self._qrels = qrels
        if not self.queries:
            self._ids, self.documents, self.base = [], [], np.zeros(0)
            return
        queries = np.stack([base.queries[query] for query in self.queries])
        judged = {document for grades in qrels.values() for document in grades}
        near = rank_vectors(queries, base.documents, _POOL_DEPTH)
        self._ids = sorted(judged | {base.ids[index] for index in near.ravel().tolist()})
        self.documents = [texts[document] for document in self._ids]
        place = {document: index for index, document in enumerate(base.ids)}
        self.base = self._scores(queries, base.documents[[place[document] for document in self._ids]])

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def key(self) -> str:
        """Identifies queries, judgements and pool: scores of two sets are comparable when theirs are equal."""
        found = (self.queries, [sorted(self._qrels[query].items()) for query in self.queries])
        return hashlib.sha256(repr((*found, self._ids, self.documents)).encode()).hexdigest()

    def score(self, encode: Encode) -> np.ndarray:
        """nDCG@10 of each query, (n,) in [0, 1]."""
        vectors = encode([*self.queries, *self.documents])
        return self._scores(vectors[: len(self.queries)], vectors[len(self.queries) :])

    def _scores(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        ranked = rank_vectors(queries, documents, 10)
        return np.array(
            [
                ndcg([self._ids[i] for i in row], self._qrels[query], 10)
                for query, row in zip(self.queries, ranked, strict=True)
            ]
        )


@dataclass(slots=True)
class KeptStep:
    """The training step whose weights are kept, as validations come in.

    Attributes:
        lenient: keep a later step unless it scores more than two standard errors of the paired difference
            below the best one, so that a handful of validation queries does not undo training. False keeps
            the best score.
        patience: validations in a row without a step to keep after which training stops.
        step: the step kept; 0 before the first validation.
        scores: (n,) its scores; empty before the first validation.
        waited: validations since.
        best: (n,) scores of the step with the best mean.
    """

    lenient: bool
    patience: int
    step: int = 0
    scores: list[float] = field(default_factory=list)
    waited: int = 0
    best: list[float] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """Mean score of the step kept."""
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def exhausted(self) -> bool:
        """Whether patience ran out."""
        return self.waited >= self.patience

    def see(self, step: int, scores: np.ndarray) -> bool:
        """Take note of a validation, (n,) scores of the same queries each time; whether to keep this step."""
        difference = scores - np.array(self.best) if self.best else np.full(len(scores), np.inf)
        better = bool(difference.mean() > 0)
        if better:
            self.best = [float(score) for score in scores]
        if better or (self.lenient and difference.mean() >= -2 * _standard_error(difference)):
            self.step, self.scores, self.waited = step, [float(score) for score in scores], 0
            return True
        self.waited += 1
        return False


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


@dataclass(frozen=True, slots=True)
class Choice:
    """The interpolation kept.

    Attributes:
        alpha: 0 is the base model, 1 the trained one.
        scores: alpha -> mean validation nDCG@10.
        reason: why, in words.
    """

    alpha: float
    scores: Mapping[float, float]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "alpha": self.alpha,
            "metric": PRIMARY,
            "scores": {f"{a:g}": round(s, 4) for a, s in self.scores.items()},
        }


# What six collections with 100 to 820 ratings each gained in nDCG@10 (docs/log.md). By how much differs widely between
# collections, how it depends on alpha hardly does: mean gain at alpha 1, and the share of it at the others.
_EXPECTED_GAIN = 0.0325
_SHAPE = {0.0: 0.0, 0.25: 0.49, 0.5: 0.83, 0.75: 0.98, 1.0: 1.0}
# How many validation queries weigh as much as what is known: the variance of a query's gain (about .15 squared) over
# that between collections (.03 squared); for what an alpha gains beyond its share, .09 squared over .007 squared.
_GAIN_QUERIES = 25
_SHAPE_QUERIES = 165
# Of two that are expected to gain the same within this, the milder one is kept: it forgets less.
_EQUAL = 0.001


def choose_alpha(scores: Mapping[float, np.ndarray]) -> Choice:
    """The mildest interpolation whose expected gain over the base model is the best within .001.

    Empirical Bayes: the gain that validation shows is taken apart into its size, which differs between
    collections, and its course over alpha, which hardly does. Both are shrunk toward what was measured
    elsewhere, as if that were another 25 and another 165 queries. So a dozen held-out queries may say that
    training did harm, but not which of two interpolations is better; hundreds decide both.

    Args:
        scores: alpha -> (n,) per-query validation scores, alpha 0 among them; empty arrays when nothing was
            held out. With 0 and 1 alone there is nothing to choose: the trained weights are kept.

    Returns:
        The choice.
    """
    n = len(next(iter(scores.values())))
    means = {alpha: float(values.mean()) for alpha, values in scores.items()} if n else {}
    if len(scores) < 3:
        return Choice(max(scores), means, "A named loss: the trained weights are kept as they are.")
    alphas = np.array(sorted(scores))
    gains = np.array([means[alpha] - means[alphas[0]] for alpha in alphas]) if n else np.zeros(len(alphas))
    shape = np.interp(alphas, list(_SHAPE), list(_SHAPE.values()))
    seen = float(shape @ gains / max(shape @ shape, 1e-12))
    size = (n * seen + _GAIN_QUERIES * _EXPECTED_GAIN) / (n + _GAIN_QUERIES)
    expected = size * shape + (gains - seen * shape) * n / (n + _SHAPE_QUERIES)
    kept = int(np.flatnonzero(expected >= expected.max() - _EQUAL)[0])
    if not n:
        return Choice(
            float(alphas[kept]), {}, f"No judged validation query: alpha {alphas[kept]:g} did best elsewhere."
        )
    shown = ", ".join(f"{a:g}: {m:.3f}" for a, m in sorted(means.items()))
    return Choice(
        float(alphas[kept]),
        means,
        f"Alpha {alphas[kept]:g} is the mildest with the best expected gain ({expected[kept]:+.3f}): validation "
        f"nDCG@10 of {n} queries is {shown}, weighed against what other collections gained.",
    )
