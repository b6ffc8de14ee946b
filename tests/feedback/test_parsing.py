from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtune_mcp.core.errors import FeedbackInvalid
from ragtune_mcp.core.feedback.parsing import (
    MAX_DOCUMENT_TEXT,
    SCHEMA,
    feedback_value,
    has_opinion,
    parse_feedback,
)
from ragtune_mcp.core.feedback.records import FeedbackRecord, RatedDocument
from ragtune_mcp.core.workspace import sha256_text

STORED = datetime(2026, 3, 1, 12, tzinfo=UTC)

ORIGINAL = {
    "feedback_id": "0b1e4a6e-6f0a-4c83-9d53-5a0f0f8f7a11",
    "timestamp": 1767225600.25,
    "session_id": "unknown",
    "rating": 5,
    "query": "How do I reset the cache?",
    "response": "<p>Call <code>reset()</code>.</p>",
    "detailed_feedback": {
        "relevance": "very_relevant",
        "completeness": "complete",
        "length": "just_right",
        "comments": "Exactly.",
    },
    "document_ids": [],
    "metadata": {},
    "conversation_context": {"history_length": 0, "is_follow_up": True},
}


def parse(value: Any) -> FeedbackRecord:
    return parse_feedback("key-1", value, STORED)


def reason_of(value: Any) -> str:
    with pytest.raises(FeedbackInvalid) as caught:
        parse(value)
    return caught.value.reason


def entry(**changes: Any) -> dict[str, Any]:
    return {"query": "reset cache", "rating": 4, **changes}


def test_the_original_systems_entry_is_read_in_full():
    record = parse(ORIGINAL)
    assert record.feedback_id == ORIGINAL["feedback_id"]
    assert record.timestamp == datetime(2026, 1, 1, 0, 0, 0, 250000, tzinfo=UTC)
    assert (record.query, record.rating, record.response) == (ORIGINAL["query"], 5, ORIGINAL["response"])
    assert (record.rater, record.comment, record.is_follow_up) == ("", "Exactly.", True)
    assert record.documents == ()
    assert record.extra["detailed_feedback"]["relevance"] == "very_relevant"
    assert record.extra["conversation_context"]["history_length"] == 0


def test_the_conport_local_envelope_is_opened():
    envelope = {
        "key": "a",
        "value": ORIGINAL,
        "metadata": {"rating": 5},
        "timestamp": "2026-01-01T01:00:00",
        "workspace_id": "/w",
    }
    assert parse(envelope) == parse(ORIGINAL)


@pytest.mark.parametrize(
    "wrap", [json.dumps, lambda v: json.dumps(json.dumps(v)), lambda v: "\ufeff " + json.dumps(v)]
)
def test_json_text_reads_like_the_object(wrap):
    assert parse(wrap(ORIGINAL)) == parse(ORIGINAL)


def test_json_text_inside_an_envelope_reads_like_the_object():
    assert parse({"key": "a", "value": json.dumps(ORIGINAL)}) == parse(ORIGINAL)


def test_our_own_entry_is_read_with_documents_and_signals():
    record = parse(
        {
            "schema": SCHEMA,
            "feedback_id": "f1",
            "timestamp": "2026-02-03T04:05:06Z",
            "query_id": "q_1",
            "query": "reset cache",
            "rater": "ann",
            "session_id": "s1",
            "user_satisfaction": "3",
            "documents": [
                {
                    "id": "a.md#x",
                    "text": "Reset it.",
                    "rank": 1,
                    "score": 0.7,
                    "rating": "5",
                    "helpful": True,
                },
                {"id": "b.md#y", "clicked": 1, "cited": "false", "copied": None, "distance": 0.2},
            ],
            "retrieval": {"model_id": "base", "arm": None},
            "team": "docs",
        }
    )
    first, second = record.documents
    assert first == RatedDocument("a.md#x", text="Reset it.", rank=1, score=0.7, rating=5, helpful=True)
    assert (second.clicked, second.cited, second.copied, second.rating) == (True, False, None, None)
    assert (record.rater, record.query_id, record.user_satisfaction, record.rating) == ("ann", "q_1", 3, None)
    assert record.timestamp == datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert record.retrieval == {"model_id": "base", "arm": None}
    assert record.extra == {"session_id": "s1", "team": "docs"}


