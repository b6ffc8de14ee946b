"""What a rating is: one record per `UserFeedback` entry, whatever shape it was written in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class RatedDocument:
    """One document shown for a query and what the user made of it; ratings 1..5, rank from 1."""

    id: str
    text: str | None = None
    text_sha256: str | None = None
    rank: int | None = None
    score: float | None = None
    rating: int | None = None
    helpful: bool | None = None
    clicked: bool | None = None
    cited: bool | None = None
    copied: bool | None = None


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """One feedback entry, parsed. `rating` judges the answer as a whole, `documents` single results.

    Attributes:
        key: ConPort key of the entry; `feedback_id` is the id in the value, the key where that is missing.
        timestamp: aware UTC.
        rater: who rated, or the session id; "" when unknown.
        extra: keys of the entry that no field holds, kept for the export.
    """

    feedback_id: str
    key: str
    timestamp: datetime
    query: str
    rating: int | None = None
    response: str | None = None
    documents: tuple[RatedDocument, ...] = ()
    rater: str = ""
    query_id: str | None = None
    user_satisfaction: int | None = None
    comment: str = ""
    is_follow_up: bool = False
    reasked: bool = False
    dead_end: bool = False
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that was not used: `reason` is a countable snake_case word, `detail` names the value."""

    feedback_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackBatch:
    """Entries read, each either a record or rejected: `read == len(records) + len(rejected)`."""

    records: tuple[FeedbackRecord, ...]
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        """How many entries can be used."""
        return len(self.records)

    @property
    def read(self) -> int:
        """How many entries were looked at."""
        return len(self.records) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class Judgement:
    """All opinions on one (query, document), pooled.

    Attributes:
        rating: pooled rating in [1, 5].
        weight: trust in (0, 1].
        source: the strongest kind of opinion in it: document, answer, attributed, signal.
        feedback_ids: every entry that contributed.
        resolved: False where opinions contradict each other and neither side has its majority; such a
            judgement makes no pair.
    """

    query: str
    document_id: str
    document: str
    rating: float
    weight: float
    source: str
    n_opinions: int
    feedback_ids: tuple[str, ...]
    timestamp: datetime
    resolved: bool = True


class DocumentSource(Protocol):
    """Current texts of indexed documents; implemented by retrieval."""

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> text, for the ids that exist."""
        ...
