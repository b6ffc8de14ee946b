import numpy as np

from ragtune_mcp.core.finetune.examples import RankingExample
from ragtune_mcp.core.finetune.mining import mine_negatives


def unit(*angles):
    return np.array([[np.cos(a), np.sin(a)] for a in angles], dtype=np.float32)


EXAMPLE = RankingExample("q", "answer", (), frozenset({"answer", "known"}), 1.0)
# Angles from the query: the answer at .5, so its cosine is .878.
TEXTS = ["too close", "answer", "near", "known", "near", "far", "opposite", "q"]
DOCUMENTS = unit(0.4, 0.5, 0.8, 0.85, 0.9, 1.3, 3.0, 0.7)


def mined(**options):
    options = {"per_example": 2, "margin": 0.05, **options}
    [example] = mine_negatives([EXAMPLE], unit(0.0), unit(0.5), DOCUMENTS, TEXTS, **options)
    return example.negatives


def test_the_nearest_documents_below_the_margin_are_taken_once_each():
    assert mined() == ("near", "far")


def test_known_answers_the_query_itself_and_likely_answers_are_left_out():
    assert set(mined(per_example=10)) == {"near", "far", "opposite"}


def test_a_margin_of_zero_lets_everything_below_the_positive_through():
    documents = unit(0.52, 1.0)
    [strict] = mine_negatives(
        [EXAMPLE], unit(0.0), unit(0.5), documents, ["a", "b"], per_example=1, margin=0.05
    )
    [open_] = mine_negatives(
        [EXAMPLE], unit(0.0), unit(0.5), documents, ["a", "b"], per_example=1, margin=0.0
    )
    assert (strict.negatives, open_.negatives) == (("b",), ("a",))


def test_the_nearest_can_be_skipped():
    assert mined(per_example=1, skip=1) == ("far",)


def test_none_are_mined_when_none_are_asked_for():
    assert mined(per_example=0) == ()


def test_a_small_corpus_gives_fewer_negatives():
    [example] = mine_negatives(
        [EXAMPLE], unit(0.0), unit(0.5), unit(0.5), ["answer"], per_example=4, margin=0.05
    )
    assert example.negatives == ()
