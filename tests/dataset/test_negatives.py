from __future__ import annotations

import pytest
from tests.dataset.samples import VectorCorpus, pair, question

from ragtune_mcp.core.dataset.negatives import (
    EVERYWHERE,
    MiningRules,
    easy_negatives,
    mine_hard_negatives,
    similar_query_negatives,
    taboo_documents,
)

Q = "how is the cache reset"
TEXTS = {i: f"Text of {i}." for i in ("pos", "near", "twin", "good", "easy", "far", "low")}
SCORES = {"near": 0.8, "pos": 0.7, "twin": 0.69, "good": 0.6, "easy": 0.5, "far": 0.1, "low": 0.4}
POSITIVE = pair(Q, TEXTS["pos"], document_id="pos", weight=0.6, feedback_ids=("f1",))


def mined(pairs=(POSITIVE,), scores=SCORES, texts=TEXTS, taboo=None, **rules):
    return mine_hard_negatives(
        list(pairs), VectorCorpus(texts, {Q: scores}), MiningRules(**rules), taboo=taboo or {}
    )


def test_what_scores_near_or_above_the_positive_is_left_out():
    found = mined(per_query=2)
    assert [p.document_id for p in found.pairs] == ["good", "easy"]
    assert (found.margin, found.calibrated_on) == (0.1, 0)
    assert found.counts == {"mined": 1}


def test_without_the_filter_the_nearest_are_taken():
    assert [p.document_id for p in mined(per_query=2, filtered=False).pairs] == ["near", "twin"]


def test_a_mined_negative_carries_the_lineage_of_its_positive():
    negative = mined(per_query=1).pairs[0]
    assert (negative.kind, negative.label, negative.rating) == ("hard_negative", 0, None)
    assert (negative.query, negative.weight, negative.feedback_ids, negative.query_group) == (
        Q,
        0.6,
        ("f1",),
        "g1",
    )


def test_with_several_positives_the_lowest_sets_the_ceiling():
    second = pair(Q, TEXTS["easy"], document_id="easy")
    assert [p.document_id for p in mined([POSITIVE, second], per_query=4).pairs] == ["low", "far"]


def test_judged_and_taboo_documents_are_never_mined():
    low = pair(Q, TEXTS["low"], document_id="low", kind="negative")
    found = mined([POSITIVE, low], taboo={"g1": {"good"}}, per_query=9)
    assert [p.document_id for p in found.pairs] == ["easy", "far"]


def test_copies_of_a_positive_and_of_each_other_are_not_mined():
    texts = {**TEXTS, "good": "Text  of pos.", "easy": "Text of far."}
    assert [p.document_id for p in mined(texts=texts, per_query=9).pairs] == ["easy", "low"]


@pytest.mark.parametrize(
    ("judged", "indexed"),
    [
        ("Ask  Ann about it.", "Ask Ann about it."),
        ("Ask [EMAIL].", "Ask ann@mail.com."),
        ("The cache.", "<p>The <b>cache</b>.</p>"),
        ("<p>The <b>cache</b>.</p>", "The cache."),
    ],
    ids=["white space", "masked", "carried without HTML", "indexed with HTML"],
)
def test_a_taboo_document_is_not_used_under_another_id(judged, indexed):
    similar = "how is the cache reset now"
    relevant = pair(similar, judged, document_id="elsewhere")
    taboo = taboo_documents([relevant], {})
    low = pair(similar + " please", indexed, document_id="low2", kind="negative")
    assert [p.document_id for p in mined(texts={**TEXTS, "good": indexed}, taboo=taboo).pairs] == [
        "easy",
        "low",
        "far",
    ]
    if indexed != "Ask ann@mail.com.":  # pairs hold masked texts
        assert not similar_query_negatives([POSITIVE, low], 4, taboo=taboo)
        other = pair(question(1), indexed, document_id="other", query_group="g2")
        assert {p.query for p in easy_negatives([POSITIVE, other], 9, 1, taboo=taboo)} == {question(1)}


def test_what_is_taboo_everywhere_is_used_for_no_group():
    assert "good" not in {p.document_id for p in mined(taboo={EVERYWHERE: {"good"}}).pairs}


def test_a_query_whose_positive_is_not_retrieved_gives_none():
    found = mined(scores={k: v for k, v in SCORES.items() if k != "pos"})
    assert not found.pairs
    assert found.counts == {"positive_not_retrieved": 1}


def test_a_query_with_nothing_below_the_ceiling_is_counted():
    assert mined(scores={"pos": 0.7, "twin": 0.69}).counts == {"nothing_left": 1}


