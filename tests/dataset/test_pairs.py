from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ragtune_mcp.core.dataset.pairs import PairRules, rated_pairs
from ragtune_mcp.core.feedback.records import Judgement


def judgement(rating, query="q", document_id="d", weight=0.5):
    return Judgement(
        query,
        document_id,
        f"About {document_id}.",
        rating,
        weight,
        "document",
        1,
        (f"f-{document_id}",),
        datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("rating", "kind", "label"),
    [
        (5, "positive", 1),
        (4, "positive", 0.75),
        (4.5, "positive", 0.875),
        (2, "negative", 0.25),
        (1, "negative", 0),
    ],
)
def test_ratings_beyond_the_thresholds_become_graded_pairs(rating, kind, label):
    (pair,) = rated_pairs([judgement(rating)], PairRules()).pairs
    assert (pair.kind, pair.label, pair.rating, pair.weight) == (kind, label, rating, 0.5)
    assert pair.feedback_ids == ("f-d",)


@pytest.mark.parametrize("rating", [2.01, 3, 3.99])
def test_ratings_between_the_thresholds_are_neutral(rating):
    made = rated_pairs([judgement(rating)], PairRules())
    assert not made.pairs
    assert len(made.neutral) == 1


def test_thresholds_can_be_moved():
    made = rated_pairs(
        [judgement(3, document_id="a"), judgement(2, document_id="b")], PairRules(positive=3, negative=1)
    )
    assert [p.kind for p in made.pairs] == ["positive"]
    assert [j.document_id for j in made.neutral] == ["b"]


@pytest.mark.parametrize("rating", [5, 3.5, 1])
def test_an_unresolved_contradiction_makes_no_pair_whatever_the_thresholds(rating):
    made = rated_pairs([replace(judgement(rating), resolved=False)], PairRules(positive=3.1, negative=2.9))
    assert (made.pairs, len(made.neutral)) == ((), 1)


def test_of_a_heavy_query_only_the_weightiest_pairs_of_each_side_are_kept():
    positives = [judgement(5, document_id=f"p{i}", weight=0.1 + i / 100) for i in range(12)]
    negatives = [judgement(1, document_id=f"n{i}") for i in range(12)]
    made = rated_pairs(positives + negatives, PairRules(per_query=10))
    kept = {p.document_id for p in made.pairs}
    assert len(kept) == 20
    assert {j.document_id for j in made.capped} == {"p0", "p1", "n8", "n9"}
