from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.finetune.examples import (
    grades,
    group_of,
    hold_out_groups,
    is_positive,
    labelled_pairs,
    ranking_examples,
    triplets,
)

GOOD = TrainingPair("q", "good", 1.0, rating=5.0, query_group="g")


def test_answers_of_near_duplicate_queries_are_shared():
    other = replace(GOOD, query="q?", document="also good")
    examples = ranking_examples([GOOD, other])
    assert [example.answers for example in examples] == [{"good", "also good"}] * 2


def test_a_repeated_positive_is_one_example_with_its_greatest_weight():
    [example] = ranking_examples(
        [replace(GOOD, weight=0.2), replace(GOOD, weight=0.9), replace(GOOD, weight=0.4)]
    )
    assert example.weight == 0.9


def test_a_triplets_negative_is_a_document_rated_low_for_the_query():
    low = replace(GOOD, document="bad", label=0.0, rating=1.0, kind="negative")
    assert triplets([GOOD, low], seed=0) == [("q", "good", "bad")]


def test_without_a_low_rating_the_negative_is_another_querys_answer():
    other = replace(GOOD, query="r", document="elsewhere", query_group="h")
    assert triplets([GOOD, other], seed=0) == [("q", "good", "elsewhere"), ("r", "elsewhere", "good")]


def test_an_answer_of_the_query_is_never_its_negative():
    rated_high_and_low = [
        GOOD,
        replace(GOOD, document="two"),
        replace(GOOD, document="two", kind="hard_negative", label=0.0),
    ]
    assert triplets(rated_high_and_low, seed=0) == []


def test_labelled_pairs_hold_each_pair_once():
    assert labelled_pairs([GOOD, GOOD, replace(GOOD, document="bad", label=0.25)]) == [
        ("q", "good", 1.0),
        ("q", "bad", 0.25),
    ]


@given(st.integers(2, 60), st.floats(0.05, 0.8), st.integers(0, 1000))
def test_held_out_groups_never_straddle(queries, share, seed):
    pairs = make_dataset(make_corpus(), queries).pairs
    kept, held = hold_out_groups(pairs, share, seed)
    assert {group_of(pair) for pair in kept}.isdisjoint(group_of(pair) for pair in held)
    assert len(kept) + len(held) == len(pairs)
    assert any(map(is_positive, kept))
    assert any(map(is_positive, held))


def test_gains_are_the_rating_above_two_and_mined_documents_have_none():
    pairs = [
        GOOD,
        replace(GOOD, document="fair", rating=3.5, label=0.625),
        replace(GOOD, document="bad", rating=1.0, label=0.0, kind="negative"),
        replace(GOOD, document="mined", rating=None, label=0.0, kind="hard_negative"),
        replace(GOOD, document="gone", rating=5.0),
        replace(GOOD, query="only bad", document="bad", rating=2.0, label=0.25, kind="negative"),
    ]
    ids = {text: f"id-{text}" for text in ("good", "fair", "bad", "mined")}
    assert grades(pairs, ids) == {"q": {"id-good": 3.0, "id-fair": 1.5, "id-bad": 0.0}}


def test_what_may_answer_the_query_is_no_negative_in_any_wording():
    corpus = {"a": "call 212-555-0187", "b": "undecided", "c": "elsewhere"}
    masked = replace(GOOD, document="call [PHONE]", document_id="a")
    [example] = ranking_examples([masked], corpus, {"g": {"b", "gone"}}.get)
    assert example.answers == {"call [PHONE]", "call 212-555-0187", "undecided"}


def test_synthetic_pairs_are_never_held_out():
    rated = [replace(GOOD, query=f"q{i}", query_group=f"g{i}") for i in range(10)]
    synthetic = [
        replace(
            GOOD, query=f"s{i}", query_group=f"g{i}" if i < 10 else f"s{i}", rating=None, kind="synthetic"
        )
        for i in range(20)
    ]
    kept, held = hold_out_groups([*rated, *synthetic], 0.5, 0)
    assert len(held) == 5
    assert {pair.kind for pair in held} == {"positive"}
    assert {group_of(pair) for pair in kept}.isdisjoint(group_of(pair) for pair in held)
    assert sum(pair.kind == "synthetic" for pair in kept) == 15
