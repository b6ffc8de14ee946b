"""Which entries can teach anything, and their texts made safe to write.

Every rule is counted by its reason; an entry that fails one is `Rejected` under the first in this order:

    no_rating                   neither a rating nor a signal (click, citation, copy, re-asked, dead end)
    empty_query                 no letter or digit is left after mark-up is stripped
    query_too_long              more than `max_query_chars`: the model sees its first 256 tokens only
    follow_up_without_context   marked as a follow-up and too short, or pointing at what was said before
    duplicate                   the same feedback id twice, or the same opinion twice within minutes from
                                one known rater or session, or on one search
    uniform_rater               one of several raters who gives every document the same rating
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from ragtune_mcp.core.feedback.masking import mask
from ragtune_mcp.core.feedback.records import FeedbackBatch, FeedbackRecord, RatedDocument, Rejected
from ragtune_mcp.core.feedback.text import plain_query, query_key, scrub

# Session ids and raters that name nobody.
_NOBODY = frozenset({"", "unknown", "anonymous", "none", "null", "undefined", "default", "n/a"})
_STOPWORDS = frozenset(
    """a about all also am an and any are as at be been but by can could did do does for from get had has have
    how i if in into is just like me more my no not of ok okay on one or other our please so some still sure
    tell than thank thanks then there to too up us was we well what when where which who why will with would
    yes you your""".split()
)
_POINTING = frozenset(
    "it its that this they them their these those he she him her former latter same above again else".split()
)
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """Limits of the rules.

    Attributes:
        max_query_chars: about 256 tokens of English, what the base model reads.
        follow_up_words: content words a follow-up question needs to stand alone.
        duplicate_window: two equal entries closer than this are one, sent twice.
        uniform_rater_min: opinions of one rater before uniformity says anything. An honest rater whose
            documents
            deserve one and the same rating with probability .8 gives 20 such ratings in a row in 1 case of
            87.
        uniform_rater_queries: distinct queries among them.
    """

    max_query_chars: int = 1000
    follow_up_words: int = 3
    duplicate_window: timedelta = timedelta(minutes=10)
    uniform_rater_min: int = 20
    uniform_rater_queries: int = 10


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Entries that passed, those that did not, and how many texts each masking rule changed."""

    batch: FeedbackBatch
    masked: Counter[str]


def clean(batch: FeedbackBatch, rules: CleaningRules | None = None) -> Cleaned:
    """Apply the rules; queries and comments come back plain and masked, documents free of control characters.

    The answer's text is kept only where there are no documents, to be matched to some. Document texts keep
    their mark-up and are masked where they are chosen (`judge`), so that they can still be compared with the
    indexed text.

    Args:
        batch: entries as read.
        rules: limits; None for the defaults.

    Returns:
        The entries in the order of their time, then id, whatever the order of the input; the same number as
        came in.
    """
    rules = rules or CleaningRules()
    masked: Counter[str] = Counter()
    kept: list[FeedbackRecord] = []
    rejected = list(batch.rejected)
    for record in batch.records:
        outcome = _clean_one(record, rules, masked)
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            kept.append(outcome)
    kept.sort(key=lambda r: (r.timestamp, r.feedback_id, r.key))
    for rule in (_same_id, _duplicates, _uniform_raters):
        found = rule(kept, rules)
        rejected += found.values()
        kept = [record for i, record in enumerate(kept) if i not in found]
    rejected.sort(key=lambda r: (r.feedback_id, r.reason, r.detail))
    return Cleaned(FeedbackBatch(tuple(kept), tuple(rejected)), masked)


def known_rater(rater: str) -> str:
    """The rater, or "" where the name stands for nobody ("unknown", "anonymous", ...)."""
    name = rater.strip()
    return "" if name.lower() in _NOBODY else name


def _has_opinion(record: FeedbackRecord) -> bool:
    # Stricter than the reader: that something was not clicked is no opinion.
    if record.rating is not None or record.reasked or record.dead_end:
        return True
    return any(
        d.rating is not None or d.helpful is not None or d.clicked or d.cited or d.copied
        for d in record.documents
    )


