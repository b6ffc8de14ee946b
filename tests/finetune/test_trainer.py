import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.errors import JobCancelled, JobFailed
from ragtune_mcp.core.finetune.backbone import open_backbone
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.examples import ranking_examples
from ragtune_mcp.core.finetune.objectives import LibraryLoss, Ranking
from ragtune_mcp.core.finetune.recipe import choose_recipe
from ragtune_mcp.core.finetune.trainer import FastTrainer, interpolate, schedule


class Stopped(Exception):
    pass


def train(
    model,
    *,
    stop_at=None,
    checkpoints=None,
    validate=None,
    micro_tokens=10**6,
    seed=42,
    frozen=2,
    negatives=0,
    cancel="",
    **options,
):
    config = FineTuningConfig(batch_size=8, learning_rate=1e-3, random_seed=seed, **options)
    recipe = replace(choose_recipe(config, 32, 4), epochs=config.num_epochs, lenient=False)
    backbone = open_backbone(model, 512, low_precision=False)
    backbone.freeze(frozen, 10**8)
    corpus = make_corpus()
    examples = ranking_examples([p for p in make_dataset(corpus).pairs if p.split == "train"])
    mined = tuple(list(corpus.values())[:negatives])
    objective = Ranking([example._replace(negatives=mined) for example in examples])
    # As `fine_tune` does: the outputs of frozen layers do not depend on the batch that first asks for them.
    backbone.keep([text for e in objective.examples for text in (e.query, e.positive, *e.negatives)])
    steps = []

    def on_step(step):
        steps.append(step)
        if step.step == stop_at:
            raise Stopped

    def read(texts, weights):
        if cancel == "fixing" and weights is not None:
            raise JobCancelled("stop")
        return backbone.encode(texts, weights)

    def on_part():
        if cancel == "parts" and len(steps) == 5:
            raise JobCancelled("stop")

    trainer = FastTrainer(backbone, objective, recipe, micro_tokens=micro_tokens, read=read, on_part=on_part)
    return trainer.run(validate=validate, on_step=on_step, checkpoints=checkpoints), steps


def assert_equal_weights(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_the_loss_goes_down(tiny_model):
    trained, steps = train(tiny_model, num_epochs=6)
    assert np.mean([s.loss for s in steps[-4:]]) < 0.7 * np.mean([s.loss for s in steps[:4]])
    assert trained.steps == len(steps) == 24


def test_the_same_seed_gives_the_same_weights_bit_by_bit(tiny_model):
    first, _ = train(tiny_model)
    second, _ = train(tiny_model)
    third, _ = train(tiny_model, seed=7)
    assert_equal_weights(first.weights, second.weights)
    assert any(not torch.equal(first.weights[name], third.weights[name]) for name in first.weights)


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny_model, tmp_path, stop_at):
    options = {"num_epochs": 3, "save_steps": 3, "negatives": 3}
    whole, _ = train(tiny_model, **options)
    with pytest.raises(Stopped):
        train(tiny_model, checkpoints=tmp_path, stop_at=stop_at, **options)
    resumed, steps = train(tiny_model, checkpoints=tmp_path, **options)
    assert_equal_weights(whole.weights, resumed.weights)
    assert steps[0].step <= stop_at
    assert [entry.train_loss for entry in resumed.history] == pytest.approx(
        [entry.train_loss for entry in whole.history]
    )


@pytest.mark.parametrize(("cancel", "step"), [("fixing", 4), ("parts", 5)])
def test_a_run_cancelled_within_a_step_goes_on_from_the_one_before(tiny_model, tmp_path, cancel, step):
    options = {"num_epochs": 3, "negatives": 3, "micro_tokens": 60}
    whole, _ = train(tiny_model, **options)
    with pytest.raises(JobCancelled):
        train(tiny_model, checkpoints=tmp_path, cancel=cancel, **options)
    [kept] = tmp_path.iterdir()
    assert kept.stem == f"step-{step:08}"
    resumed, steps = train(tiny_model, checkpoints=tmp_path, **options)
    assert steps[0].step == step + 1
    assert_equal_weights(whole.weights, resumed.weights)


