"""Reading and writing the `UserFeedback` entry.

Three shapes are read, each as an object or as JSON text (some clients send objects as text):

* ours, `ragtune.feedback/1`, a superset of the next;
* the original system's entry, also inside its `.conport_local` envelope `{"key", "value", ...}`;
* one rating of one document as a flat row: `{"query", "doc_id", "rating", ...}`.

Implicit signals stand in `documents[]` (helpful, clicked, cited, copied), in the lists `helpful_ids`,
`clicked_ids`, `cited_ids`, `copied_ids`, and for the whole answer in `reasked` and `dead_end`.

Whatever is malformed raises `FeedbackInvalid` with a countable reason; nothing is guessed. Long values are
read as they are: cleaning decides about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.errors import FeedbackInvalid
from ragtune_mcp.core.feedback import fields
from ragtune_mcp.core.feedback.records import FeedbackRecord, RatedDocument
from ragtune_mcp.core.workspace import sha256_text

CATEGORY = "UserFeedback"
SCHEMA = "ragtune.feedback/1"
# Rows are read whole, so the text of a document is bounded; its hash is that of the full text.
MAX_DOCUMENT_TEXT = 4000

_SCHEMA_FAMILY = "ragtune.feedback/"
_SIGNALS = ("helpful", "clicked", "cited", "copied")
_DOCUMENT_FIELDS = RatedDocument.__slots__
_ENTRY_KEYS = frozenset(
    "schema feedback_id timestamp query_id query response rating documents document_ids document_ratings "
    "rater user_satisfaction comment is_follow_up reasked dead_end retrieval "
    "helpful_ids clicked_ids cited_ids copied_ids".split()
)
_FLAT_IDS = frozenset(("doc_id", "document_id"))
_FLAT_KEYS = _FLAT_IDS | {"text", "document", *_SIGNALS}


def parse_feedback(key: str, value: Any, timestamp: datetime) -> FeedbackRecord:
    """Read one `UserFeedback` entry of any known shape.

    Args:
        key: the ConPort key; the feedback id where the entry names none.
        value: the entry: an object, or its JSON text.
        timestamp: when ConPort stored the entry, aware UTC; used where the entry has no time of its own.

    Returns:
        The record; at least one opinion or signal is in it.

    Raises:
        FeedbackInvalid: with the reason invalid_json, not_an_object, unknown_schema, invalid_query,
            empty_query, invalid_rating, invalid_user_satisfaction, invalid_response, invalid_documents,
            invalid_signal, invalid_timestamp or no_rating; the message repeats the value, shortened.
    """
    entry = unwrap_entry(value)
    flat = is_flat(entry)
    record = FeedbackRecord(
        feedback_id=fields.name(entry.get("feedback_id")) or key,
        key=key,
        timestamp=fields.moment(entry.get("timestamp"), timestamp),
        query=fields.query(entry.get("query")),
        rating=None if flat else fields.rating(entry.get("rating"), "rating"),
        response=fields.optional_text(entry.get("response"), "invalid_response", "response"),
        documents=(_flat_document(entry),) if flat else _documents(entry),
        rater=_rater(entry),
        query_id=fields.name(entry.get("query_id")) or None,
        user_satisfaction=fields.rating(
            entry.get("user_satisfaction"), "user_satisfaction", reason="invalid_user_satisfaction"
        ),
        comment=_comment(entry),
        is_follow_up=_is_follow_up(entry),
        reasked=bool(fields.signal(entry.get("reasked"), "reasked")),
        dead_end=bool(fields.signal(entry.get("dead_end"), "dead_end")),
        retrieval=fields.mapping(entry.get("retrieval")),
        extra=_extra(entry, _ENTRY_KEYS | _FLAT_KEYS if flat else _ENTRY_KEYS),
    )
    if not has_opinion(record):
        raise FeedbackInvalid("no_rating", f"The entry {key!r} holds no rating and no signal.")
    return record


def unwrap_entry(value: Any) -> Mapping[str, Any]:
    """The entry as an object: decoded where it is JSON text, taken out of its `{"key", "value"}` envelope.

    Args:
        value: the value of a `UserFeedback` row.

    Returns:
        The entry.

    Raises:
        FeedbackInvalid: reason invalid_json, not_an_object or unknown_schema.
    """
    entry = _decoded(value)
    if isinstance(entry, Mapping) and "query" not in entry and "value" in entry:
        entry = _decoded(entry["value"])
    if not isinstance(entry, Mapping):
        raise fields.invalid("not_an_object", "the entry", entry)
    schema = entry.get("schema")
    if isinstance(schema, str) and schema.startswith(_SCHEMA_FAMILY) and schema != SCHEMA:
        raise fields.invalid("unknown_schema", "schema", schema)
    return entry


def is_flat(entry: Mapping[str, Any]) -> bool:
    """Whether the entry is one rating of one document, the document named by `doc_id` or given as text."""
    named = not _FLAT_IDS.isdisjoint(entry) or "document" in entry
    return named and "documents" not in entry and "document_ids" not in entry


def has_opinion(record: FeedbackRecord) -> bool:
    """Whether anything in the record says how good the answer or a document was."""
    return (
        record.rating is not None
        or record.reasked
        or record.dead_end
        or any(
            document.rating is not None or any(getattr(document, name) is not None for name in _SIGNALS)
            for document in record.documents
        )
    )


def feedback_value(record: FeedbackRecord) -> dict[str, Any]:
    """The record as a `ragtune.feedback/1` entry, the value to store under its key.

    `parse_feedback` reads it back to the same record, except that texts of documents are cut to
    `MAX_DOCUMENT_TEXT` characters, their hash is filled in, and `extra` gains the entry's fixed keys.
    """
    context = {"history_length": None, **fields.mapping(record.extra.get("conversation_context"))}
    detailed: dict[str, Any] = {"relevance": None, "completeness": None, "length": None}
    detailed.update(fields.mapping(record.extra.get("detailed_feedback")))
    return {
        "session_id": None,
        "metadata": {},
        **record.extra,
        "schema": SCHEMA,
        "feedback_id": record.feedback_id,
        "timestamp": to_iso(record.timestamp),
        "query_id": record.query_id,
        "query": record.query,
        "response": record.response,
        "rating": record.rating,
        "rater": record.rater,
        "user_satisfaction": record.user_satisfaction,
        "detailed_feedback": {**detailed, "comments": record.comment},
        "document_ids": [document.id for document in record.documents],
        "documents": [_document_value(document) for document in record.documents],
        "retrieval": dict(record.retrieval),
        "conversation_context": {**context, "is_follow_up": record.is_follow_up},
        "reasked": record.reasked,
        "dead_end": record.dead_end,
    }


def _decoded(value: Any) -> Any:
    # Twice: a client that sends objects as text may wrap an entry that already was text.
    for _ in range(2):
        if isinstance(value, str):
            text = value.strip("\ufeff \t\r\n")
            if text[:1] in ("{", "[", '"'):
                value = fields.decode_json(text)
    return value


def _documents(entry: Mapping[str, Any]) -> tuple[RatedDocument, ...]:
    listed = entry.get("documents") or entry.get("document_ids") or ()
    if not isinstance(listed, list | tuple):
        raise fields.invalid("invalid_documents", "documents", listed)
    documents = [_document(item) for item in listed]
    opinions = _opinions_by_id(entry)
    if not opinions:
        return tuple(documents)
    # The same id may stand twice in an entry: both are kept, the list opinions go to the first.
    merged = []
    for document in documents:
        found = opinions.pop(document.id, None)
        merged.append(RatedDocument(**{**_document_fields(document), **found}) if found else document)
    merged.extend(RatedDocument(id=id_, **found) for id_, found in opinions.items())
    return tuple(merged)


def _opinions_by_id(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `document_ratings` and the `<signal>_ids` lists say: document id -> fields of `RatedDocument`."""
    ratings = entry.get("document_ratings") or {}
    if not isinstance(ratings, Mapping):
        raise fields.invalid("invalid_documents", "document_ratings", ratings)
    opinions: dict[str, dict[str, Any]] = {}
    for id_, given in ratings.items():
        rating = fields.rating(given, f"the rating of document {id_!r}")
        opinions[fields.document_id(id_)] = {"rating": rating}
    for signal in _SIGNALS:
        ids = entry.get(f"{signal}_ids") or ()
        if not isinstance(ids, list | tuple):
            raise fields.invalid("invalid_signal", f"{signal}_ids", ids)
        for id_ in ids:
            opinions.setdefault(fields.document_id(id_), {})[signal] = True
    return opinions