def _clean_one(
    record: FeedbackRecord, rules: CleaningRules, masked: Counter[str]
) -> FeedbackRecord | Rejected:
    def reject(reason: str, detail: str) -> Rejected:
        return Rejected(record.feedback_id, reason, detail)

    if not _has_opinion(record):
        return reject("no_rating", "no rating and no signal for the answer or a document")
    # Stripping mark-up shortens a query at most to its text: a hundred times the limit is not a query.
    if len(record.query) > 100 * rules.max_query_chars:
        return reject("query_too_long", f"{len(record.query)} characters, at most {rules.max_query_chars}")
    query = plain_query(record.query)
    if not any(c.isalnum() for c in query):
        return reject(
            "empty_query", f"{len(record.query)} characters, none of them a letter or digit of text"
        )
    if len(query) > rules.max_query_chars:
        return reject("query_too_long", f"{len(query)} characters, at most {rules.max_query_chars}")
    if not _stands_alone(query, record.is_follow_up, rules.follow_up_words):
        return reject("follow_up_without_context", mask(query)[:80])
    return replace(
        record,
        query=mask(query, masked),
        comment=mask(plain_query(record.comment), masked) if record.comment else "",
        response=plain_query(record.response) if record.response and not record.documents else None,
        rater=known_rater(record.rater),
        documents=tuple(_scrubbed(d) for d in record.documents),
    )


def _scrubbed(document: RatedDocument) -> RatedDocument:
    text = scrub(document.text) if document.text else None
    doc_id = scrub(document.id)
    if text == document.text and doc_id == document.id:
        return document
    return replace(document, id=doc_id, text=text)


def _stands_alone(query: str, is_follow_up: bool, least: int) -> bool:
    words = [w.lower() for w in _WORD.findall(query)]
    content = [w for w in words if w not in _STOPWORDS and w not in _POINTING]
    if not content and any(w in _POINTING for w in words):
        return False
    if not is_follow_up:
        return True
    return len(content) >= least and not any(w in _POINTING for w in words)


def _opinions(record: FeedbackRecord) -> list[int]:
    ratings = [d.rating for d in record.documents if d.rating is not None]
    return ratings or ([] if record.rating is None else [record.rating])


def _content(record: FeedbackRecord) -> tuple[object, ...]:
    documents = tuple(
        sorted(
            (d.id, d.rating or 0, d.helpful is True, bool(d.clicked), bool(d.cited), bool(d.copied))
            for d in record.documents
        )
    )
    signals = (record.reasked, record.dead_end)
    return (
        query_key(record.query),
        record.rating,
        documents,
        record.comment,
        record.response or "",
        *signals,
    )


def _sender(record: FeedbackRecord) -> tuple[str, str] | None:
    """Who sent the entry, as far as one can tell; None for nobody known: equal opinions may be several people's."""
    session = record.extra.get("session_id")
    session = known_rater(session) if isinstance(session, str) else ""
    for kind, name in (("rater", record.rater), ("session", session), ("search", record.query_id)):
        if name:
            return kind, name
    return None


def _same_id(records: Sequence[FeedbackRecord], rules: CleaningRules) -> dict[int, Rejected]:
    newest = {record.feedback_id: i for i, record in enumerate(records)}
    return {
        i: Rejected(
            record.feedback_id,
            "duplicate",
            f"key {record.key[:80]!r} repeats the feedback id of a newer entry",
        )
        for i, record in enumerate(records)
        if newest[record.feedback_id] != i
    }


def _duplicates(records: Sequence[FeedbackRecord], rules: CleaningRules) -> dict[int, Rejected]:
    # In order of time: of a run of equal entries the first stays, each later one within the window of the
    # last goes.
    last: dict[tuple[object, ...], tuple[int, str]] = {}
    found: dict[int, Rejected] = {}
    for i, record in enumerate(records):
        sender = _sender(record)
        if sender is None:
            continue
        content = (sender, *_content(record))
        seen = last.get(content)
        if seen is not None and record.timestamp - records[seen[0]].timestamp <= rules.duplicate_window:
            found[i] = Rejected(record.feedback_id, "duplicate", f"same opinion as {seen[1]}")
            last[content] = (i, seen[1])
        else:
            last[content] = (i, record.feedback_id)
    return found


def _uniform_raters(records: Sequence[FeedbackRecord], rules: CleaningRules) -> dict[int, Rejected]:
    entries: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        if record.rater and _opinions(record):
            entries[record.rater].append(i)
    if len(entries) < 2:
        # The only rater there is: nobody to be told apart from.
        return {}
    found: dict[int, Rejected] = {}
    for rater, indices in entries.items():
        uniform = _uniform_value(records[i] for i in indices)
        queries = {query_key(records[i].query) for i in indices}
        if (
            uniform is None
            or uniform[1] < rules.uniform_rater_min
            or len(queries) < rules.uniform_rater_queries
        ):
            continue
        detail = f"rater {mask(rater)[:40]!r} gave {uniform[0]} to all {uniform[1]} rated"
        found |= {i: Rejected(records[i].feedback_id, "uniform_rater", detail) for i in indices}
    return found


def _uniform_value(records: Iterable[FeedbackRecord]) -> tuple[int, int] | None:
    """The one rating all opinions share and their number; None when they differ."""
    ratings = [rating for record in records for rating in _opinions(record)]
    return (ratings[0], len(ratings)) if ratings and len(set(ratings)) == 1 else None