def test_best_weights_and_patience_survive_a_resume(tiny_model, tmp_path):
    def falling(scores):
        remaining = list(scores)
        return lambda weights: np.array([remaining.pop(0)])

    with pytest.raises(Stopped):
        train(
            tiny_model,
            num_epochs=9,
            save_steps=4,
            checkpoints=tmp_path,
            stop_at=9,
            validate=falling([0.5, 0.4]),
        )
    resumed, _ = train(
        tiny_model, num_epochs=9, save_steps=4, checkpoints=tmp_path, validate=falling([0.3, 0.2, 0.1, 0.9])
    )
    assert (resumed.best_step, resumed.best_score, resumed.steps) == (4, 0.5, 16)
    assert resumed.stopped_early


def test_a_checkpoint_of_another_run_is_not_resumed(tiny_model, tmp_path):
    with pytest.raises(Stopped):
        train(tiny_model, save_steps=2, checkpoints=tmp_path, stop_at=5)
    expected, _ = train(tiny_model, save_steps=2, seed=3)
    found, steps = train(tiny_model, save_steps=2, seed=3, checkpoints=tmp_path)
    assert steps[0].step == 1
    assert_equal_weights(found.weights, expected.weights)


def test_only_the_newest_checkpoint_is_kept(tiny_model, tmp_path):
    train(tiny_model, save_steps=1, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000016.safetensors"]


def test_a_batch_in_parts_gives_the_same_gradient(tiny_model, monkeypatch):
    gradients = []

    def record(weights, limit):
        gradients.append([weight.grad.clone() for weight in weights])
        return torch.tensor(1.0)

    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda weights, limit: record(list(weights), limit)
    )
    train(tiny_model, num_epochs=1)
    whole = gradients[0]
    gradients.clear()
    train(tiny_model, num_epochs=1, micro_tokens=60)
    for left, right in zip(whole, gradients[0], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_training_stops_when_patience_runs_out_and_restores_the_best_weights(tiny_model):
    seen = []

    def validate(weights):
        seen.append({name: weight.clone() for name, weight in weights.items()})
        return np.array([[0.1, 0.5, 0.3, 0.2, 0.4, 0.6][len(seen) - 1]])

    trained, _ = train(tiny_model, num_epochs=6, early_stopping_patience=3, validate=validate)
    assert (trained.stopped_early, trained.best_step, trained.steps) == (True, 8, 20)
    assert_equal_weights(trained.weights, seen[1])


def test_validation_happens_every_evaluation_steps_and_at_epoch_ends(tiny_model):
    trained, _ = train(
        tiny_model,
        num_epochs=2,
        evaluation_steps=3,
        validate=lambda weights: np.zeros(3),
        early_stopping_patience=99,
    )
    assert [entry.step for entry in trained.history] == [3, 4, 6, 8]


def test_cancelling_stops_at_the_next_step(tiny_model):
    def cancelled(step):
        raise JobCancelled("stop")

    backbone = open_backbone(tiny_model, 512, low_precision=False)
    objective = Ranking(ranking_examples(make_dataset(make_corpus()).pairs))
    trainer = FastTrainer(backbone, objective, choose_recipe(FineTuningConfig(), 40, 4), micro_tokens=10**6)
    with pytest.raises(JobCancelled):
        trainer.run(validate=None, on_step=cancelled)


def test_a_cancelled_run_keeps_the_best_weights_so_far(tiny_model, tmp_path):
    seen = []

    def validate(weights):
        seen.append({name: weight.clone() for name, weight in weights.items()})
        return np.array([[0.5, 0.1][len(seen) - 1]])

    def cancelled(step):
        if step.step == 9:
            raise JobCancelled("stop")

    backbone = open_backbone(tiny_model, 512, low_precision=False)
    recipe = replace(
        choose_recipe(FineTuningConfig(batch_size=8, learning_rate=1e-3), 32, 4), epochs=4, lenient=False
    )
    trainer = FastTrainer(
        backbone,
        Ranking(ranking_examples(make_dataset(make_corpus()).pairs)[:32]),
        recipe,
        micro_tokens=10**6,
    )
    with pytest.raises(JobCancelled):
        trainer.run(validate=validate, on_step=cancelled, checkpoints=tmp_path)
    [kept] = tmp_path.iterdir()
    assert kept.stem == "step-00000009"
    saved = load_file(kept)
    best = {name.removeprefix("best/"): saved[name] for name in saved if name.startswith("best/")}
    assert_equal_weights(best, seen[0])


def test_scores_of_other_validation_queries_are_not_gone_on_from(tiny_model, tmp_path):
    seen = []

    def trained(judged_by, stop_at=None):
        def on_step(step):
            seen.append(step.step)
            if step.step == stop_at:
                raise JobCancelled("stop")

        trainer = FastTrainer(
            open_backbone(tiny_model, 512, low_precision=False),
            Ranking(ranking_examples(make_dataset(make_corpus()).pairs)[:32]),
            choose_recipe(FineTuningConfig(batch_size=8), 32, 4),
            micro_tokens=10**6,
        )
        trainer.run(
            validate=lambda weights: np.array([0.5]),
            on_step=on_step,
            checkpoints=tmp_path,
            judged_by=judged_by,
        )

    with pytest.raises(JobCancelled):
        trained("one", stop_at=5)
    trained("one")
    assert seen[:6] == [1, 2, 3, 4, 5, 6]
    seen.clear()
    trained("another")
    assert seen[0] == 1


def test_frozen_weights_are_not_trained(tiny_model):
    trained, _ = train(tiny_model, frozen=3)
    assert {name.split(".")[2] for name in trained.weights} == {"3"}
    everything, _ = train(tiny_model, frozen=0)
    assert any(name.startswith("embeddings.") for name in everything.weights)


def test_the_schedule_rises_to_one_and_falls_to_zero():
    shares = [schedule(step, 20, 5) for step in range(21)]
    assert shares[0] == 0
    assert shares[5] == 1
    assert shares[20] == 0
    assert shares[1:6] == sorted(shares[1:6])
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert schedule(3, 4, 10) == pytest.approx(0.3)


def test_interpolation_goes_from_base_to_tuned():
    base, tuned = {"w": torch.zeros(2), "frozen": torch.ones(1)}, {"w": torch.ones(2)}
    assert interpolate(base, tuned, 0.25)["w"].tolist() == [0.25, 0.25]
    assert interpolate(base, tuned, 1.0).keys() == {"w"}


def test_history_has_no_gap_and_no_nan(tiny_model):
    trained, _ = train(tiny_model, num_epochs=3)
    assert [entry.epoch for entry in trained.history] == [1.0, 2.0, 3.0]
    assert not any(math.isnan(entry.train_loss) for entry in trained.history)


def test_a_run_cancelled_within_a_validation_makes_up_for_it(tiny_model, tmp_path):
    calls = []

    def validate(weights, cancel=()):
        calls.append(len(calls))
        if calls[-1] in cancel:
            raise JobCancelled("stop")
        return np.array([float(sum(weight.sum() for weight in weights.values()))])

    expected, _ = train(tiny_model, validate=validate)
    calls.clear()
    with pytest.raises(JobCancelled):
        train(tiny_model, validate=lambda weights: validate(weights, cancel=(1,)), checkpoints=tmp_path)
    found, steps = train(tiny_model, validate=validate, checkpoints=tmp_path)
    assert steps[0].step > 1
    assert [(entry.step, entry.learning_rate) for entry in found.history] == [
        (entry.step, entry.learning_rate) for entry in expected.history
    ]
    assert found.best_step == expected.best_step
    assert_equal_weights(found.weights, expected.weights)


def test_a_validation_is_told_with_its_step(tiny_model):
    trained, steps = train(tiny_model, num_epochs=2, validate=lambda weights: np.array([0.25, 0.75]))
    assert {step.step: step.eval_score for step in steps if step.eval_score is not None} == {
        entry.step: 0.5 for entry in trained.history
    }


def test_a_training_that_diverges_says_so(tiny_model, monkeypatch):
    monkeypatch.setattr(Ranking, "loss", lambda self, vectors, layout: (vectors * float("inf")).sum())
    with pytest.raises(JobFailed, match=r"diverged.*learning rate of 0\.001") as raised:
        train(tiny_model)
    assert raised.value.hint == "Lower learning_rate."


def test_other_labels_are_another_run(tiny_model, tmp_path):
    def run(labels, checkpoints):
        backbone = open_backbone(tiny_model, 512, low_precision=False)
        rows = [(f"w{i} w1", f"w{i} w2 w3") for i in range(8)]
        recipe = choose_recipe(FineTuningConfig(loss_function="CosineSimilarityLoss", num_epochs=1), 8, 4)
        objective = LibraryLoss("CosineSimilarityLoss", rows, labels)
        steps = []
        FastTrainer(backbone, objective, replace(recipe, batch_size=2, save_steps=1), micro_tokens=10**6).run(
            validate=None, on_step=steps.append, checkpoints=checkpoints
        )
        return steps

    assert len(run([1.0] * 8, tmp_path)) == 4
    assert run([1.0] * 8, tmp_path) == []
    assert len(run([0.0] * 8, tmp_path)) == 4
