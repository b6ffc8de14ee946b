from __future__ import annotations

import random

import pytest
from tests.feedback.samples import entry, rated

from ragtune_mcp.core.feedback.cleaning import CleaningRules, clean, known_rater
from ragtune_mcp.core.feedback.records import FeedbackBatch, RatedDocument, Rejected


def cleaned(*records, rejected=(), rules=None):
    return clean(FeedbackBatch(tuple(records), tuple(rejected)), rules)


def reasons(result):
    return {r.feedback_id: r.reason for r in result.batch.rejected}


@pytest.mark.parametrize(
    ("query", "fields", "reason"),
    [
        ("<p> </p>", {}, "empty_query"),
        ("?!", {}, "empty_query"),
        ("a" * 1001, {}, "query_too_long"),
        ("word " * 11_605, {}, "query_too_long"),
        ("x" * 200_000, {}, "query_too_long"),
        ("and what about that?", {"is_follow_up": True}, "follow_up_without_context"),
        ("why?", {"is_follow_up": True}, "follow_up_without_context"),
        ("how do I configure it", {"is_follow_up": True}, "follow_up_without_context"),
        ("what about it?", {}, "follow_up_without_context"),
        ("a fine question", {"rating": None}, "no_rating"),
    ],
)
def test_an_entry_that_cannot_teach_is_rejected_by_reason(query, fields, reason):
    fields = {"rating": 4, **fields}
    assert reasons(cleaned(entry("a", query, **fields))) == {"a": reason}


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("cache", {}),
        ("why?", {}),
        ("how does the retry limit interact with timeouts", {"is_follow_up": True}),
        ("如何重置缓存", {"is_follow_up": True}),
        ("Wie setze ich den Cache zurück", {"is_follow_up": True}),
    ],
)
def test_a_short_or_independent_question_is_kept(query, fields):
    assert cleaned(entry("a", query, rating=4, **fields)).batch.read == 1
    assert not reasons(cleaned(entry("a", query, rating=4, **fields)))


def test_that_a_document_was_not_clicked_is_no_opinion():
    record = entry("a", documents=(RatedDocument("d", clicked=False),))
    assert reasons(cleaned(record)) == {"a": "no_rating"}


def test_texts_come_back_plain_and_masked():
    record = entry(
        "a",
        "<p>Who is <b>ann@mail.com</b>?</p>",
        rating=4,
        comment="call +44 20 7946 0958",
        response="<p>She <i>is</i></p>",
    )
    result = cleaned(record)
    (kept,) = result.batch.records
    assert (kept.query, kept.comment, kept.response) == ("Who is [EMAIL]?", "call [PHONE]", "She is")
    assert result.masked == {"email": 1, "phone": 1}


def test_what_is_rejected_while_reading_stays_rejected_and_everything_is_counted():
    result = cleaned(entry("a", rating=4), entry("b", "?", rating=4), rejected=[Rejected("c", "too_old")])
    assert reasons(result) == {"b": "empty_query", "c": "too_old"}
    assert result.batch.read == 3


def test_the_same_opinion_twice_within_minutes_counts_once():
    twice = [rated("a", {"d": 5}, rater="ann"), rated("b", {"d": 5}, days=1 / 1440, rater="ann")]
    assert reasons(cleaned(*twice)) == {"b": "duplicate"}


@pytest.mark.parametrize(
    "fields",
    [{"rater": "ann"}, {"rater": "anonymous", "extra": {"session_id": "s1"}}, {"query_id": "q1"}],
    ids=["rater", "session", "search"],
)
def test_an_opinion_sent_twice_counts_once_where_the_sender_can_be_told(fields):
    twice = [rated("a", {"d": 5}, **fields), rated("b", {"d": 5}, **fields)]
    assert reasons(cleaned(*twice)) == {"b": "duplicate"}


@pytest.mark.parametrize("rater", ["", "unknown"])
def test_equal_opinions_of_unknown_raters_are_several_peoples(rater):
    # As an import without times and raters holds them: three annotators who agree.
    alike = [rated(i, {"d": 5}, rater=rater, extra={"session_id": "unknown"}) for i in "abc"]
    assert reasons(cleaned(*alike)) == {}


@pytest.mark.parametrize(
    "second",
    [
        rated("b", {"d": 5}, days=1, rater="ann"),
        rated("b", {"d": 5}, rater="bob"),
        rated("b", {"d": 4}, rater="ann"),
        rated("b", {"e": 5}, rater="ann"),
        rated("b", {"d": 5}, rater="ann", comment="again"),
    ],
    ids=["later", "another rater", "another rating", "another document", "another comment"],
)
def test_opinions_that_differ_are_no_duplicates(second):
    assert not reasons(cleaned(rated("a", {"d": 5}, rater="ann"), second))


def test_of_one_feedback_id_under_two_keys_the_newest_stays():
    old, new = rated("a", {"d": 1}, key="k1"), rated("a", {"d": 5}, key="k2", days=1)
    result = cleaned(new, old)
    assert [r.key for r in result.batch.records] == ["k2"]
    assert reasons(result) == {"a": "duplicate"}


def _rater(name, rating, count, queries=10):
    return [
        rated(f"{name}{i}", {f"d{i}": rating}, f"question number {i % queries} of many", rater=name)
        for i in range(count)
    ]


def test_one_of_several_raters_who_rates_everything_alike_is_left_out():
    result = cleaned(*_rater("always", 5, 20), rated("x", {"d": 2}, rater="other"))
    assert set(reasons(result).values()) == {"uniform_rater"}
    assert len(reasons(result)) == 20
    assert "gave 5 to all 20" in result.batch.rejected[0].detail


@pytest.mark.parametrize(
    "records",
    [
        _rater("few", 5, 19),
        _rater("onequestion", 5, 20, queries=9),
        [*_rater("varied", 5, 20), rated("y", {"d": 4}, rater="varied")],
    ],
    ids=["too few ratings", "too few queries", "not all alike"],
)
def test_uniformity_needs_a_minimum_to_count(records):
    assert not reasons(cleaned(*records, rated("x", {"d": 2}, rater="other")))


def test_the_only_rater_there_is_is_kept():
    assert not reasons(cleaned(*_rater("only", 5, 30)))


@pytest.mark.parametrize("name", ["", "unknown", " Anonymous ", "null"])
def test_names_that_stand_for_nobody_are_no_rater(name):
    assert known_rater(name) == ""
    assert not reasons(cleaned(*_rater(name, 5, 30), rated("x", {"d": 2}, rater="other")))


def test_the_order_of_the_input_does_not_matter():
    records = [
        *_rater("always", 5, 25),
        *_rater("ann", 4, 5),
        entry("z", "?", rating=1),
        entry("q", rating=3),
    ]
    shuffled = records.copy()
    random.Random(1).shuffle(shuffled)
    assert cleaned(*shuffled) == cleaned(*records)


def test_limits_can_be_changed():
    rules = CleaningRules(max_query_chars=10)
    assert reasons(cleaned(entry("a", "eleven chars", rating=4), rules=rules)) == {"a": "query_too_long"}