def test_a_flat_row_rates_its_document_and_not_the_answer():
    record = parse(
        {
            "query": "q",
            "query_id": None,
            "doc_id": "CDC-88",
            "rating": 1,
            "label": "Bad",
            "comment": "No.",
            "rater": 0,
        }
    )
    assert record.documents == (RatedDocument("CDC-88", rating=1),)
    assert (record.rating, record.rater, record.comment, record.query_id) == (None, "0", "No.", None)
    assert record.extra == {"label": "Bad"}
    assert record.feedback_id == "key-1"


def test_a_flat_row_with_only_the_text_gets_an_id_from_the_text():
    first, again = (parse({"query": "q", "document": "Some text.", "rating": 2}) for _ in range(2))
    assert first.documents[0].text == "Some text."
    assert first.documents == again.documents
    assert first.documents != parse({"query": "q", "document": "Other text.", "rating": 2}).documents


def test_document_ids_become_documents_without_opinions():
    record = parse(entry(document_ids=["a", 7]))
    assert record.documents == (RatedDocument("a"), RatedDocument("7"))


def test_ratings_and_signals_given_by_id_join_their_documents():
    record = parse(
        entry(
            rating=None,
            documents=[{"id": "a", "rank": 1}, {"id": "b", "rank": 2}],
            document_ratings={"a": 5, "c": "1"},
            helpful_ids=["b"],
            clicked_ids=["b"],
            cited_ids=["a"],
            copied_ids=["c"],
        )
    )
    assert record.documents == (
        RatedDocument("a", rank=1, rating=5, cited=True),
        RatedDocument("b", rank=2, helpful=True, clicked=True),
        RatedDocument("c", rating=1, copied=True),
    )


def test_reasked_and_dead_end_are_signals_of_the_whole_answer():
    assert parse({"query": "q", "document_ids": ["a"], "reasked": True}).reasked
    assert parse({"query": "q", "document_ids": ["a"], "dead_end": "true"}).dead_end


def test_a_false_signal_is_an_opinion():
    assert has_opinion(parse({"query": "q", "documents": [{"id": "a", "helpful": False}]}))


@pytest.mark.parametrize("given_rating", [4, "4", " 4 ", 4.0, "4.0"])
def test_a_rating_is_read_from_whole_numbers_and_digit_strings(given_rating):
    assert parse(entry(rating=given_rating)).rating == 4


@pytest.mark.parametrize(
    "bad", [0, 6, -1, "five", "0", "6", "4.5", 4.5, math.nan, math.inf, True, False, [4], {"r": 4}, "٤"]
)
def test_anything_else_is_no_rating_and_is_never_rounded(bad):
    assert reason_of(entry(rating=bad)) == "invalid_rating"
    assert reason_of(entry(documents=[{"id": "a", "rating": bad}])) == "invalid_rating"
    assert reason_of(entry(document_ratings={"a": bad})) == "invalid_rating"
    assert reason_of(entry(user_satisfaction=bad)) == "invalid_user_satisfaction"


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (1767225600, datetime(2026, 1, 1, tzinfo=UTC)),
        (1767225600000, datetime(2026, 1, 1, tzinfo=UTC)),
        ("1767225600.5", datetime(2026, 1, 1, 0, 0, 0, 500000, tzinfo=UTC)),
        ("2026-01-01T02:00:00+02:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01T00:00:00", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        (None, STORED),
        ("", STORED),
    ],
)
def test_times_are_read_as_unix_or_iso_and_naive_ones_are_utc(moment, expected):
    assert parse(entry(timestamp=moment)).timestamp == expected


@pytest.mark.parametrize(
    "bad",
    ["yesterday", "2026-13-01", math.nan, math.inf, -5, 10**400, True, [1], {}, "9999-12-31T23:59:59-14:00"],
)
def test_an_impossible_time_is_refused(bad):
    assert reason_of(entry(timestamp=bad)) == "invalid_timestamp"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ('{"query": "q", "rat', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('"{\\"query\\": "', "invalid_json"),
        ("just words", "not_an_object"),
        ("", "not_an_object"),
        (None, "not_an_object"),
        (42, "not_an_object"),
        ([entry()], "not_an_object"),
        ("[1, 2]", "not_an_object"),
        ({}, "empty_query"),
        ({"value": "text"}, "not_an_object"),
        (entry(query="  \n"), "empty_query"),
        (entry(query=None), "empty_query"),
        (entry(query=["q"]), "invalid_query"),
        (entry(rating=None), "no_rating"),
        (entry(rating=None, document_ids=["a"]), "no_rating"),
        (entry(response={"html": "x"}), "invalid_response"),
        (entry(documents="a, b"), "invalid_documents"),
        (entry(documents=[{"text": "no id"}]), "invalid_documents"),
        (entry(documents=[None]), "invalid_documents"),
        (entry(documents=[{"id": "a", "text": 3}]), "invalid_documents"),
        (entry(documents=[{"id": "a", "rank": 0}]), "invalid_documents"),
        (entry(documents=[{"id": "a", "score": math.nan}]), "invalid_documents"),
        (entry(documents=[{"id": "a", "score": 10**400}]), "invalid_documents"),
        (entry(document_ratings=[1]), "invalid_documents"),
        (entry(doc_id="", text=""), "invalid_documents"),
        (entry(documents=[{"id": "a", "clicked": "maybe"}]), "invalid_signal"),
        (entry(helpful_ids="a"), "invalid_signal"),
        (entry(reasked=3), "invalid_signal"),
        (entry(schema="ragtune.feedback/2"), "unknown_schema"),
    ],
)
def test_every_malformed_entry_has_a_countable_reason(value, reason):
    assert reason_of(value) == reason


