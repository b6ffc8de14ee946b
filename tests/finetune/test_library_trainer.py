import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.errors import JobCancelled, JobFailed
from ragtune_mcp.core.finetune import checkpoint as checkpoint_module
from ragtune_mcp.core.finetune import library_trainer as trainer_module
from ragtune_mcp.core.finetune.backbone import open_backbone
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.library_trainer import train_with_library
from ragtune_mcp.core.finetune.objectives import library_loss, tasks_for
from ragtune_mcp.core.finetune.recipe import choose_recipe

PAIRS = [pair for pair in make_dataset(make_corpus()).pairs if pair.split == "train"]
RANKING, COSINE = "MultipleNegativesRankingLoss", "CosineSimilarityLoss"
# 4 steps an epoch.
STEPS = 12
BEST_IN_THE_MIDDLE = {3: 0.5, 4: 0.4, 6: 0.9, 8: 0.7, 9: 0.6, 12: 0.8}
FALLING = {3: 0.5, 4: 0.9, 6: 0.4, 8: 0.3, 9: 0.2, 12: 0.1}


class Killed(Exception):
    pass


def digest(weights):
    found = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def train(
    model,
    *,
    loss=RANKING,
    pairs=PAIRS,
    kill_at=None,
    cancel_at=None,
    checkpoints=None,
    validate=None,
    seed=42,
    look=None,
    **options,
):
    """A run with a fresh backbone: what it leaves behind, and the steps it took. `look` is called after each."""
    config = FineTuningConfig(loss_function=loss, batch_size=8, learning_rate=1e-3, num_epochs=3)
    config = replace(config, warmup_steps=2, evaluation_steps=3, early_stopping_patience=99, random_seed=seed)
    recipe = choose_recipe(replace(config, **options), len(pairs), 0)
    steps = []

    def on_step(step):
        steps.append(step.step)
        if look:
            look(step.step)
        if step.step == kill_at:
            raise Killed
        if step.step == cancel_at:
            raise JobCancelled("stop")

    trained = train_with_library(
        open_backbone(model, 48, low_precision=False),
        tasks_for(loss, pairs, seed),
        recipe,
        validate=validate,
        on_step=on_step,
        checkpoints=checkpoints,
    )
    return trained, steps


@pytest.fixture(scope="module")
def step_of(tiny_distil):
    """The step of weights: those of an uninterrupted run, which no run here may leave."""
    known = {}

    def record(weights):
        known[digest(weights)] = len(known) + 1
        return np.zeros(1)

    train(tiny_distil, validate=record, evaluation_steps=1)
    assert len(known) == STEPS
    return lambda weights: known[digest(weights)]


@pytest.fixture(scope="module")
def scored(step_of):
    """A validation with known scores by step; raises JobCancelled at one of them."""
    return lambda scores, cancel_at=None: lambda weights: score(step_of(weights), scores, cancel_at)


@pytest.fixture(scope="module")
def whole(tiny_distil, scored):
    """The uninterrupted run whose best step is not its last."""
    return train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE))[0]


def score(step, scores, cancel_at):
    if step == cancel_at:
        raise JobCancelled("stop")
    return np.array([scores[step], scores[step]])


def assert_same(found, expected):
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert torch.equal(found.weights[name], weight), name
    histories = [[replace(entry, elapsed_s=0.0) for entry in run.history] for run in (found, expected)]
    assert histories[0] == histories[1]
    for name in ("steps", "best_step", "best_score", "final_loss", "stopped_early"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.scores.tolist() == expected.scores.tolist()


def saved_steps(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.iterdir())


# Between the best step (6) and its checkpoint, after that, at the last step.
@pytest.mark.parametrize(("kill_at", "first"), [(7, 5), (10, 9), (12, 9)])
def test_a_killed_run_goes_on_from_the_last_epoch_and_ends_the_same(
    tiny_distil, tmp_path, scored, whole, kill_at, first
):
    assert (whole.best_step, whole.steps, len(whole.history)) == (6, STEPS, 6)
    with pytest.raises(Killed):
        train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path, kill_at=kill_at)
    resumed, steps = train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path)
    assert steps == list(range(first, STEPS + 1))
    assert_same(resumed, whole)


