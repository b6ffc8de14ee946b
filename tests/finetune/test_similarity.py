import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.finetune.similarity import correlations, pair_metrics

ANGLES = {"q": 0.0, "good": 0.2, "bad": 1.0, "worse": 2.0, "r": 1.5, "wrong": 1.6, "right": 0.9}


def encode(texts):
    return np.array([[np.cos(ANGLES[t]), np.sin(ANGLES[t])] for t in texts])


def pair(query, document, rating, kind="positive"):
    return TrainingPair(query, document, (rating - 1) / 4, kind, rating=rating)


PAIRS = [
    pair("q", "good", 5.0),
    pair("q", "bad", 1.0, "negative"),
    pair("q", "worse", 2.0, "negative"),
    pair("r", "right", 4.0),
    pair("r", "wrong", 1.0, "negative"),
]


def test_accuracy_is_the_share_of_triplets_with_the_positive_nearer():
    found = pair_metrics(encode, PAIRS)
    assert found["cosine_accuracy"] == found["euclidean_accuracy"] == pytest.approx(2 / 3)
    assert 0 <= found["manhattan_accuracy"] <= 1


def test_correlations_are_between_cosine_and_label():
    cosines = [np.cos(ANGLES[p.query] - ANGLES[p.document]) for p in PAIRS]
    labels = [p.label for p in PAIRS]
    found = pair_metrics(encode, PAIRS)
    assert found["pearson"] == pytest.approx(pearsonr(cosines, labels).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(cosines, labels).statistic)


def test_what_is_undefined_is_none():
    found = pair_metrics(encode, PAIRS[:1])
    assert found == dict.fromkeys(found)
    assert correlations(np.array([1.0, 2.0, 3.0]), np.ones(3)) == (None, None)
    assert correlations(np.zeros(0), np.zeros(0)) == (None, None)
