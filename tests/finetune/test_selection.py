import numpy as np
import pytest

from ragtune_mcp.core.finetune.corpus_view import CorpusView
from ragtune_mcp.core.finetune.selection import ValidationSet, choose_alpha


def test_many_validation_queries_decide_and_the_milder_of_equals_wins():
    scores = {0.0: np.full(400, 0.3), 0.5: np.full(400, 0.4), 1.0: np.full(400, 0.4 - 0.0015 * 25 / 400)}
    assert choose_alpha(scores, sorted(scores)).alpha == 0.5


def test_the_base_model_is_kept_when_enough_queries_say_so():
    scores = {0.0: np.full(60, 0.5), 0.5: np.full(60, 0.47), 1.0: np.full(60, 0.45)}
    found = choose_alpha(scores, sorted(scores))
    assert found.alpha == 0.0
    assert found.scores[1.0] == pytest.approx(0.45)


def test_a_handful_of_queries_does_not_overturn_what_was_measured_elsewhere():
    scores = {0.0: np.full(5, 0.5), 0.5: np.full(5, 0.49), 1.0: np.full(5, 0.48)}
    assert choose_alpha(scores, sorted(scores)).alpha == 0.5


def test_a_clear_loss_on_few_queries_keeps_the_base_model():
    scores = {0.0: np.full(12, 0.6), 0.5: np.full(12, 0.5), 1.0: np.full(12, 0.4)}
    assert choose_alpha(scores, sorted(scores)).alpha == 0.0


def test_without_validation_queries_the_trained_model_is_taken_and_the_reason_says_so():
    found = choose_alpha({0.0: np.zeros(0), 1.0: np.zeros(0)}, (0.0, 0.5, 1.0))
    assert found.alpha == 1.0
    assert "untested" in found.reason


def test_candidates_between_the_measured_ones_lie_on_the_parabola_through_them():
    means = {0.0: 0.5, 0.5: 0.6, 1.0: 0.5}
    found = choose_alpha(
        {alpha: np.full(500, mean) for alpha, mean in means.items()}, (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    assert found.alpha == 0.5
    assert found.score(0.25) == found.score(0.75) == pytest.approx(0.575)
    means = {0.0: 0.5, 0.5: 0.58, 1.0: 0.59}
    found = choose_alpha(
        {alpha: np.full(500, mean) for alpha, mean in means.items()}, (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    assert found.alpha == 0.75
    assert found.scores.keys() == means.keys()


class PlaneBackbone:
    """Texts are angles in degrees; with weights they all turn."""

    layers, frozen = 1, 0

    def encode(self, texts, weights=None, tick=None):
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32).reshape(-1, 2)


CORPUS = {f"d{angle}": str(angle) for angle in range(0, 180, 2)}


def validation_of(qrels):
    return ValidationSet(qrels, CorpusView(PlaneBackbone(), CORPUS, list(qrels)))


def test_validation_ranks_judged_documents_and_the_twenty_nearest_of_the_base_model():
    validation = validation_of({"1": {"d4": 3.0, "d170": 1.0}})
    assert sorted(map(int, validation.documents)) == [*range(0, 40, 2), 170]
    ideal = 3 + 1 / np.log2(3)
    assert validation.base_score() == pytest.approx([3 / np.log2(4) / ideal])


def test_scores_of_the_base_weights_are_those_of_the_kept_vectors():
    validation = validation_of({"1": {"d4": 3.0}, "91": {"d80": 2.0, "d90": 1.0}})
    encode = PlaneBackbone().encode
    assert validation.score(encode, None) == pytest.approx(validation.base_score())


def test_a_sample_holds_some_queries_and_their_whole_pools():
    validation = validation_of({str(angle): {f"d{angle}": 3.0} for angle in range(10, 170, 4)})
    sample = validation.sample(35, len, seed=0)
    assert 5 <= len(sample) < len(validation)
    assert len(sample.documents) <= max(35, 5 * 20)
    assert set(sample.queries) <= set(validation.queries)
    assert len(validation.sample(10**6, len, seed=0)) == len(validation)