def test_secrets_in_mined_documents_are_masked():
    texts = {**TEXTS, "good": "Write to ann@mail.com."}
    assert mined(texts=texts, per_query=1).pairs[0].document == "Write to [EMAIL]."


def test_test_queries_are_not_mined_and_queries_are_asked_in_batches():
    queries = [question(i) for i in range(10)]
    pairs = [
        pair(q, TEXTS["pos"], document_id="pos", query_group=q, split="test" if i < 3 else "train")
        for i, q in enumerate(queries)
    ]
    corpus = VectorCorpus(TEXTS, dict.fromkeys(queries, SCORES))
    told = []
    found = mine_hard_negatives(
        pairs, corpus, MiningRules(batch=3), taboo={}, progress=lambda s, m: told.append(s)
    )
    assert {p.query for p in found.pairs} == set(queries[3:])
    assert corpus.calls == [3, 3, 1]
    assert told == sorted(told) and told[-1] == 1


def _rated_queries(count, low_ratio, high_ratio):
    """Queries with two positives and a low: the ratios of the lower positive's score."""
    pairs, scores = [], {}
    for i in range(count):
        q = question(i)
        pairs += [
            pair(q, TEXTS["pos"], document_id="pos", query_group=q),
            pair(q, TEXTS["twin"], document_id="twin", query_group=q),
            pair(q, TEXTS["low"], document_id="low", query_group=q, kind="negative"),
        ]
        scores[q] = {"pos": 0.8, "twin": 0.8 * high_ratio, "low": 0.8 * high_ratio * low_ratio}
    return pairs, VectorCorpus(TEXTS, scores)


@pytest.mark.parametrize(
    ("low", "high", "margin"),
    [
        (0.9, 0.99, 0.05),  # lows lie apart from positives: the smallest margin does
        (0.7, 0.88, 0.15),  # positives reach down to .88 of each other: the ceiling goes below
        (0.99, 0.6, 0.3),  # positives and lows cannot be told apart: the largest
    ],
)
def test_the_margin_is_calibrated_on_what_users_rated(low, high, margin):
    pairs, corpus = _rated_queries(20, low, high)
    found = mine_hard_negatives(pairs, corpus, MiningRules(), taboo={})
    assert (found.margin, found.calibrated_on) == (margin, 60)


def test_too_few_ratings_leave_the_default_margin():
    pairs, corpus = _rated_queries(9, 0.7, 0.88)
    assert mine_hard_negatives(pairs, corpus, MiningRules(), taboo={}).calibrated_on == 0


def test_a_low_rating_for_a_similar_query_becomes_a_hard_negative():
    other = "how is the cache reset now"
    low = pair(other, "Bad.", document_id="bad", kind="negative", weight=0.5, feedback_ids=("f2",))
    (found,) = similar_query_negatives([POSITIVE, low], 4, taboo={})
    assert (found.query, found.document_id, found.kind, found.feedback_ids) == (
        Q,
        "bad",
        "hard_negative",
        ("f2",),
    )
    assert 0.35 <= found.weight < 0.5


@pytest.mark.parametrize(
    ("query", "taboo"),
    [("something else entirely", {}), ("how is the cache reset now", {"g1": {"bad"}}), (Q, {})],
    ids=["another question", "relevant in the group", "the query itself"],
)
def test_other_low_ratings_are_not_borrowed(query, taboo):
    low = pair(query, "Bad.", document_id="bad", kind="negative")
    assert not similar_query_negatives([POSITIVE, low], 4, taboo=taboo)


def test_easy_negatives_are_spread_and_repeatable():
    pairs = [pair(question(i), f"Doc {i}.", document_id=f"d{i}", query_group=f"g{i}") for i in range(6)]
    found = easy_negatives(pairs, 8, seed=1, taboo={})
    assert len(found) == 8
    assert len({p.query for p in found}) == 6
    assert all(p.kind == "easy_negative" and p.document_id != f"d{p.query_group[1:]}" for p in found)
    assert easy_negatives(list(reversed(pairs)), 8, seed=1, taboo={}) == found
    assert easy_negatives(pairs, 8, seed=2, taboo={}) != found


def test_easy_negatives_end_where_documents_end():
    pairs = [pair(question(i), f"Doc {i}.", document_id=f"d{i}", query_group=f"g{i}") for i in range(3)]
    assert len(easy_negatives(pairs, 100, seed=1, taboo={"g0": {"d1"}})) == 5


def test_taboo_are_positives_of_the_group_and_the_undecided():
    pairs = [POSITIVE, pair(Q, "Bad.", document_id="bad", kind="negative")]
    assert taboo_documents(pairs, {"g1": {"maybe"}, "g2": {"x"}}) == {
        "g1": {"maybe", "pos", "Text of pos."},
        "g2": {"x"},
    }
