"""What a training step minimises.

`Ranking` is the recipe's own objective; `LibraryLoss` wraps the losses of sentence-transformers unchanged.
Both see a batch as distinct texts encoded once, and index arrays into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.finetune.examples import RankingExample, labelled_pairs, triplets

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Distinct texts of one step and what the objective needs to know about them."""

    texts: list[str]
    layout: Any


class Objective(Protocol):
    """Batches in, a scalar loss out."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the examples with these indices."""
        ...

    def loss(self, vectors: Tensor, layout: Any) -> Tensor:
        """Scalar loss from the vectors (n, dim) of the batch's texts."""
        ...


class _Distinct:
    """Assigns each distinct text of a batch its position."""

    def __init__(self) -> None:
        self.place: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.place.setdefault(text, len(self.place))


class RankingLayout(NamedTuple):
    """Positions in the batch: (n,) anchors, (c,) candidates, (n,) index of the positive among the candidates.

    Attributes:
        blocked: (n, c) bool, True where a candidate may not serve as a negative of an anchor.
        weights: (n,) trust in each example.
        outside: (n, m) bool, True where a document of the whole corpus may not; None without one.
    """

    anchors: np.ndarray
    candidates: np.ndarray
    targets: np.ndarray
    blocked: np.ndarray
    weights: np.ndarray
    outside: np.ndarray | None


class Ranking:
    """Softmax cross-entropy of the positive against all other documents, weighted per example.

    MultipleNegativesRankingLoss (Henderson et al. 2017) where each distinct document of the batch is one
    candidate, and a document known to answer the query, or a near-duplicate of it, is never its negative.
    With a background every document of the corpus is a negative too, by its kept vector: gradients reach the
    query alone, so it costs one matrix product (cross-batch memory, Wang et al. 2020).

    Args:
        examples: what `batch` chooses from.
        scale: inverse temperature on the cosine.
        background: the corpus by the base model, aligned with the examples.
    """

    def __init__(
        self, examples: Sequence[RankingExample], *, scale: float = 20.0, background: Background | None = None
    ) -> None:
        self.examples = examples
        self.scale = scale
        self.background = background

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the examples with these indices."""
        examples = [self.examples[index] for index in indices]
        place = _Distinct()
        anchors = np.array([place(example.query) for example in examples])
        candidates: dict[str, int] = {}
        for example in examples:
            for text in (example.positive, *example.negatives):
                candidates.setdefault(text, len(candidates))
        blocked = np.zeros((len(examples), len(candidates)), dtype=bool)
        for row, example in enumerate(examples):
            for text in (*example.answers, example.query):
                if text in candidates and text != example.positive:
                    blocked[row, candidates[text]] = True
        layout = RankingLayout(
            anchors,
            np.array([place(text) for text in candidates]),
            np.array([candidates[example.positive] for example in examples]),
            blocked,
            np.array([example.weight for example in examples], dtype=np.float32),
            self.background.blocked(indices, examples, candidates) if self.background else None,
        )
        return Batch(list(place.place), layout)

    def loss(self, vectors: Tensor, layout: RankingLayout) -> Tensor:
        """Weighted mean over the examples, from the vectors (n, dim) of the batch."""
        import torch
        from torch.nn.functional import cross_entropy, normalize

        unit = normalize(vectors, dim=-1)
        anchors = self.scale * unit[torch.from_numpy(layout.anchors)]
        scores = anchors @ unit[torch.from_numpy(layout.candidates)].T
        scores = scores.masked_fill(torch.from_numpy(layout.blocked), -torch.inf)
        if self.background is not None and layout.outside is not None:
            others = anchors @ torch.from_numpy(self.background.documents).T
            scores = torch.cat(
                [scores, others.masked_fill(torch.from_numpy(layout.outside), -torch.inf)], dim=1
            )
        losses = cross_entropy(scores, torch.from_numpy(layout.targets), reduction="none")
        weights = torch.from_numpy(layout.weights)
        return (weights * losses).sum() / weights.sum()


class Background:
    """The whole corpus as negatives, and which document may serve for which example.

    A document that the base model finds almost as similar to the query as the positive is more often an
    answer nobody rated than a wrong one; those above `(1 - margin) x` the positive's cosine are left out
    (NV-Retriever, Moreira et al. 2024).

    Args:
        texts: m texts of the corpus; equal texts may stand there more than once.
        documents: (m, dim) float32 unit vectors by the base model.
        queries: (n, dim) unit vectors of the examples' queries by the base model.
        positives: (n, dim) of their positives.
        margin: relative margin in [0, 1).
    """

    def __init__(
        self,
        texts: Sequence[str],
        documents: np.ndarray,
        queries: np.ndarray,
        positives: np.ndarray,
        *,
        margin: float,
    ) -> None:
        self.documents = documents
        self._queries = queries
        self._ceilings = (1.0 - margin) * np.einsum("nd,nd->n", queries, positives)
        self._places: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            self._places.setdefault(text, []).append(index)

    def blocked(
        self, indices: Sequence[int], examples: Sequence[RankingExample], in_batch: Iterable[str]
    ) -> np.ndarray:
        """(n, m) bool: likely and known answers of each example, and what stands in the batch by itself."""
        rows = list(indices)
        found: np.ndarray = self._queries[rows] @ self.documents.T > self._ceilings[rows][:, None]
        found[:, [place for text in in_batch for place in self._places.get(text, ())]] = True
        for row, example in enumerate(examples):
            found[
                row,
                [place for text in (*example.answers, example.query) for place in self._places.get(text, ())],
            ] = True
        return found


class ColumnLayout(NamedTuple):
    """One index array per column of the library's loss, and the labels where it takes any."""

    columns: list[np.ndarray]
    labels: np.ndarray | None


