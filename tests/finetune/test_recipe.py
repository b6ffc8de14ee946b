import pytest

from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.recipe import choose_recipe


@pytest.mark.parametrize(("positives", "epochs"), [(1, 4), (80, 4), (112, 3), (160, 2), (169, 2), (5000, 2)])
def test_few_ratings_are_read_more_often_within_bounds(positives, epochs):
    recipe = choose_recipe(FineTuningConfig(), positives, 6)
    assert recipe.epochs == epochs
    [reason] = [reason for reason in recipe.reasons if "epochs" in reason]
    assert reason.startswith(f"{epochs} epochs")
    assert ("would be only" in reason) == (epochs > 2)
    assert "Learning rate 7e-05." in recipe.reasons


@pytest.mark.parametrize(("layers", "frozen"), [(0, 0), (1, 0), (3, 1), (6, 2), (12, 4)])
def test_the_lowest_third_stays_frozen(layers, frozen):
    recipe = choose_recipe(FineTuningConfig(), 100, layers)
    assert recipe.frozen_layers == frozen
    assert any("layers and the embeddings stay frozen" in reason for reason in recipe.reasons) == (frozen > 0)
    assert any("Every weight is trained" in reason for reason in recipe.reasons) == (frozen == 0)


def test_a_warm_up_longer_than_the_run_is_told():
    recipe = choose_recipe(FineTuningConfig(warmup_steps=200), 60, 6)
    assert any("never reaches its peak: it rises for 200 steps" in reason for reason in recipe.reasons)
    recipe = choose_recipe(FineTuningConfig(), 60, 6)
    assert not any("peak" in reason for reason in recipe.reasons)


def test_epochs_asked_for_are_kept():
    recipe = choose_recipe(FineTuningConfig(num_epochs=2), 30, 6)
    assert recipe.epochs == 2
    assert any("num_epochs=2" in reason for reason in recipe.reasons)


def test_a_named_loss_takes_every_field_literally():
    config = FineTuningConfig(loss_function="CosineSimilarityLoss")
    recipe = choose_recipe(config, 30, 6)
    assert (recipe.epochs, recipe.learning_rate, recipe.warmup_steps) == (4, 2e-5, 100)
    assert (recipe.frozen_layers, recipe.alphas, recipe.lenient) == (0, (0.0, 1.0), False)


def test_a_data_set_made_without_hard_negatives_is_trained_without_them():
    recipe = choose_recipe(FineTuningConfig(), 30, 6, hard_negatives=False)
    assert (recipe.mined_negatives, recipe.in_batch) == (0, 0)
    assert "and 0 mined ones" in recipe.reasons[0]
