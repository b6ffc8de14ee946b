import numpy as np
import pytest

from ragtune_mcp.core.finetune.selection import ValidationSet, choose_alpha


def test_many_validation_queries_decide_and_the_milder_of_equals_wins():
    scores = {0.0: np.full(400, 0.3), 0.5: np.full(400, 0.4), 1.0: np.full(400, 0.4 - 0.0015 * 25 / 400)}
    assert choose_alpha(scores).alpha == 0.5


def test_the_base_model_is_kept_when_enough_queries_say_so():
    scores = {0.0: np.full(60, 0.5), 0.5: np.full(60, 0.47), 1.0: np.full(60, 0.45)}
    found = choose_alpha(scores)
    assert found.alpha == 0.0
    assert found.scores[1.0] == pytest.approx(0.45)


def test_a_handful_of_queries_does_not_overturn_what_was_measured_elsewhere():
    scores = {0.0: np.full(5, 0.5), 0.5: np.full(5, 0.49), 1.0: np.full(5, 0.48)}
    assert choose_alpha(scores).alpha == 0.5


def test_a_clear_loss_on_few_queries_keeps_the_base_model():
    scores = {0.0: np.full(12, 0.6), 0.5: np.full(12, 0.5), 1.0: np.full(12, 0.4)}
    assert choose_alpha(scores).alpha == 0.0


def test_without_validation_queries_the_trained_model_is_taken_and_the_reason_says_so():
    found = choose_alpha({0.0: np.zeros(0), 1.0: np.zeros(0)})
    assert found.alpha == 1.0
    assert "untested" in found.reason


def test_validation_ranks_judged_documents_and_the_nearest_ones_of_the_base_model():
    texts = {"a": "ta", "b": "tb", "c": "tc", "d": "td"}
    validation = ValidationSet({"q": {"a": 3.0}}, texts, ["a", "b", "c", "d"], {"q": np.array([2, 1])})
    assert validation.documents == ["ta", "tb", "tc"]
    table = {"q": [1, 0], "ta": [0.6, 0.8], "tb": [1, 0], "tc": [0, 1]}
    scores = validation.score(lambda found, weights: np.array([table[t] for t in found], np.float32), None)
    assert scores == pytest.approx([1 / np.log2(3)])
