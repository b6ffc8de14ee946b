from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.feedback.samples import NOON, Library, entry, rated

from ragtune_mcp.core.feedback.judgements import JudgementOptions, judge
from ragtune_mcp.core.feedback.records import RatedDocument
from ragtune_mcp.core.workspace import sha256_text

QUOTE = "Stop the server, delete the folder named cache and start the server again before the next request."


def judgement(*records, documents=None, **options):
    (found,) = judge(records, documents, JudgementOptions(**options)).judgements
    return found


def reasons(judged):
    return {r.feedback_id: r.reason for r in judged.rejected}


def test_a_single_rating_becomes_one_judgement():
    found = judgement(rated("a", {"d": 5}))
    assert (found.query, found.document_id, found.document) == ("how is the cache reset", "d", "All about d.")
    assert (found.rating, found.weight, found.source, found.n_opinions) == (5, 0.5, "document", 1)
    assert found.feedback_ids == ("a",)
    assert found.timestamp == NOON


@pytest.mark.parametrize(
    ("ratings", "rating", "weight"),
    [
        ((5, 5), 5, 2 / 3),
        ((5, 4), 4.5, 0.6),
        ((5, 5, 1), 5, 0.5),
        ((1, 1, 2), 1, 2.5 / 3.5),
        ((4,), 4, 1 / 3),
        ((5, 3, 3), 3, 0.5),
    ],
)
def test_ratings_of_different_raters_are_pooled_as_evidence(ratings, rating, weight):
    records = [rated(f"f{i}", {"d": r}, rater=f"r{i}") for i, r in enumerate(ratings)]
    found = judgement(*records)
    assert found.rating == rating
    assert found.weight == pytest.approx(weight, abs=1e-6)
    assert found.n_opinions == len(ratings)


def test_opinions_without_a_majority_stay_near_three_and_are_shown():
    judged = judge([rated("a", {"d": 5}, rater="x"), rated("b", {"d": 1}, rater="y")], None)
    assert judged.judgements[0].rating == 3
    assert judged.judgements[0].weight == 0.01
    (shown,) = judged.contradictions
    assert (shown.ratings, shown.resolved, shown.feedback_ids) == ((1, 5), False, ("a", "b"))


@pytest.mark.parametrize("ratings", [(5, 2), (4, 1), (4, 4, 1), (5, 4, 1), (2, 2, 5, 5)])
def test_a_stronger_word_alone_is_no_majority(ratings):
    judged = judge([rated(f"f{i}", {"d": r}, rater=f"r{i}") for i, r in enumerate(ratings)], None)
    assert not judged.contradictions[0].resolved
    assert 2 < judged.judgements[0].rating < 4


def test_a_contradiction_with_a_majority_is_resolved_and_shown():
    judged = judge([rated(f"f{i}", {"d": r}, rater=f"x{i}") for i, r in enumerate((5, 5, 1))], None)
    assert judged.contradictions[0].resolved
    assert judged.judgements[0].rating == 5


def test_an_old_opinion_gives_way_to_a_recent_one():
    old, new = rated("a", {"d": 1}, rater="x", days=-360), rated("b", {"d": 4}, rater="y")
    assert judge([old, new], None).contradictions[0].resolved
    assert judgement(old, new).rating == 4


def test_weight_halves_with_age_down_to_a_floor():
    ages = (0, 180, 360, 5000)
    weights = []
    for days in ages:
        judged = judge([rated("a", {"d": 5}, days=-days)], None, now=NOON)
        weights.append(judged.judgements[0].weight)
    assert weights == pytest.approx([w / (w + 1) for w in (1, 0.5, 0.25, 0.25)], abs=1e-6)


def test_only_the_same_raters_earlier_opinion_is_superseded():
    judged = judge(
        [rated("a", {"d": 1}, rater="x"), rated("b", {"d": 5}, rater="x", days=1), rated("c", {"d": 5})], None
    )
    assert judged.judgements[0].feedback_ids == ("b", "c")
    assert reasons(judged) == {"a": "superseded"}
    assert judged.superseded == 1


def test_unknown_raters_never_supersede_each_other():
    assert judgement(rated("a", {"d": 4}), rated("b", {"d": 5}, days=1)).n_opinions == 2


def test_a_later_click_does_not_overrule_the_same_raters_rating():
    click = entry("b", documents=(RatedDocument("d", text="All about d.", clicked=True),), rater="x", days=1)
    found = judgement(rated("a", {"d": 1}, rater="x"), click)
    assert (found.rating, found.feedback_ids) == (1, ("a",))


def shown(feedback_id, rating, *, rank=5, days=0.0):
    """An answer rated as a whole, with the document among those it shows."""
    documents = (RatedDocument("d", text="All about d.", rank=rank),)
    return entry(feedback_id, rating=rating, documents=documents, rater="x", days=days)


