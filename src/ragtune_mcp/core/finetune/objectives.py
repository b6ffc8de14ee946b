"""What a training step minimises.

`Ranking` is the recipe's own objective; `LibraryLoss` wraps the losses of sentence-transformers unchanged.
Both see a batch as distinct texts encoded once, and index arrays into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @property
    def fixed(self) -> Sequence[str]:
        """Texts that are compared with but get no gradient; `fix` sets their vectors, once an epoch."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the examples with these indices."""
        ...

    def loss(self, vectors: Tensor, layout: Any) -> Tensor:
        """Scalar loss from the vectors (n, dim) of the batch's texts."""
        ...

    def fix(self, vectors: Tensor) -> None:
        """Set the unit vectors (m, dim) of the fixed texts."""
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
        negatives: (m,) positions among the fixed texts.
        blocked: (n, c + m) bool, True where a candidate or fixed text may not be a negative of an anchor.
        weights: (n,) trust in each example.
    """

    anchors: np.ndarray
    candidates: np.ndarray
    targets: np.ndarray
    negatives: np.ndarray
    blocked: np.ndarray
    weights: np.ndarray


class Ranking:
    """Softmax cross-entropy of the positive against the other documents of the batch, weighted per example.

    MultipleNegativesRankingLoss (Henderson et al. 2017) where each distinct document of the batch is one
    candidate, and a document known to answer the query, or a near-duplicate of it, is never its negative.
    Of an example's mined negatives the nearest stand in the batch. The others get no gradient: their vectors are
    those of the epoch's start, as in a memory bank (Wu et al. 2018), which makes a step much cheaper. They push
    the query away, but are not pushed themselves.

    Args:
        examples: what `batch` chooses from; negatives nearest first.
        scale: inverse temperature on the cosine.
        in_batch: mined negatives of an example that stand in the batch.

    Attributes:
        fixed: the other mined negatives of all examples.
    """

    def __init__(self, examples: Sequence[RankingExample], *, scale: float = 20.0, in_batch: int = 1) -> None:
        self.examples = examples
        self.scale = scale
        self._in_batch = in_batch
        self.fixed = list(
            dict.fromkeys(text for example in examples for text in example.negatives[in_batch:])
        )
        self._place = {text: position for position, text in enumerate(self.fixed)}
        self._vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the examples with these indices."""
        examples = [self.examples[index] for index in indices]
        place = _Distinct()
        anchors = np.array([place(example.query) for example in examples])
        count = self._in_batch
        documents = dict.fromkeys(
            text for example in examples for text in (example.positive, *example.negatives[:count])
        )
        candidates = {text: column for column, text in enumerate(documents)}
        others = dict.fromkeys(text for example in examples for text in example.negatives[count:])
        columns = [*candidates, *(text for text in others if text not in candidates)]
        blocked = np.array(
            [
                [
                    text != example.positive and (text in example.answers or text == example.query)
                    for text in columns
                ]
                for example in examples
            ]
        )
        layout = RankingLayout(
            anchors,
            np.array([place(text) for text in candidates]),
            np.array([candidates[example.positive] for example in examples]),
            np.array([self._place[text] for text in columns[len(candidates) :]], dtype=np.int64),
            blocked,
            np.array([example.weight for example in examples], dtype=np.float32),
        )
        return Batch(list(place.place), layout)

    def loss(self, vectors: Tensor, layout: RankingLayout) -> Tensor:
        """Weighted mean over the examples, from the vectors (n, dim) of the batch."""
        import torch
        from torch.nn.functional import cross_entropy, normalize

        unit = normalize(vectors, dim=-1)
        documents = unit[torch.from_numpy(layout.candidates)]
        if len(layout.negatives):
            assert self._vectors is not None
            documents = torch.cat([documents, self._vectors[torch.from_numpy(layout.negatives)]])
        scores = self.scale * unit[torch.from_numpy(layout.anchors)] @ documents.T
        scores = scores.masked_fill(torch.from_numpy(layout.blocked), -torch.inf)
        weights = torch.from_numpy(layout.weights)
        losses = cross_entropy(scores, torch.from_numpy(layout.targets), reduction="none")
        return (weights * losses).sum() / weights.sum()

    def fix(self, vectors: Tensor) -> None:
        """Set the unit vectors (m, dim) of the mined negatives."""
        self._vectors = vectors


class ColumnLayout(NamedTuple):
    """One index array per column of the library's loss, and the labels where it takes any."""

    columns: list[np.ndarray]
    labels: np.ndarray | None


class NothingFixed:
    """Every text of the objective is in the batch."""

    fixed: Sequence[str] = ()

    def fix(self, vectors: Tensor) -> None:
        """There is nothing to set."""


class LibraryLoss(NothingFixed):
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


class Several(NothingFixed):
    """Several objectives at once: a step takes a batch of each and minimises the mean of their losses.

    An epoch is one pass over the one with the most examples; the others start over meanwhile.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives

    def __len__(self) -> int:
        return max(len(objective) for objective in self._objectives)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batches of all objectives, with each distinct text once."""
        place = _Distinct()
        layouts = []
        for objective in self._objectives:
            own = objective.batch(list(dict.fromkeys(index % len(objective) for index in indices)))
            layouts.append((np.array([place(text) for text in own.texts]), own.layout))
        return Batch(list(place.place), layouts)

    def loss(self, vectors: Tensor, layout: Sequence[tuple[np.ndarray, Any]]) -> Tensor:
        """Mean of the objectives' losses from the vectors (n, dim) of the batch."""
        import torch

        parts = zip(self._objectives, layout, strict=True)
        return torch.stack(
            [objective.loss(vectors[torch.from_numpy(places)], own) for objective, (places, own) in parts]
        ).mean()


def library_loss(name: str, model: Any) -> Any:
    """The loss module of sentence-transformers with its documented defaults."""
    from sentence_transformers.sentence_transformer import losses

    return getattr(losses, name)(model)


class Columns(NamedTuple):
    """Rows of texts, one per column of a loss, and the labels where it takes any."""

    rows: list[tuple[str, ...]]
    labels: list[float] | None


def tasks_for(losses: str, pairs: Sequence[TrainingPair], seed: int) -> dict[str, Columns]:
    """Loss -> its columns, for one named loss or several joined by "+"."""
    return {name: columns_for(name, pairs, seed) for name in losses.split("+")}


def objective_for(tasks: Mapping[str, Columns]) -> Objective:
    """The losses of sentence-transformers over their columns, at once when there are several."""
    found = [LibraryLoss(name, *columns) for name, columns in tasks.items()]
    return found[0] if len(found) == 1 else Several(found)


def columns_for(name: str, pairs: Sequence[TrainingPair], seed: int) -> Columns:
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
    return Columns(rows, labels)
