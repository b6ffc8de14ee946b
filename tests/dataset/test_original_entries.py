"""Entries of the system this one follows: no document ids, HTML answers, one enormous query."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.dataset.samples import BagCorpus
from tests.feedback.samples import NOON

from ragtune_mcp.core.dataset.assemble import Sources, assemble
from ragtune_mcp.core.dataset.options import DatasetOptions
from ragtune_mcp.core.feedback.reader import parse_rows

SECTIONS = {
    "docs/cache.md#reset": (
        "Resetting the cache takes three steps: stop the server, remove the directory named cache below the "
        "data folder, and start the server again; the first request after takes a little longer than usual."
    ),
    "docs/backup.md#schedule": (
        "Backups run every night at two, are kept for thirty days, and are written to the volume that the "
        "setting backup target names; a failed backup is tried again after one hour and reported by mail."
    ),
    "docs/index.md#build": (
        "An index is built in the background from every document that changed since the last build, and "
        "becomes visible to searches in one step when it is complete, never while it is half done."
    ),
}
HTML = "<div class='answer'><h3>Answer</h3><p>{quote}</p><ul><li>Anything else?</li></ul></div>"
OPEN = DatasetOptions(min_positive_samples=0, min_negative_samples=0, min_ratings=0)


def original(number, rating, query, quote, **detail):
    key = f"5f0c0000-0000-4000-8000-{number:012d}"
    value = {
        "feedback_id": key,
        "timestamp": (NOON - timedelta(hours=number)).timestamp(),
        "session_id": "unknown",
        "rating": rating,
        "query": query,
        "response": HTML.format(quote=quote),
        "detailed_feedback": {
            "relevance": "",
            "completeness": None,
            "length": "just_right",
            "comments": "",
            **detail,
        },
        "document_ids": [],
        "metadata": {},
        "conversation_context": {"history_length": 0, "is_follow_up": False},
    }
    return {"key": key, "value": value, "timestamp": NOON.isoformat()}


CACHE, BACKUP, INDEX = SECTIONS.values()
ENTRIES = [
    original(1, 5, "How do I reset the cache?", CACHE),
    original(2, 1, "How do I restore a backup?", BACKUP),
    original(3, 4, "When do searches see new documents?", INDEX.split(",")[1]),
    original(4, 5, "What is the meaning of life?", "I found nothing about that, sorry."),
    original(5, 1, "What about it?", "Which thing do you mean?"),
    original(6, 5, "lorem ipsum " * 4_836, CACHE),
    original(7, 5, "Are backups kept?", BACKUP[:120], relevance="not_relevant"),
]


def outcome(documents):
    batch = parse_rows(ENTRIES, 90, NOON)
    made = assemble(batch, OPEN, Sources(documents=documents), lambda s, m: None)
    return made, made.statistics()


def test_answers_that_quote_indexed_documents_become_attributed_pairs():
    made, statistics = outcome(BagCorpus(SECTIONS))
    assert {(p.query, p.document_id, p.kind) for p in made.pairs} == {
        ("How do I reset the cache?", "docs/cache.md#reset", "positive"),
        ("How do I restore a backup?", "docs/backup.md#schedule", "negative"),
        ("When do searches see new documents?", "docs/index.md#build", "positive"),
        ("Are backups kept?", "docs/backup.md#schedule", "negative"),
    }
    assert made.judged.attributed == set(made.entries)
    assert all(p.weight < 0.25 for p in made.pairs)
    assert statistics["skipped"] == {"follow_up_without_context": 1, "no_documents": 1, "query_too_long": 1}
    assert statistics["feedback_used"] == 4


@pytest.mark.parametrize(
    "documents", [None, BagCorpus({}), BagCorpus({"x": "Nothing that anybody quotes here."})]
)
def test_without_what_they_quote_every_entry_is_counted(documents):
    made, statistics = outcome(documents)
    assert not made.pairs
    assert statistics["skipped"] == {"follow_up_without_context": 1, "no_documents": 5, "query_too_long": 1}