@pytest.mark.parametrize("loss", [RANKING, f"{RANKING}+{COSINE}"])
def test_without_a_validation_the_last_weights_are_the_same_too(tiny_distil, tmp_path, loss):
    whole, steps = train(tiny_distil, loss=loss)
    last = len(steps)
    with pytest.raises(Killed):
        train(tiny_distil, loss=loss, checkpoints=tmp_path, kill_at=last - 1, save_steps=last - 2)
    resumed, steps = train(tiny_distil, loss=loss, checkpoints=tmp_path, save_steps=last - 2)
    assert steps == [last - 1, last]
    assert_same(resumed, whole)


@pytest.mark.parametrize("scores", [BEST_IN_THE_MIDDLE, None])
def test_a_run_killed_after_its_end_has_its_result_already(tiny_distil, tmp_path, scored, scores):
    whole, _ = train(tiny_distil, validate=scores and scored(scores), checkpoints=tmp_path)
    again, steps = train(tiny_distil, validate=scores and scored(scores), checkpoints=tmp_path)
    assert steps == []
    assert_same(again, whole)


@pytest.mark.parametrize(("kill_at", "first"), [(7, [5, 6, 7, 8]), (None, [])])
def test_patience_survives_a_resume(tiny_distil, tmp_path, scored, kill_at, first):
    options = {"validate": scored(FALLING), "early_stopping_patience": 2}
    whole, _ = train(tiny_distil, **options)
    assert (whole.stopped_early, whole.best_step, whole.steps) == (True, 4, 8)
    try:
        train(tiny_distil, checkpoints=tmp_path, kill_at=kill_at, **options)
    except Killed:
        assert kill_at
    resumed, steps = train(tiny_distil, checkpoints=tmp_path, **options)
    assert steps == first
    assert_same(resumed, whole)


def test_a_checkpoint_is_written_at_epoch_ends_and_every_save_steps(tiny_distil, tmp_path):
    seen = {}
    train(
        tiny_distil,
        checkpoints=tmp_path,
        look=lambda step: seen.update({step: saved_steps(tmp_path)}),
        save_steps=3,
    )
    newest = {2: [], 3: [], 4: [3], 5: [4], 6: [4], 7: [6], 8: [6], 9: [8], 10: [9], 11: [9], 12: [9]}
    assert seen == {1: [], **newest}
    assert saved_steps(tmp_path) == [STEPS]


def test_a_cancelled_run_keeps_that_step(tiny_distil, tmp_path, scored, whole):
    with pytest.raises(JobCancelled):
        train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path, cancel_at=7)
    assert saved_steps(tmp_path) == [7]
    resumed, steps = train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path)
    assert steps == [8, 9, 10, 11, 12]
    assert_same(resumed, whole)


@pytest.mark.parametrize("step", [6, 12])
def test_a_run_cancelled_within_a_validation_makes_up_for_it(tiny_distil, tmp_path, scored, whole, step):
    for _ in range(2):  # the second time while making up for it
        with pytest.raises(JobCancelled):
            train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE, cancel_at=step), checkpoints=tmp_path)
        assert saved_steps(tmp_path) == [step]
    resumed, steps = train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path)
    assert steps == list(range(step + 1, STEPS + 1))
    assert_same(resumed, whole)


def test_a_validation_that_is_made_up_for_may_end_training(tiny_distil, tmp_path, scored):
    whole, _ = train(tiny_distil, validate=scored(FALLING), early_stopping_patience=1)
    with pytest.raises(JobCancelled):
        train(
            tiny_distil,
            validate=scored(FALLING, cancel_at=6),
            early_stopping_patience=1,
            checkpoints=tmp_path,
        )
    resumed, steps = train(
        tiny_distil, validate=scored(FALLING), early_stopping_patience=1, checkpoints=tmp_path
    )
    assert steps == []
    assert resumed.stopped_early
    assert_same(resumed, whole)


def test_a_cancelled_run_without_checkpoints_stops(tiny_distil):
    with pytest.raises(JobCancelled):
        train(tiny_distil, cancel_at=2)


