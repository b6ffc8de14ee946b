import pytest

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.settings import Settings


def test_the_fourteen_fields_have_the_documented_defaults():
    assert FineTuningConfig().to_dict() == {
        "base_model_name": "all-MiniLM-L6-v2",
        "output_model_path": "./fine_tuned_models",
        "batch_size": 16,
        "num_epochs": 4,
        "learning_rate": 2e-5,
        "warmup_steps": 100,
        "evaluation_steps": 500,
        "save_steps": 500,
        "max_seq_length": 512,
        "loss_function": "auto",
        "use_amp": True,
        "early_stopping_patience": 3,
        "validation_split": 0.2,
        "random_seed": 42,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("num_epochs", True),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "2e-5"),
        ("warmup_steps", -1),
        ("max_seq_length", 8),
        ("validation_split", 0.0),
        ("validation_split", 1.5),
        ("loss_function", "MSELoss"),
        ("loss_function", "CoSENTLoss+"),
        ("loss_function", "auto+CoSENTLoss"),
        ("loss_function", None),
        ("use_amp", "yes"),
        ("random_seed", -1),
        ("base_model_name", ""),
        ("output_model_path", None),
    ],
)
def test_a_value_out_of_range_is_refused_and_repeated(field, value):
    with pytest.raises(InvalidInput, match=field) as error:
        FineTuningConfig(**{field: value})
    assert repr(value) in str(error.value)


def test_settings_fill_the_fields_and_the_call_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("BATCH_SIZE", "8")
    monkeypatch.setenv("NUM_EPOCHS", "2")
    settings = Settings.load(tmp_path)
    config = FineTuningConfig.from_settings(settings, base_model="mine", overrides={"num_epochs": 7})
    assert (config.batch_size, config.num_epochs, config.base_model_name) == (8, 7, "mine")


def test_an_unknown_field_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InvalidInput, match="epochs") as error:
        FineTuningConfig.from_settings(Settings.load(tmp_path), overrides={"epochs": 3})
    assert "num_epochs" in error.value.hint


def test_a_field_is_explicit_when_it_differs_from_its_default():
    assert FineTuningConfig(batch_size=8, learning_rate=2e-5).explicit() == {"batch_size"}
