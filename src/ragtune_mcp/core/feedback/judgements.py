"""Opinions pooled: what all users together think of one document for one query.

What single opinions weigh stands in `opinions`; each is halved by `half_life_days` of age, down to
`recency_floor`.

Of one known rater only one opinion on a (query, document) counts, the newest of the strongest kind (of
`SOURCES`); different raters, and raters unknown, are pooled. An opinion of weight w and rating r is evidence
w (r - 3) / 2, between -w and w; on the ratings of FeedbackQA the log odds of relevance follow that line
(docs/training-data.md). With E their sum,

    the pooled weight is |E| / (|E| + 1): a fresh explicit 5 weighs .50, a 4 .33, two 5 .67, two 5 and a 1 .50
    the pooled rating is the weighted median, when one side of 3 holds two thirds of the evidence and most of
    the weight; otherwise the opinions contradict each other and it is their weighted mean, which lies near 3.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from ragtune_mcp.core.feedback.attribution import Attributor
from ragtune_mcp.core.feedback.masking import mask
from ragtune_mcp.core.feedback.opinions import SOURCES, Opinion, attributed_opinions, document_opinions
from ragtune_mcp.core.feedback.pooling import pool_opinions
from ragtune_mcp.core.feedback.records import (
    DocumentSource,
    FeedbackRecord,
    Judgement,
    RatedDocument,
    Rejected,
)
from ragtune_mcp.core.feedback.text import query_key, scrub, strip_html, text_key
from ragtune_mcp.core.workspace import sha256_text

# The reason an entry is counted under when its opinions failed for several, most telling first.
_REASONS = (
    "stale_document",
    "document_unknown",
    "document_too_short",
    "superseded",
    "no_documents",
    "no_rating",
)
MIN_DOCUMENT_CHARS = 3


class DocumentCatalogue(DocumentSource, Protocol):
    """A document source that can be read whole, which attribution needs; implemented by retrieval."""

    def all_texts(self) -> Mapping[str, str]:
        """Id -> current text of every document."""
        ...


@dataclass(frozen=True, slots=True)
class JudgementOptions:
    """How opinions are pooled.

    Attributes:
        attribute_answers: match answers rated without documents to the documents they quote or name.
        half_life_days: age at which an opinion counts half.
        recency_floor: least factor age can leave.
        min_weight: floor of a pooled weight, so that no judgement weighs nothing.
    """

    attribute_answers: bool = True
    half_life_days: float = 180.0
    recency_floor: float = 0.25
    min_weight: float = 0.01


class Contradiction(NamedTuple):
    """Opinions on both sides of 3 about one (query, document); resolved when one side has its majority."""

    query: str
    document_id: str
    ratings: tuple[float, ...]
    rating: float
    weight: float
    resolved: bool
    feedback_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """The outcome of `judge`: every record's id is in `used` or in `rejected`, never both.

    Attributes:
        judgements: ordered by query, then document id.
        masked: replacements in document texts, by masking rule.
        attributed: entries whose documents were found by quotation.
        superseded: opinions replaced by a newer one of the same rater.
        given: pooled opinions by their rating, before pooling.
        raters: known raters among them.
        period: when the oldest and the newest of them were given.
    """

    judgements: tuple[Judgement, ...]
    rejected: tuple[Rejected, ...]
    used: frozenset[str]
    contradictions: tuple[Contradiction, ...] = ()
    masked: Counter[str] = field(default_factory=Counter)
    attributed: frozenset[str] = frozenset()
    superseded: int = 0
    given: Counter[float] = field(default_factory=Counter)
    raters: int = 0
    period: tuple[datetime, datetime] | None = None


class _Placed(NamedTuple):
    """An opinion whose document has a text; the key is what is pooled."""

    entry: int
    key: tuple[str, str]
    rating: float
    weight: float
    source: str


def judge(
    records: Sequence[FeedbackRecord],
    documents: DocumentCatalogue | None,
    options: JudgementOptions | None = None,
    now: datetime | None = None,
) -> Judged:
    """Pool all opinions of each (query, document).

    Args:
        records: cleaned entries; their order does not matter.
        documents: current texts; None where nothing is indexed: then only texts inside the entries are known.
        options: weights of age and whether to attribute.
        now: the moment age counts from; None for the newest entry, which makes the result a function of the
            entries.

    Returns:
        The judgements and what became of each entry.
    """
    options = options or JudgementOptions()
    records = sorted(records, key=lambda r: (r.timestamp, r.feedback_id, r.key))
    now = now or max((r.timestamp for r in records), default=None)
    pool = _Pool(records, documents)
    catalogue = documents if options.attribute_answers else None
    opinions = pool.opinions(None if catalogue is None else Attributor(catalogue.all_texts()))
    pool.load_texts(opinions)
    placed = [p for opinion in opinions if (p := pool.place(opinion)) is not None]
    placed = pool.supersede(placed)
    heard = sorted({p.entry for p in placed})
    recency = [_recency(record.timestamp, now, options) for record in records]
    judgements, contradictions = pool.pooled(placed, recency, options)
    used = frozenset(records[p.entry].feedback_id for p in placed)
    return Judged(
        tuple(judgements),
        tuple(pool.rejected(used)),
        used,
        tuple(contradictions),
        pool.masked,
        frozenset(records[o.entry].feedback_id for o in opinions if o.source == "attributed") & used,
        pool.superseded,
        Counter(p.rating for p in placed),
        len({records[i].rater for i in heard} - {""}),
        (records[heard[0]].timestamp, records[heard[-1]].timestamp) if heard else None,
    )


def _why_none(record: FeedbackRecord, attributor: Attributor | None) -> str:
    if record.documents:
        return f"{len(record.documents)} documents, none with a rating or signal of its own"
    if not record.response:
        return "no documents and no answer to match"
    return (
        "no index to match the answer with"
        if attributor is None
        else "the answer quotes and names no indexed document"
    )


def _recency(moment: datetime, now: datetime | None, options: JudgementOptions) -> float:
    age_days = 0.0 if now is None else max(0.0, (now - moment).total_seconds() / 86400)
    return max(options.recency_floor, math.exp2(-age_days / options.half_life_days))


class _Pool:
    """Documents resolved to texts, opinions grouped, and the reasons of those that led nowhere."""

    def __init__(self, records: Sequence[FeedbackRecord], documents: DocumentSource | None) -> None:
        self.records = records
        self.source = documents
        self.masked: Counter[str] = Counter()
        self.superseded = 0
        self._failures: dict[int, Counter[str]] = defaultdict(Counter)
        self._details: dict[tuple[int, str], str] = {}
        self._reference: dict[str, str] = {}
        self._text_of: dict[str, str] = {}
        self._canonical: dict[str, str] = {}
        self._query_keys = [query_key(record.query) for record in records]
        self._hashes: dict[str, str] = {}

    def opinions(self, attributor: Attributor | None) -> list[Opinion]:
        """What the entries say about documents, listed or attributed; entries that say nothing are noted."""
        opinions: list[Opinion] = []
        for i, record in enumerate(self.records):
            found = list(document_opinions(i, record))
            if not record.documents and attributor is not None:
                found = list(attributed_opinions(i, record, attributor))
            if not found:
                reason = "no_rating" if record.documents else "no_documents"
                self.fail(i, reason, _why_none(record, attributor))
            opinions += found
        return opinions

    def fail(self, entry: int, reason: str, detail: str) -> None:
        self._failures[entry][reason] += 1
        self._details.setdefault((entry, reason), detail)

    def load_texts(self, opinions: Iterable[Opinion]) -> None:
        """Give every document one text: the current one, else the newest an entry carried; then one id per
        text.
        """
        carried: dict[str, str] = {}
        ids: set[str] = set()
        for opinion in opinions:
            document = opinion.document
            ids.add(document.id)
            if document.text:
                # Opinions come in order of time: the newest text stays. Its hash may be that of a longer
                # text.
                carried[document.id] = document.text
                self._hashes[document.id] = (document.text_sha256 or sha256_text(document.text)).lower()
        current = self.source.texts(sorted(ids)) if self.source is not None else {}
        self._reference = carried | current
        self._hashes |= {doc_id: sha256_text(text) for doc_id, text in current.items()}
        prepared: dict[str, str] = {}
        first_with: dict[str, str] = {}
        for doc_id in sorted(self._reference):
            raw = self._reference[doc_id]
            if raw not in prepared:
                # Indexed texts stay as the model will see them; an entry may carry the HTML a page showed.
                plain = scrub(raw) if doc_id in current else strip_html(scrub(raw))
                prepared[raw] = mask(plain, self.masked)
            text = self._text_of[doc_id] = prepared[raw]
            self._canonical[doc_id] = first_with.setdefault(text_key(text), doc_id)

    def place(self, opinion: Opinion) -> _Placed | None:
        """The opinion under its (query, document), or None with the reason noted."""
        document = opinion.document
        text = self._text_of.get(document.id)
        if text is None:
            self.fail(
                opinion.entry,
                "document_unknown",
                f"document {document.id[:80]!r} is not indexed and has no text",
            )
        elif len(text) < MIN_DOCUMENT_CHARS:
            self.fail(
                opinion.entry,
                "document_too_short",
                f"document {document.id[:80]!r} holds {len(text)} characters",
            )
        elif self._is_stale(document):
            self.fail(
                opinion.entry,
                "stale_document",
                f"document {document.id[:80]!r} has changed since it was rated",
            )
        else:
            key = (self._query_keys[opinion.entry], self._canonical[document.id])
            return _Placed(opinion.entry, key, opinion.rating, opinion.weight, opinion.source)
        return None

    def supersede(self, placed: Sequence[_Placed]) -> list[_Placed]:
        """Of one entry or one known rater, keep a single opinion per (query, document): the newest of the
        strongest kind.
        """
        best: dict[tuple[str, str, tuple[str, str]], _Placed] = {}
        for opinion in placed:
            record = self.records[opinion.entry]
            who = ("rater", record.rater) if record.rater else ("entry", str(opinion.entry))
            slot = (*who, opinion.key)
            rival = best.get(slot)
            if rival is None or self._outranks(opinion, rival):
                best[slot] = opinion
        kept = sorted(best.values(), key=lambda o: (o.entry, o.key))
        alive = {(o.entry, o.key) for o in kept}
        for opinion in placed:
            if (opinion.entry, opinion.key) not in alive:
                self.superseded += 1
                detail = "the same rater judged the same document later, or more plainly"
                self.fail(opinion.entry, "superseded", detail)
        return kept

    @staticmethod
    def _outranks(new: _Placed, old: _Placed) -> bool:
        # Opinions come in order of time. What someone said about the document itself is not overruled by what
        # they later say of an answer that showed it, nor words by a mere signal.
        if new.entry == old.entry:
            return new.weight > old.weight
        return SOURCES.index(new.source) <= SOURCES.index(old.source)

    def pooled(
        self, placed: Sequence[_Placed], recency: Sequence[float], options: JudgementOptions
    ) -> tuple[list[Judgement], list[Contradiction]]:
        """One judgement per key, ordered by query then document id."""
        groups: dict[tuple[str, str], list[_Placed]] = defaultdict(list)
        for opinion in placed:
            groups[opinion.key].append(opinion)
        spelling = self._spellings(placed)
        judgements: list[Judgement] = []
        contradictions: list[Contradiction] = []
        for key in sorted(groups):
            opinions = groups[key]
            weights = [o.weight * recency[o.entry] for o in opinions]
            rating, weight, resolved = pool_opinions(
                [o.rating for o in opinions], weights, options.min_weight
            )
            ids = tuple(sorted({self.records[o.entry].feedback_id for o in opinions}))
            query = spelling[key[0]]
            judgements.append(
                Judgement(
                    query=query,
                    document_id=key[1],
                    document=self._text_of[key[1]],
                    rating=rating,
                    weight=weight,
                    source=min((o.source for o in opinions), key=SOURCES.index),
                    n_opinions=len(opinions),
                    feedback_ids=ids,
                    timestamp=max(self.records[o.entry].timestamp for o in opinions),
                    resolved=resolved,
                )
            )
            ratings = tuple(sorted(o.rating for o in opinions))
            if ratings[0] < 3 < ratings[-1]:
                contradictions.append(Contradiction(query, key[1], ratings, rating, weight, resolved, ids))
        return judgements, contradictions

    def rejected(self, used: frozenset[str]) -> Iterator[Rejected]:
        """Entries none of whose opinions counts, each under its most telling reason."""
        for i, record in enumerate(self.records):
            if record.feedback_id in used:
                continue
            reasons = self._failures[i]
            reason = next(r for r in _REASONS if r in reasons)
            detail = self._details[i, reason]
            if sum(reasons.values()) > 1:
                detail += f" ({', '.join(f'{n} {r}' for r, n in sorted(reasons.items()))})"
            yield Rejected(record.feedback_id, reason, detail)

    def _is_stale(self, document: RatedDocument) -> bool:
        reference = self._reference[document.id]
        if document.text == reference:
            return False
        if document.text_sha256:
            return document.text_sha256.lower() != self._hashes[document.id]
        if document.text is None:
            return False
        # Entries may store only the beginning of a long document.
        return not text_key(reference).startswith(
            text_key(document.text).rstrip("\u2026 ").removesuffix("...")
        )

    def _spellings(self, placed: Sequence[_Placed]) -> dict[str, str]:
        """Query key -> the spelling most entries used; ties go to the smaller text."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for opinion in placed:
            counts[opinion.key[0]][self.records[opinion.entry].query] += 1
        return {key: min(c, key=lambda s: (-c[s], s)) for key, c in counts.items()}
