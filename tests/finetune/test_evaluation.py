import numpy as np
import pytest

from ragtune_mcp.core.finetune.evaluation import compare, rank_corpus, rank_vectors, report, restricted


def unit_rows(n, dim, seed):
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 7, 40, 100])
def test_ranking_equals_a_full_stable_sort(k):
    queries, documents = unit_rows(30, 6, 0), unit_rows(40, 6, 1)
    documents[[3, 17, 29]] = documents[5]
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rank_vectors(queries, documents, k), expected)


def test_ranking_an_empty_corpus_gives_nothing():
    assert rank_vectors(unit_rows(2, 4, 0), np.zeros((0, 4), np.float32), 5).shape == (2, 0)


def test_the_whole_corpus_is_ranked_for_each_query():
    table = {"a": [1, 0], "b": [0, 1], "c": [0.6, 0.8]}
    found = rank_corpus(
        lambda texts: np.array([table[t] for t in texts], np.float32), {"q": "c"}, {"x": "a", "y": "b"}, k=2
    )
    assert found == {"q": ["y", "x"]}


QRELS = {"q1": {"seen": 3.0, "new": 3.0}, "q2": {"new": 2.0}, "q3": {"seen": 1.0}}
BASE = {"q1": ["x", "seen", "new"], "q2": ["new"], "q3": ["x", "y", "seen"]}
TUNED = {"q1": ["seen", "new", "x"], "q2": ["x", "new"], "q3": ["seen", "x", "y"]}


def test_gains_on_rated_and_unseen_documents_are_apart():
    found = report(BASE, TUNED, QRELS, {"seen"}, {})
    assert (found["queries"], found["seen"]["n"], found["unseen"]["n"]) == (3, 2, 2)
    seen = compare(BASE, TUNED, restricted(QRELS, {"seen"}, inside=True)).differences()
    assert found["seen"]["mean"] == pytest.approx(seen.mean())
    assert found["seen"]["mean"] > 0 > compare(BASE, TUNED, {"q2": QRELS["q2"]}).differences()[0]


def test_the_biggest_gain_and_the_worst_regression_come_with_their_rankings():
    found = report(BASE, TUNED, QRELS, {"seen"}, {})
    assert found["gains"][0]["query"] == "q3"
    assert found["gains"][0]["tuned_ranking"] == ["seen", "x", "y"]
    assert [entry["query"] for entry in found["regressions"]] == ["q2"]


def test_a_report_without_judged_queries_holds_no_nan():
    found = report({}, {}, {}, set(), {})
    assert found["queries"] == 0
    assert found["gain"]["ndcg@10"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert found["base"]["ndcg@10"] is None


def test_near_duplicate_queries_count_once():
    qrels = {name: {"d1": 1.0} for name in ("a", "a?", "a!", "b")}
    base = {name: ["d0", "d1"] for name in qrels}
    tuned = {**{name: ["d1"] for name in ("a", "a?")}, "a!": ["d0", "d1"], "b": ["d0", "d1"]}
    groups = {"a": "g", "a?": "g", "a!": "g"}
    found = compare(base, tuned, qrels, groups)
    gained = 1 - 1 / np.log2(3)
    assert found.group_differences() == pytest.approx([2 / 3 * gained, 0])
    alone, together = compare(base, tuned, qrels).gain(), found.gain()
    assert together.mean == alone.mean == pytest.approx(gained / 2)
    assert together.n == alone.n == 4
    # A group drawn twice or not at all: its mean or the other one's, nothing better.
    assert together.high == pytest.approx(2 / 3 * gained)
    assert alone.high == pytest.approx(gained)
    assert report(base, tuned, qrels, set(), groups)["unseen"] == together.to_dict()
