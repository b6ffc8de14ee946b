"""Small feedback entries for the tests of cleaning, judging and the data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ragtune_mcp.core.feedback.records import FeedbackRecord, RatedDocument

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Library:
    """Indexed documents in memory: the document source and catalogue of the tests."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = dict(texts)

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        return {i: self._texts[i] for i in ids if i in self._texts}

    def all_texts(self) -> dict[str, str]:
        return dict(self._texts)


def entry(
    feedback_id: str, query: str = "how is the cache reset", *, days: float = 0, **fields: Any
) -> FeedbackRecord:
    """An entry `days` after noon."""
    fields.setdefault("key", feedback_id)
    return FeedbackRecord(
        feedback_id=feedback_id, timestamp=NOON + timedelta(days=days), query=query, **fields
    )


def rated(
    feedback_id: str,
    ratings: Mapping[str, int],
    query: str = "how is the cache reset",
    *,
    texts: bool = True,
    days: float = 0,
    **fields: Any,
) -> FeedbackRecord:
    """An entry that rates documents; each carries a text made of its id unless `texts` is False."""
    documents = tuple(
        RatedDocument(i, text=f"All about {i}." if texts else None, rating=r, rank=n)
        for n, (i, r) in enumerate(ratings.items(), 1)
    )
    return entry(feedback_id, query, days=days, documents=documents, **fields)
