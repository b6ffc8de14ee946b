import math

import ir_measures
import numpy as np
import pytest
from ir_measures import nDCG

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.experiment.metrics import check_metrics, discount, relevance_score
from ragtune_mcp.core.finetune.metrics import ndcg, reciprocal_rank


def test_ndcg_reproduces_the_published_vectors():
    qrels = {"q1": {"d1": 3, "d2": 2, "d5": 1}, "q2": {"d3": 1, "d9": 2}, "q3": {"d7": 1}}
    run = {"q1": "d2 d4 d1 d5 d8".split(), "q2": "d9 d1 d2 d3".split(), "q3": "d1 d2 d7".split()}
    values = [ndcg(run[q], qrels[q], 5) for q in run]
    assert values == pytest.approx([0.82545, 0.923885, 0.5], abs=5e-6)
    assert np.mean(values) == pytest.approx(0.749778, abs=5e-6)
    assert np.mean([reciprocal_rank(run[q], qrels[q]) for q in run]) == pytest.approx(0.777778, abs=5e-7)


def test_1000_random_relevance_scores_equal_ir_measures():
    """Against nDCG whose ideal is fully relevant: extra documents of grade 4 that the run lacks."""
    rng = np.random.default_rng(1)
    run, qrels, expected = [], [], {}
    for query in range(1000):
        ratings = rng.integers(1, 6, int(rng.integers(1, 8)))
        name = f"q{query}"
        expected[name] = relevance_score(list(enumerate(map(float, ratings), 1)))
        for rank, rating in enumerate(ratings, 1):
            run.append(ir_measures.ScoredDoc(name, f"d{rank}", 100.0 - rank))
            qrels.append(ir_measures.Qrel(name, f"d{rank}", int(rating) - 1))
            qrels.append(ir_measures.Qrel(name, f"ideal{rank}", 4))
    for cut in range(1, 8):
        for metric in ir_measures.iter_calc([nDCG @ cut], qrels, run):
            shown = sum(1 for row in run if row.query_id == metric.query_id)
            if shown == cut:
                assert expected[metric.query_id] == pytest.approx(metric.value, abs=1e-9)


def test_a_list_rated_five_throughout_scores_one_and_one_rated_one_scores_zero():
    assert relevance_score([(1, 5.0), (3, 5.0)]) == 1.0
    assert relevance_score([(1, 1.0), (2, 1.0)]) == 0.0


def test_a_uniformly_poor_list_is_not_called_perfect():
    assert relevance_score([(1, 2.0), (2, 2.0)]) == pytest.approx(0.25)


def test_good_documents_count_more_at_the_top():
    assert relevance_score([(1, 5.0), (2, 1.0)]) > relevance_score([(1, 1.0), (2, 5.0)])


def test_discount_of_a_missing_document_is_zero():
    assert (discount(1), discount(None)) == (1.0, 0.0)
    assert discount(3) == pytest.approx(1 / math.log2(4))


@pytest.mark.parametrize("names", [[], ["clicks"], ["response_quality", "response_quality"]])
def test_unknown_repeated_or_missing_metrics_are_refused_by_name(names):
    with pytest.raises(InvalidInput) as refused:
        check_metrics(names)
    assert refused.value.code == "invalid_input"
    if names == ["clicks"]:
        assert "'clicks'" in str(refused.value)
