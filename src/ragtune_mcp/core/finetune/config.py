"""`FineTuningConfig` (the specification's 14 fields) and `TrainingMetrics`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.settings import LOSS_PATTERN, LOSSES, Settings

_RANGES: dict[str, tuple[float, float]] = {
    "batch_size": (1, 1024),
    "num_epochs": (1, 100),
    "learning_rate": (1e-8, 1.0),
    "warmup_steps": (0, 1_000_000),
    "evaluation_steps": (1, 1_000_000),
    "save_steps": (1, 1_000_000),
    "max_seq_length": (16, 8192),
    "early_stopping_patience": (1, 1000),
    "random_seed": (0, 2**32 - 1),
}


@dataclass(frozen=True, slots=True)
class FineTuningConfig:
    """How to train. With `loss_function="auto"` the recipe is chosen from the amount of data.

    Under "auto" a field that differs from its default is taken as the caller's explicit wish and kept; a
    field that equals its default leaves the choice to the recipe. With a named loss every field is taken
    literally.

    Attributes:
        base_model_name: name or folder of the model to start from.
        output_model_path: folder, inside the workspace, that receives `<suffix>_<stamp>` model folders.
        batch_size: examples per optimizer step.
        loss_function: "auto", a loss of sentence-transformers, or several joined by "+": each step then takes
            a batch for every one and minimises the mean.
        learning_rate: peak of the schedule.
        warmup_steps: steps of linear warm-up from 0; linear decay to 0 afterwards.
        evaluation_steps: validate every so many steps, and at the end of every epoch.
        save_steps: write a checkpoint every so many steps, and at the end of every epoch.
        max_seq_length: tokens per text; never above what the base model was set up for.
        use_amp: bfloat16 matrix products where the processor has them; weights stay float32.
        early_stopping_patience: stop after so many validations in a row without a better score.
        validation_split: share of the training queries held out; used when the data brings no validation
            part.
        random_seed: fixes batch order, mining ties and resampling.

    Raises:
        InvalidInput: a value outside its range; the message names it.
    """

    base_model_name: str = "all-MiniLM-L6-v2"
    output_model_path: str = "./fine_tuned_models"
    batch_size: int = 16
    num_epochs: int = 4
    learning_rate: float = 2e-5
    warmup_steps: int = 100
    evaluation_steps: int = 500
    save_steps: int = 500
    max_seq_length: int = 512
    loss_function: str = "auto"
    use_amp: bool = True
    early_stopping_patience: int = 3
    validation_split: float = 0.2
    random_seed: int = 42

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            wanted = (int, float) if name == "learning_rate" else int
            if isinstance(value, bool) or not isinstance(value, wanted) or not low <= value <= high:
                raise InvalidInput(f"{name}={value!r} must be a number from {low:g} to {high:g}.")
        if not isinstance(self.validation_split, (int, float)) or not 0 < self.validation_split < 0.9:
            raise InvalidInput(f"validation_split={self.validation_split!r} must be above 0 and below 0.9.")
        if not isinstance(self.use_amp, bool):
            raise InvalidInput(f"use_amp={self.use_amp!r} must be true or false.")
        if not isinstance(self.loss_function, str) or not re.match(LOSS_PATTERN, self.loss_function):
            raise InvalidInput(
                f"loss_function={self.loss_function!r} is not one of auto, {', '.join(LOSSES)}.",
                hint="Join several with + to train on them at once.",
            )
        for name in ("base_model_name", "output_model_path"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InvalidInput(f"{name}={getattr(self, name)!r} must be a non-empty string.")

    @classmethod
    def from_settings(
        cls, settings: Settings, *, base_model: str = "", overrides: Mapping[str, Any] | None = None
    ) -> FineTuningConfig:
        """The workspace's settings, overlaid with the values of one call.

        Args:
            settings: BASE_MODEL_NAME, BATCH_SIZE, ... of the workspace.
            base_model: the call's base model; empty for the setting.
            overrides: config fields of the call.

        Returns:
            The configuration.

        Raises:
            InvalidInput: an unknown field or a value out of range.
        """
        values: dict[str, Any] = {
            "base_model_name": settings.base_model_name,
            "output_model_path": settings.finetuned_models_path,
            "batch_size": settings.batch_size,
            "num_epochs": settings.num_epochs,
            "learning_rate": settings.learning_rate,
            "max_seq_length": settings.max_seq_length,
            "loss_function": settings.loss_function,
            "use_amp": settings.use_amp,
        }
        known = [field.name for field in fields(cls)]
        for name, value in (overrides or {}).items():
            if name not in known:
                raise InvalidInput(
                    f"Unknown config field {name!r}.", hint=f"Known fields: {', '.join(known)}."
                )
            values[name] = value
        if base_model:
            values["base_model_name"] = base_model
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All 14 fields, JSON-ready."""
        return asdict(self)

    def explicit(self) -> frozenset[str]:
        """The fields whose value is not the default."""
        return frozenset(field.name for field in fields(self) if getattr(self, field.name) != field.default)


@dataclass(frozen=True, slots=True)
class TrainingMetrics:
    """One line of the training history.

    Attributes:
        train_loss: mean loss of the steps since the line before.
        eval_score: validation nDCG@10; None where the line is not a validation.
        elapsed_s: seconds since training began.
    """

    step: int
    epoch: float
    train_loss: float
    learning_rate: float
    eval_score: float | None = None
    elapsed_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)
