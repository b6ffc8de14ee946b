import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, nDCG

from ragtune_mcp.core.finetune.metrics import MEASURES, evaluate_run

ORACLE = {
    "ndcg@10": nDCG @ 10,
    "mrr@10": RR @ 10,
    "p@5": P @ 5,
    "p@10": P @ 10,
    "r@5": R @ 5,
    "r@10": R @ 10,
    "map@100": AP @ 100,
}


def random_case(seed):
    rng = np.random.default_rng(seed)
    documents = [f"d{index}" for index in range(int(rng.integers(3, 140)))]
    qrels, run = {}, {}
    for query in (f"q{index}" for index in range(int(rng.integers(1, 6)))):
        judged = rng.permutation(documents)[: int(rng.integers(1, len(documents)))]
        qrels[query] = {document: int(rng.integers(0, 4)) for document in judged}
        run[query] = list(rng.permutation(documents)[: int(rng.integers(0, len(documents) + 1))])
    return qrels, run


@given(st.integers(0, 2**31))
def test_every_measure_equals_ir_measures_on_random_rankings(seed):
    qrels, run = random_case(seed)
    found = evaluate_run(run, qrels)
    scored = {q: {d: float(-rank) for rank, d in enumerate(ranking)} for q, ranking in run.items() if ranking}
    expected = {
        (value.query_id, str(value.measure)): value.value
        for value in ir_measures.iter_calc(list(ORACLE.values()), qrels, scored)
    }
    for name, oracle in ORACLE.items():
        for query, value in found[name].items():
            assert value == pytest.approx(expected.get((query, str(oracle)), 0.0), abs=1e-9), (name, query)


def test_the_published_ndcg_example_is_reproduced():
    qrels = {"q1": {"d1": 3, "d2": 2, "d5": 1}, "q2": {"d3": 1, "d9": 2}, "q3": {"d7": 1}}
    run = {"q1": ["d2", "d4", "d1", "d5", "d8"], "q2": ["d9", "d1", "d2", "d3"], "q3": ["d1", "d2", "d7"]}
    found = evaluate_run(run, qrels)
    assert list(found["ndcg@10"].values()) == pytest.approx([0.82545, 0.923885, 0.5], abs=1e-5)
    assert np.mean(list(found["mrr@10"].values())) == pytest.approx(0.777778, abs=1e-6)


def test_a_query_without_a_relevant_document_is_left_out():
    found = evaluate_run({"q": ["a"], "r": ["a"]}, {"q": {"a": 0}, "r": {"a": 1}})
    assert {name: set(values) for name, values in found.items()} == {name: {"r"} for name in MEASURES}