def _document(item: Any) -> RatedDocument:
    if not isinstance(item, Mapping):
        return RatedDocument(id=fields.document_id(item))
    id_ = fields.document_id(item.get("id"))
    return RatedDocument(
        id=id_,
        text=fields.optional_text(item.get("text"), "invalid_documents", f"the text of document {id_!r}"),
        text_sha256=fields.name(item.get("text_sha256")) or None,
        rank=fields.rank(item.get("rank")),
        score=fields.score(item.get("score")),
        rating=fields.rating(item.get("rating"), f"the rating of document {id_!r}"),
        helpful=fields.signal(item.get("helpful"), "helpful"),
        clicked=fields.signal(item.get("clicked"), "clicked"),
        cited=fields.signal(item.get("cited"), "cited"),
        copied=fields.signal(item.get("copied"), "copied"),
    )


def _flat_document(entry: Mapping[str, Any]) -> RatedDocument:
    id_ = fields.name(entry.get("doc_id")) or fields.name(entry.get("document_id"))
    text = entry.get("document") or entry.get("text") or None
    if not id_ and isinstance(text, str):
        id_ = f"text-{sha256_text(text)[:16]}"
    signals = {name: entry.get(name) for name in _SIGNALS}
    return _document({**signals, "id": id_, "text": text, "rating": entry.get("rating")})


def _document_value(document: RatedDocument) -> dict[str, Any]:
    value = _document_fields(document)
    if document.text is not None:
        value["text"] = document.text[:MAX_DOCUMENT_TEXT]
        value["text_sha256"] = document.text_sha256 or sha256_text(document.text)
    return value


def _document_fields(document: RatedDocument) -> dict[str, Any]:
    return {name: getattr(document, name) for name in _DOCUMENT_FIELDS}


def _rater(entry: Mapping[str, Any]) -> str:
    session = fields.name(entry.get("session_id"))
    return fields.name(entry.get("rater")) or ("" if session == "unknown" else session)


def _comment(entry: Mapping[str, Any]) -> str:
    detailed = fields.mapping(entry.get("detailed_feedback"))
    return fields.name(detailed.get("comments")) or fields.name(entry.get("comment"))


def _is_follow_up(entry: Mapping[str, Any]) -> bool:
    context = fields.mapping(entry.get("conversation_context"))
    return bool(fields.signal(entry.get("is_follow_up", context.get("is_follow_up")), "is_follow_up"))


def _extra(entry: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in known}
