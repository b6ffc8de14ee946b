import numpy as np
import pytest

from ragtune_mcp.core.finetune.evaluation import Vectors
from ragtune_mcp.core.finetune.selection import KeptStep, ValidationSet, choose_alpha


def test_many_validation_queries_decide_and_the_milder_of_equals_wins():
    scores = {0.0: np.full(4000, 0.3), 0.5: np.full(4000, 0.4), 1.0: np.full(4000, 0.4)}
    assert choose_alpha(scores).alpha == 0.5
    assert choose_alpha(scores | {1.0: np.full(4000, 0.41)}).alpha == 1.0


def test_the_base_model_is_kept_when_enough_queries_say_so():
    scores = {0.0: np.full(60, 0.5), 0.5: np.full(60, 0.47), 1.0: np.full(60, 0.45)}
    found = choose_alpha(scores)
    assert found.alpha == 0.0
    assert found.scores[1.0] == pytest.approx(0.45)


def test_a_handful_of_queries_does_not_overturn_what_was_measured_elsewhere():
    scores = {0.0: np.full(5, 0.5), 0.5: np.full(5, 0.49), 1.0: np.full(5, 0.47)}
    assert choose_alpha(scores).alpha == 1.0


def test_a_dozen_queries_do_not_tell_two_interpolations_apart():
    grid = {0.0: 0.50, 0.25: 0.53, 0.5: 0.55, 0.75: 0.53, 1.0: 0.53}
    assert choose_alpha({a: np.full(14, score) for a, score in grid.items()}).alpha == 0.75
    assert choose_alpha({a: np.full(1400, score) for a, score in grid.items()}).alpha == 0.5


def test_a_clear_loss_on_few_queries_keeps_the_base_model():
    scores = {0.0: np.full(12, 0.6), 0.5: np.full(12, 0.5), 1.0: np.full(12, 0.4)}
    assert choose_alpha(scores).alpha == 0.0


def test_without_validation_queries_what_is_known_from_elsewhere_decides():
    found = choose_alpha({alpha: np.zeros(0) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)})
    assert found.alpha == 0.75
    assert found.scores == {}
    assert "No judged validation query" in found.reason
    one = choose_alpha({alpha: np.full(1, 0.5) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)})
    assert one.alpha == found.alpha


def test_a_named_loss_keeps_its_weights():
    assert choose_alpha({0.0: np.zeros(0), 1.0: np.zeros(0)}).alpha == 1.0
    assert choose_alpha({0.0: np.ones(9), 1.0: np.zeros(9)}).alpha == 1.0


def test_a_step_that_few_queries_cannot_tell_from_the_best_is_kept():
    kept = KeptStep(lenient=True, patience=2)
    assert kept.see(10, np.array([0.5, 0.9, 0.1, 0.6]))
    assert kept.see(20, np.array([0.9, 0.5, 0.05, 0.6]))
    assert (kept.step, kept.waited) == (20, 0)
    assert kept.best == [0.5, 0.9, 0.1, 0.6]


def test_steps_clearly_below_the_best_use_up_the_patience():
    kept = KeptStep(lenient=True, patience=2)
    best = np.linspace(0.4, 0.8, 40)
    assert kept.see(10, best)
    assert not kept.see(20, best - 0.1)
    assert not kept.exhausted
    assert not kept.see(30, best - 0.2)
    assert (kept.step, kept.exhausted) == (10, True)


def test_small_losses_do_not_add_up_unseen():
    taken = np.zeros(30)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        start = rng.uniform(0.2, 0.8, 60)
        kept = KeptStep(lenient=True, patience=99)
        kept.see(0, start)
        for step in range(30):
            taken[step] += kept.see(step, start - 0.005 * step + rng.normal(0, 0.1, 60))
    assert taken[0] > 0.75 * 200
    assert taken[20:].max() < 0.05 * 200


def test_the_strict_rule_keeps_the_first_best_score():
    kept = KeptStep(lenient=False, patience=3)
    for step, score in enumerate([0.1, 0.5, 0.5, 0.4], 1):
        kept.see(step, np.array([score, score]))
    assert (kept.step, kept.score, kept.waited) == (2, 0.5, 2)


def test_validation_ranks_judged_documents_and_the_nearest_ones_of_the_base_model():
    angles = np.linspace(0, np.pi / 2, 30)
    documents = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids = [f"d{index:02}" for index in range(30)]
    texts = {document: f"text of {document}" for document in ids}
    base = Vectors({"q": np.array([1, 0], np.float32)}, documents, ids)
    validation = ValidationSet({"q": {"d01": 3.0, "d29": 1.0}}, texts, base)
    assert validation.documents == [texts[document] for document in (*ids[:20], "d29")]
    ideal = 3 + 1 / np.log2(3)
    assert validation.base == pytest.approx([3 / np.log2(3) / ideal])

    def turned(found):
        table = {texts[document]: vector for document, vector in zip(ids, documents, strict=True)}
        return np.stack([table.get(text, np.array([0, 1], np.float32)) for text in found])

    assert validation.score(turned) == pytest.approx([1 / ideal])


def test_a_named_loss_is_kept_as_trained_and_its_base_is_scored_too():
    kept = choose_alpha({0.0: np.array([0.9, 0.8]), 1.0: np.array([0.1, 0.2])})
    assert kept.alpha == 1.0
    assert kept.scores == pytest.approx({0.0: 0.85, 1.0: 0.15})
    assert "expected gain" not in kept.reason
