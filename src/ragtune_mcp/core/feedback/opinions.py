"""What one entry says about each of its documents.

Where several kinds of opinion speak about the same document, the first of this table counts; its weight says
how far one such opinion is trusted against an explicit rating of that document.

    kind          opinion                    weight             reason
    rated         the document's own rating  1                  exactly what training needs to know
    helpful       helpful 5, not helpful 1   .7                 explicit, but on a two-point scale
    cited         the answer's rating        .5                 judges the writing and several documents
    shown         the answer's rating        .3 / log2(rank+1)  as above; it may not have been used at all
    quoted        the answer's rating        .25 x overlap      as shown; the link itself is inferred
    copied        4                          .4                 use, though not always approval
    used          4 (cited, answer unrated)  .2                 who wrote the answer chose it, no user did
    clicked       4                          .15                judges title and rank more than the text
    re-asked      2                          .2 / log2(rank+1)  the user said it again: not answered, yet
                                                                perhaps not through this document
    dead end      2                          .1 / log2(rank+1)  who leaves may also have been served

Re-asked means that the same person put nearly the same question again within minutes, dead end that the
session ended on the answer without any use of it; clients report both, for the answer as a whole.

An answer's rating means its `relevance` detail where the user gave one, since the overall rating also judges
length and style. Where an answer cites some of its documents, its rating says nothing about the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ragtune_mcp.core.feedback.attribution import Attributor
from ragtune_mcp.core.feedback.records import FeedbackRecord, RatedDocument

RATED = 1.0
HELPFUL = 0.7
CITED = 0.5
SHOWN = 0.3
QUOTED = 0.25
COPIED = 0.4
USED = 0.2
CLICKED = 0.15
REASKED = 0.2
DEAD_END = 0.1
IMPLICIT_RATING = 4.0
UNSUCCESSFUL_RATING = 2.0
SOURCES = ("document", "answer", "attributed", "signal")
_RELEVANCE = {"very_relevant": 5.0, "relevant": 4.0, "somewhat_relevant": 2.0, "not_relevant": 1.0}


class Opinion(NamedTuple):
    """What one entry says about one document.

    Attributes:
        entry: number of the entry.
        rating: 1 to 5.
        weight: trust in (0, 1], before age.
        source: one of `SOURCES`, strongest first.
    """

    entry: int
    document: RatedDocument
    rating: float
    weight: float
    source: str


def answer_rating(record: FeedbackRecord) -> float | None:
    """What the entry says about its documents as a whole, 1 to 5; None where it says nothing."""
    detail = record.extra.get("detailed_feedback")
    relevance: object = detail.get("relevance") if isinstance(detail, Mapping) else None
    if isinstance(relevance, str):
        text = relevance.strip().lower()
        relevance = int(text) if text in ("1", "2", "3", "4", "5") else _RELEVANCE.get(text)
    if isinstance(relevance, int | float) and not isinstance(relevance, bool) and 1 <= relevance <= 5:
        return float(relevance)
    return None if record.rating is None else float(record.rating)


def document_opinions(entry: int, record: FeedbackRecord) -> Iterator[Opinion]:
    """The opinions of entry number `entry` on the documents it lists."""
    answer = answer_rating(record)
    uses_cited = any(d.cited for d in record.documents)
    for position, document in enumerate(record.documents, 1):
        opinion = _opinion(record, document, answer, document.rank or position, uses_cited)
        if opinion is not None:
            yield Opinion(entry, document, *opinion)


def _opinion(
    record: FeedbackRecord, document: RatedDocument, answer: float | None, rank: int, uses_cited: bool
) -> tuple[float, float, str] | None:
    discount = math.log2(rank + 1)
    if document.rating is not None:
        return float(document.rating), RATED, "document"
    if document.helpful is not None:
        return (5.0 if document.helpful else 1.0), HELPFUL, "document"
    if answer is not None and document.cited:
        return answer, CITED, "answer"
    if answer is not None and not uses_cited:
        return answer, SHOWN / discount, "answer"
    used = _use(document)
    if used is not None or answer is not None:
        return used
    failure = max(REASKED * record.reasked, DEAD_END * record.dead_end) / discount
    return (UNSUCCESSFUL_RATING, failure, "signal") if failure else None


def _use(document: RatedDocument) -> tuple[float, float, str] | None:
    if document.copied:
        return IMPLICIT_RATING, COPIED, "signal"
    if document.cited:
        return IMPLICIT_RATING, USED, "signal"
    if document.clicked:
        return IMPLICIT_RATING, CLICKED, "signal"
    return None


def attributed_opinions(entry: int, record: FeedbackRecord, attributor: Attributor) -> Iterator[Opinion]:
    """The answer's rating as an opinion on the indexed documents it quotes or names."""
    rating = answer_rating(record)
    if rating is not None:
        for match in attributor.match(record.response or ""):
            yield Opinion(
                entry, RatedDocument(match.document_id), rating, QUOTED * match.overlap, "attributed"
            )