class LibraryLoss:
    """A sentence-transformers loss with its own defaults, fed from the distinct texts of the batch."""

    def __init__(self, name: str, rows: Sequence[tuple[str, ...]], labels: Sequence[float] | None) -> None:
        self.name = name
        self.rows = rows
        self.labels = labels
        self._loss = library_loss(name, model=None)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the examples with these indices."""
        place = _Distinct()
        columns = [
            np.array([place(text) for text in column])
            for column in zip(*(self.rows[i] for i in indices), strict=True)
        ]
        labels = (
            None if self.labels is None else np.array([self.labels[i] for i in indices], dtype=np.float32)
        )
        return Batch(list(place.place), ColumnLayout(columns, labels))

    def loss(self, vectors: Tensor, layout: ColumnLayout) -> Tensor:
        """The library's value for the vectors (n, dim) of the batch."""
        import torch

        columns = [vectors[torch.from_numpy(column)] for column in layout.columns]
        labels = None if layout.labels is None else torch.from_numpy(layout.labels)
        result: Tensor = self._loss.compute_loss_from_embeddings(columns, labels)
        return result


def library_loss(name: str, model: Any) -> Any:
    """The loss module of sentence-transformers with its documented defaults."""
    from sentence_transformers.sentence_transformer import losses

    return getattr(losses, name)(model)


def columns_for(
    name: str, pairs: Sequence[TrainingPair], seed: int
) -> tuple[list[tuple[str, ...]], list[float] | None]:
    """The columns a named loss documents as its input.

    Args:
        name: CosineSimilarityLoss or CoSENTLoss (query, document with label), TripletLoss or
            MultipleNegativesRankingLoss (anchor, positive, negative).
        pairs: training pairs.
        seed: fixes which negative goes with which positive.

    Returns:
        Rows of texts, and labels where the loss takes any.

    Raises:
        NotEnoughData: the pairs give no example of that shape.
    """
    rows: list[tuple[str, ...]]
    labels: list[float] | None = None
    if name in ("CosineSimilarityLoss", "CoSENTLoss"):
        found = labelled_pairs(pairs)
        rows, labels = [(query, document) for query, document, _ in found], [label for *_, label in found]
    else:
        rows = [tuple(triplet) for triplet in triplets(pairs, seed)]
    if not rows:
        raise NotEnoughData(
            f"{len(pairs)} training pairs give no example for {name}.",
            hint="Collect ratings of 4 or 5 and of 1 or 2.",
        )
    return rows, labels