def test_a_later_rating_of_an_answer_does_not_overrule_the_same_raters_rating_of_the_document():
    records = [rated("a", {"d": 1}, rater="x"), shown("b", 5, days=1)]
    judged = judge(records, None)
    assert [(j.rating, j.feedback_ids) for j in judged.judgements] == [(1, ("a",))]
    assert reasons(judged) == {"b": "superseded"}


def test_of_one_kind_the_same_raters_newest_opinion_counts_whatever_its_rank():
    found = judgement(shown("a", 1, rank=1), shown("b", 5, rank=9, days=1))
    assert (found.rating, found.feedback_ids) == (5, ("b",))


def test_a_later_rating_of_the_document_overrules_the_same_raters_rating_of_an_answer():
    found = judgement(shown("a", 5, rank=1), rated("b", {"d": 1}, rater="x", days=1))
    assert (found.rating, found.feedback_ids) == (1, ("b",))


@pytest.mark.parametrize(
    ("document", "fields", "rating", "weight", "source"),
    [
        ({"rating": 2}, {"rating": 5}, 2, 0.5, "document"),
        ({"helpful": True}, {}, 5, 0.7, "document"),
        ({"helpful": False}, {}, 1, 0.7, "document"),
        ({"cited": True}, {"rating": 5}, 5, 0.5, "answer"),
        ({}, {"rating": 5}, 5, 0.3, "answer"),
        ({"rank": 3}, {"rating": 5}, 5, 0.15, "answer"),
        ({"copied": True}, {}, 4, 0.2, "signal"),
        ({"clicked": True}, {}, 4, 0.075, "signal"),
        ({"cited": True}, {}, 4, 0.1, "signal"),
        ({}, {"reasked": True}, 2, 0.1, "signal"),
        ({}, {"dead_end": True}, 2, 0.05, "signal"),
        ({}, {"dead_end": True, "reasked": True}, 2, 0.1, "signal"),
        ({"rank": 3}, {"reasked": True}, 2, 0.05, "signal"),
        ({"clicked": True}, {"reasked": True}, 4, 0.075, "signal"),
        ({}, {"rating": 1, "extra": {"detailed_feedback": {"relevance": "very_relevant"}}}, 5, 0.3, "answer"),
        ({}, {"rating": 5, "extra": {"detailed_feedback": {"relevance": 1}}}, 1, 0.3, "answer"),
        ({}, {"rating": 5, "extra": {"detailed_feedback": {"relevance": ""}}}, 5, 0.3, "answer"),
    ],
)
def test_each_kind_of_opinion_has_its_rating_and_weight(document, fields, rating, weight, source):
    record = entry("a", documents=(RatedDocument("d", **{"text": "All about d.", **document}),), **fields)
    found = judgement(record)
    evidence = weight if source != "document" or "helpful" in document else abs(rating - 3) / 2
    assert (found.rating, found.source) == (rating, source)
    assert found.weight == pytest.approx(evidence / (evidence + 1), abs=1e-6)


def test_an_answer_that_cites_some_documents_says_nothing_about_the_others():
    record = entry(
        "a",
        rating=5,
        documents=(RatedDocument("c", text="Cited.", cited=True), RatedDocument("o", text="Other.")),
    )
    assert [j.document_id for j in judge([record], None).judgements] == ["c"]


def test_the_current_text_wins_over_the_one_in_the_entry():
    record = entry("a", documents=(RatedDocument("d", text="The cache is", rating=5),))
    assert (
        judgement(record, documents=Library({"d": "The cache is reset at noon."})).document
        == "The cache is reset at noon."
    )


@pytest.mark.parametrize(
    "document",
    [
        RatedDocument("d", text="Quite another text.", rating=5),
        RatedDocument("d", text_sha256=sha256_text("Quite another text."), rating=5),
    ],
    ids=["by text", "by hash"],
)
def test_a_document_that_changed_since_it_was_rated_is_stale(document):
    judged = judge([entry("a", documents=(document,))], Library({"d": "The cache is reset at noon."}))
    assert not judged.judgements
    assert reasons(judged) == {"a": "stale_document"}


def test_a_document_with_the_recorded_hash_is_fresh():
    document = RatedDocument("d", text_sha256=sha256_text("The cache.").upper(), rating=5)
    assert judgement(entry("a", documents=(document,)), documents=Library({"d": "The cache."})).rating == 5


