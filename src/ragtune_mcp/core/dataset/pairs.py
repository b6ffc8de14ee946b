"""Training pairs: one (query, document) with its label, weight and origin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

PairKind = Literal["positive", "negative", "hard_negative", "easy_negative", "synthetic"]
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """One training pair.

    Attributes:
        label: graded relevance in [0, 1]; (rating - 1) / 4 for rated pairs, 0 for mined negatives.
        weight: trust in (0, 1].
        rating: pooled rating in [1, 5]; None for mined and synthetic pairs.
        query_group: id of the group of near-duplicate queries; a group never straddles two splits.
        feedback_ids: the feedback entries this pair comes from; for a mined negative those of its positive.
    """

    query: str
    document: str
    label: float
    kind: PairKind = "positive"
    weight: float = 1.0
    rating: float | None = None
    document_id: str = ""
    query_group: str = ""
    split: SplitName = "train"
    feedback_ids: tuple[str, ...] = ()


class Hit(NamedTuple):
    """One retrieved document; score is the cosine with the query."""

    id: str
    text: str
    score: float


class Corpus(Protocol):
    """The live index as this stage sees it; implemented by retrieval."""

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> current text, for the ids that exist."""
        ...

    def nearest(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The k documents nearest to each query, best first."""
        ...