@pytest.mark.parametrize(
    "other",
    [
        {"pairs": PAIRS[2:]},
        {"pairs": [replace(pair, label=pair.label / 2) for pair in PAIRS]},
        {"seed": 7},
        {"learning_rate": 2e-3},
        {"loss": f"{COSINE}+CoSENTLoss"},
    ],
    ids=["texts", "labels", "seed", "rate", "loss"],
)
def test_a_checkpoint_of_another_run_is_not_resumed(tiny_distil, tmp_path, other):
    with pytest.raises(Killed):
        train(tiny_distil, loss=COSINE, checkpoints=tmp_path, kill_at=10)
    assert len(saved_steps(tmp_path)) == 1
    expected, _ = train(tiny_distil, **{"loss": COSINE, **other})
    found, steps = train(tiny_distil, **{"loss": COSINE, **other}, checkpoints=tmp_path)
    assert steps[0] == 1
    assert_same(found, expected)
    assert len(saved_steps(tmp_path)) == 1


def test_a_checkpoint_of_another_base_model_is_not_resumed(tiny_distil, tmp_path):
    other = open_backbone(tiny_distil, 48, low_precision=False)
    changed = {
        name: weight * 1.01 if "layer.1" in name else weight for name, weight in other.weights().items()
    }
    other.save(changed, tmp_path / "other")
    with pytest.raises(Killed):
        train(tiny_distil, checkpoints=tmp_path / "kept", kill_at=6, save_steps=2)
    _, steps = train(tmp_path / "other", checkpoints=tmp_path / "kept", save_steps=2)
    assert steps[0] == 1


def kill_in_write(patch, call):
    """Breaks off before the n-th file that the Trainer pickles or that we rename: 4 and 1 a checkpoint."""
    written = []

    def counted(write):
        def counting(*args, **options):
            written.append(write)
            if len(written) == call:
                raise Killed
            return write(*args, **options)

        return counting

    patch.setattr(torch, "save", counted(torch.save))
    patch.setattr(checkpoint_module.os, "replace", counted(checkpoint_module.os.replace))


@pytest.mark.parametrize("call", [6, 7, 10])
def test_a_checkpoint_that_a_kill_broke_off_is_not_resumed(
    tiny_distil, tmp_path, monkeypatch, scored, whole, call
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_write(patch, call)
        train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path)
    assert saved_steps(tmp_path) == [4, 8]
    resumed, steps = train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path)
    assert steps[0] == 5
    assert_same(resumed, whole)
    assert saved_steps(tmp_path) == [STEPS]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("model.safetensors", 1000),
        ("optimizer.pt", 0),
        ("rng_state.pth", None),
        ("step-00000008.safetensors", 1000),
        ("step-00000008.safetensors", 0),
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tiny_distil, tmp_path, monkeypatch, scored, whole, name, left
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        # As if it was killed before it dropped the one before.
        patch.setattr(checkpoint_module.shutil, "rmtree", lambda *_, **__: None)
        train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path, kill_at=9)
    assert saved_steps(tmp_path) == [4, 8]
    damaged = tmp_path / "checkpoint-8" / name
    if left is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:left])
    resumed, steps = train(tiny_distil, validate=scored(BEST_IN_THE_MIDDLE), checkpoints=tmp_path)
    assert steps[0] == 5
    assert_same(resumed, whole)


def test_a_kill_while_another_runs_checkpoint_is_replaced_leaves_neither(tiny_distil, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train(tiny_distil, checkpoints=tmp_path, kill_at=5)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_write(patch, 2)  # its weights are written, the state of its optimizer is not
        train(tiny_distil, checkpoints=tmp_path, seed=7)
    assert saved_steps(tmp_path) == [4]
    _, steps = train(tiny_distil, checkpoints=tmp_path)
    assert steps[0] == 1


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_training_that_diverges_says_so(tiny_distil, monkeypatch, factor):
    class Diverging(torch.nn.Module):
        def __init__(self, name, model):
            super().__init__()
            self.loss = library_loss(name, model)

        def forward(self, *columns):
            return self.loss(*columns) * factor

    monkeypatch.setattr(trainer_module, "library_loss", Diverging)
    with pytest.raises(JobFailed, match=r"diverged.*learning rate of 0\.001"):
        train(tiny_distil)
