"""Training pairs: a (query, document) with its label, weight and origin; how judgements become pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from ragtune_mcp.core.feedback.records import Judgement
from ragtune_mcp.core.feedback.text import query_key

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


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pairs as read from a file, with the manifest beside it; {} for a file that has none."""

    dataset_id: str
    pairs: tuple[TrainingPair, ...]
    manifest: Mapping[str, Any]

    @property
    def mining_margin(self) -> float | None:
        """The margin hard negatives were mined with; None where none were, or where there is no manifest."""
        mining = self.manifest.get("mining")
        return None if mining is None else float(mining["margin"])

    def excluded_negatives(self, group: str) -> frozenset[str]:
        """Ids of documents that no query of the group may have as a negative, though no pair says so.

        Args:
            group: a query group of the pairs.

        Returns:
            Documents users are undecided about, positives beyond the cap, and those that only the test slice
            may hold; empty where there is no manifest.
        """
        excluded = self.manifest.get("excluded_negatives", {})
        everywhere, groups = excluded.get("everywhere", ()), excluded.get("groups", {})
        return frozenset((*everywhere, *groups.get(group, ())))


@dataclass(frozen=True, slots=True)
class PairRules:
    """Which judgements become pairs.

    Attributes:
        positive: pooled ratings from here up are positives.
        negative: pooled ratings down from here are negatives; what lies between is neutral and left out.
        per_query: most positives, and most negatives, of one query; the weightiest stay, so that a heavy
            query
            cannot outvote the rest of the data set.
    """

    positive: float = 4.0
    negative: float = 2.0
    per_query: int = 10


class RatedPairs(NamedTuple):
    """Pairs made of judgements, and the judgements that made none; unresolved ones count as neutral."""

    pairs: tuple[TrainingPair, ...]
    neutral: tuple[Judgement, ...]
    capped: tuple[Judgement, ...]


NEGATIVE_KINDS: frozenset[PairKind] = frozenset({"negative", "hard_negative", "easy_negative"})
_KIND_ORDER: tuple[PairKind, ...] = ("positive", "negative", "hard_negative", "easy_negative", "synthetic")


def rated_pairs(judgements: Sequence[Judgement], rules: PairRules) -> RatedPairs:
    """Turn judgements into positives and negatives.

    Args:
        judgements: at most one per (query, document).
        rules: thresholds and cap.

    Returns:
        Pairs without groups, by query and document, and what was left out.
    """
    neutral: list[Judgement] = []
    sides: dict[tuple[str, PairKind], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if not judgement.resolved:
            # Its rating is a mean nobody gave, whatever side of the thresholds it lies on.
            neutral.append(judgement)
        elif judgement.rating >= rules.positive:
            sides[judgement.query, "positive"].append(judgement)
        elif judgement.rating <= rules.negative:
            sides[judgement.query, "negative"].append(judgement)
        else:
            neutral.append(judgement)
    pairs: list[TrainingPair] = []
    capped: list[Judgement] = []
    for (_, kind), members in sides.items():
        members.sort(key=lambda j: (-j.weight, j.document_id))
        capped += members[rules.per_query :]
        pairs += (_rated(j, kind) for j in members[: rules.per_query])
    return RatedPairs(tuple(sorted(pairs, key=canonical)), tuple(neutral), tuple(capped))


def canonical(pair: TrainingPair) -> tuple[Any, ...]:
    """The order of pairs in a data set: by group, query, kind, document."""
    return (
        pair.query_group,
        query_key(pair.query),
        pair.query,
        _KIND_ORDER.index(pair.kind),
        pair.document_id,
        pair.document,
    )


def _rated(judgement: Judgement, kind: PairKind) -> TrainingPair:
    return TrainingPair(
        query=judgement.query,
        document=judgement.document,
        label=round((judgement.rating - 1) / 4, 6),
        kind=kind,
        weight=judgement.weight,
        rating=judgement.rating,
        document_id=judgement.document_id,
        feedback_ids=judgement.feedback_ids,
    )