def test_the_error_repeats_a_long_bad_value_only_in_part():
    with pytest.raises(FeedbackInvalid) as caught:
        parse("{" + "x" * 5_000_000)
    assert len(caught.value.message) < 300


def test_very_long_queries_and_values_are_read_as_they_are():
    assert len(parse(entry(query="why " * 14_500)).query) == 58_000
    assert len(parse(json.dumps(entry(response="x" * 5_000_000))).response or "") == 5_000_000


def test_half_of_a_surrogate_pair_does_not_survive_reading():
    record = parse('{"query": "smile \\ud83d", "rating": 5, "detailed_feedback": {"comments": "\\ude00"}}')
    assert record.query == "smile \ufffd"
    assert record.comment.encode("utf-8") == "\ufffd".encode()


def test_written_document_texts_are_bounded_and_hashed_in_full():
    text = "ü" * (MAX_DOCUMENT_TEXT + 1)
    record = FeedbackRecord("f", "f", STORED, "q", documents=(RatedDocument("a", text=text, rating=3),))
    written = feedback_value(record)["documents"][0]
    assert len(written["text"]) == MAX_DOCUMENT_TEXT
    assert written["text_sha256"] == sha256_text(text)


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_rating = st.none() | st.integers(1, 5)
_signal = st.none() | st.booleans()
_documents = st.builds(
    RatedDocument,
    id=_text.filter(bool),
    text=st.none() | _text,
    rank=st.none() | st.integers(1, 99),
    score=st.none() | st.floats(-1, 1),
    rating=_rating,
    helpful=_signal,
    clicked=_signal,
    cited=_signal,
    copied=_signal,
)
_records = st.builds(
    FeedbackRecord,
    feedback_id=_text.filter(bool),
    key=st.just("key-1"),
    timestamp=st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)).map(lambda m: m.replace(tzinfo=UTC)),
    query=_text.filter(str.strip),
    rating=_rating,
    response=st.none() | _text,
    documents=st.lists(_documents, max_size=3).map(tuple),
    rater=_text,
    query_id=st.none() | _text.filter(bool),
    user_satisfaction=_rating,
    comment=_text,
    is_follow_up=st.booleans(),
    reasked=st.booleans(),
    dead_end=st.booleans(),
    retrieval=st.dictionaries(_text, _text, max_size=2),
    extra=st.dictionaries(st.sampled_from(["team", "label"]), _text, max_size=2),
).filter(has_opinion)


@settings(max_examples=100, deadline=None)
@given(_records)
def test_what_is_written_is_read_back_the_same(record):
    value = json.loads(json.dumps(feedback_value(record)))
    back = parse_feedback("key-1", value, STORED)
    for name in FeedbackRecord.__slots__:
        if name == "documents":
            hashed = tuple(
                RatedDocument(
                    **{
                        **{n: getattr(d, n) for n in RatedDocument.__slots__},
                        "text_sha256": sha256_text(d.text),
                    }
                )
                if d.text is not None
                else d
                for d in record.documents
            )
            assert back.documents == hashed
        elif name == "extra":
            assert record.extra.items() <= back.extra.items()
        else:
            assert getattr(back, name) == getattr(record, name)
    assert feedback_value(back) == value


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    "query rating documents document_ids id text rank score timestamp schema value "
                    "helpful_ids doc_id document_ratings retrieval conversation_context detailed_feedback "
                    "reasked".split()
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_no_value_whatever_raises_anything_but_feedback_invalid(value):
    try:
        record = parse(value)
    except FeedbackInvalid as error:
        assert error.reason
        assert error.message
    else:
        assert has_opinion(record)
        json.dumps(feedback_value(record))