def test_without_an_index_the_newest_text_of_a_document_decides_what_is_stale():
    old = entry("a", documents=(RatedDocument("d", text="First version.", rating=1),))
    new = entry("b", documents=(RatedDocument("d", text="Second version.", rating=5),), days=1)
    judged = judge([new, old], None)
    assert judged.judgements[0].feedback_ids == ("b",)
    assert reasons(judged) == {"a": "stale_document"}


def test_a_document_that_left_the_index_keeps_the_text_of_the_entry():
    assert judgement(rated("a", {"d": 5}), documents=Library({"other": "x"})).document == "All about d."


def test_a_document_nobody_knows_the_text_of_is_counted():
    assert reasons(judge([rated("a", {"d": 5}, texts=False)], None)) == {"a": "document_unknown"}


def test_an_entry_with_one_usable_document_is_used():
    record = entry(
        "a", documents=(RatedDocument("x", rating=5), RatedDocument("d", text="Known text.", rating=1))
    )
    judged = judge([record], None)
    assert judged.used == {"a"}
    assert not judged.rejected


def test_two_ids_of_one_text_are_one_document():
    first = entry("a", documents=(RatedDocument("d1", text="Same  text.", rating=5),))
    second = entry("b", documents=(RatedDocument("d0", text="Same text.", rating=1),))
    found = judgement(first, second)
    assert (found.document_id, found.n_opinions) == ("d0", 2)


def test_spellings_of_one_query_are_pooled_under_the_commonest():
    records = [
        rated("a", {"d": 5}, "Cache reset?"),
        rated("b", {"d": 5}, "cache reset"),
        rated("c", {"d": 5}, "cache reset"),
    ]
    found = judgement(*records)
    assert (found.query, found.n_opinions) == ("cache reset", 3)


def test_secrets_in_documents_are_masked_and_counted():
    judged = judge([entry("a", documents=(RatedDocument("d", text="Ask ann@mail.com.", rating=5),))], None)
    assert judged.judgements[0].document == "Ask [EMAIL]."
    assert judged.masked == {"email": 1}


def test_html_of_a_carried_text_is_stripped_but_an_indexed_text_stays_as_encoded():
    html = "<p>The <b>cache</b>.</p>"
    record = entry("a", documents=(RatedDocument("d", text=html, rating=5),))
    assert judgement(record).document == "The cache."
    assert judgement(record, documents=Library({"d": html})).document == html


def test_an_answer_without_documents_is_attributed_to_what_it_quotes():
    library = Library(
        {"reset": QUOTE, "other": "Nothing of the kind is said in this one, it is about weather only."}
    )
    record = entry("a", rating=5, response=f"You asked: {QUOTE} That is all.")
    judged = judge([record], library)
    (found,) = judged.judgements
    assert (found.document_id, found.source, found.rating) == ("reset", "attributed", 5)
    assert found.weight < 0.21
    assert judged.attributed == {"a"}


@pytest.mark.parametrize(
    ("response", "documents", "options", "detail"),
    [
        (QUOTE, None, {}, "no index"),
        (QUOTE, {"reset": QUOTE}, {"attribute_answers": False}, "no index"),
        ("I do not know.", {"reset": QUOTE}, {}, "quotes and names no indexed document"),
        (None, {"reset": QUOTE}, {}, "no answer"),
    ],
)
def test_an_answer_that_cannot_be_attributed_is_counted_with_the_reason(response, documents, options, detail):
    library = Library(documents) if documents else None
    judged = judge([entry("a", rating=5, response=response)], library, JudgementOptions(**options))
    assert reasons(judged) == {"a": "no_documents"}
    assert detail in judged.rejected[0].detail


RATINGS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(["", "x", "y"]), st.sampled_from("de"), st.floats(0, 400)),
    max_size=12,
)


@given(RATINGS, st.randoms(use_true_random=False))
def test_every_entry_is_used_or_rejected_and_order_does_not_matter(ratings, rng):
    records = [rated(f"f{i}", {d: r}, rater=who, days=-age) for i, (r, who, d, age) in enumerate(ratings)]
    judged = judge(records, None)
    assert judged.used | set(reasons(judged)) == {r.feedback_id for r in records}
    assert not judged.used & set(reasons(judged))
    assert all(1 <= j.rating <= 5 and 0 < j.weight < 1 for j in judged.judgements)
    shuffled = list(records)
    rng.shuffle(shuffled)
    assert judge(shuffled, None) == judged


def test_ten_thousand_opinions_on_one_document_are_pooled():
    rng = random.Random(0)
    base = rated("x", {"d": 5})
    records = [
        replace(
            base, feedback_id=f"f{i}", documents=(replace(base.documents[0], rating=rng.choice((4, 5, 5))),)
        )
        for i in range(10_000)
    ]
    found = judgement(*records)
    assert (found.rating, found.n_opinions) == (5, 10_000)
    assert found.weight > 0.99
