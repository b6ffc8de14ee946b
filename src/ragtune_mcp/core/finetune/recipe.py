"""The recipe: what is trained, how, and why; chosen from the configuration and the amount of data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.selection import KeptStep

_LEARNING_RATE = 7e-5
_WARMUP_SHARE = 0.1
_NEGATIVES, _IN_BATCH = 4, 1
_EPOCHS = 2
# Few ratings are read more often, or the weights hardly move; more often than this only repeats them.
_LEAST_STEPS = 20
_MOST_EPOCHS = 4
_MARGIN = 0.05
_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run.

    Attributes:
        loss: "ranking" for the recipe's own objective, else the name of a sentence-transformers loss.
        warmup_steps: steps of linear warm-up.
        frozen_layers: lowest encoder layers (and the embeddings) left as they are.
        mined_negatives: hard negatives per positive, mined from the corpus with the base model.
        in_batch: how many of them are encoded with gradients in every step; the others once an epoch.
        margin: relative margin of the mining filter.
        scale: inverse temperature of the ranking objective.
        alphas: interpolation weights between base (0) and trained (1) tried on validation.
        lenient: keep a later step unless validation tells it apart from the best one; see `KeptStep`.
        reasons: one sentence per choice.
    """

    loss: str
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_steps: int
    frozen_layers: int
    mined_negatives: int
    in_batch: int
    margin: float
    scale: float
    alphas: tuple[float, ...]
    evaluation_steps: int
    save_steps: int
    patience: int
    lenient: bool
    seed: int
    reasons: tuple[str, ...] = ()

    def kept_step(self) -> KeptStep:
        """What decides which step's weights are kept."""
        return KeptStep(lenient=self.lenient, patience=self.patience)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "alphas": list(self.alphas), "reasons": list(self.reasons)}


def choose_recipe(
    config: FineTuningConfig, positives: int, layers: int, *, hard_negatives: bool = True
) -> Recipe:
    """The recipe for a configuration and an amount of data.

    Args:
        config: under loss "auto", fields that differ from their defaults win over the recipe's choice; under
            a named loss every field is literal.
        positives: training pairs that are answers.
        layers: encoder layers of the model; 0 when unknown.
        hard_negatives: False when the data set was asked for without any; then "auto" mines none either.

    Returns:
        The recipe with its reasons.
    """
    if config.loss_function != "auto":
        return _literal(config)
    return _auto(config, positives, layers, _NEGATIVES if hard_negatives else 0)


def _literal(config: FineTuningConfig) -> Recipe:
    return Recipe(
        loss=config.loss_function,
        batch_size=config.batch_size,
        epochs=config.num_epochs,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        frozen_layers=0,
        mined_negatives=0,
        in_batch=0,
        margin=0.0,
        scale=20.0,
        alphas=(0.0, 1.0),
        evaluation_steps=config.evaluation_steps,
        save_steps=config.save_steps,
        patience=config.early_stopping_patience,
        lenient=False,
        seed=config.random_seed,
        reasons=(
            f"loss_function={config.loss_function}: every setting is taken as given, all layers train.",
        ),
    )


def _auto(config: FineTuningConfig, positives: int, layers: int, negatives: int) -> Recipe:
    explicit = config.explicit()
    reasons = [
        f"{positives} positive pairs: each is ranked against the other documents of its batch "
        f"and {negatives} mined ones."
    ]
    learning_rate = config.learning_rate if "learning_rate" in explicit else _LEARNING_RATE
    per_epoch = max(1, -(-positives // config.batch_size))
    epochs = config.num_epochs
    if "num_epochs" not in explicit:
        epochs = min(max(_EPOCHS, -(-_LEAST_STEPS // per_epoch)), _MOST_EPOCHS)
        why = f": {_EPOCHS} would be only {per_epoch * _EPOCHS} steps" if epochs > _EPOCHS else ""
        reasons.append(f"{epochs} epochs{why}.")
    if "learning_rate" not in explicit:
        reasons.append(f"Learning rate {learning_rate:g}.")
    steps = per_epoch * epochs
    warmup = config.warmup_steps if "warmup_steps" in explicit else round(_WARMUP_SHARE * steps)
    kept = sorted(explicit & {"learning_rate", "warmup_steps", "batch_size", "num_epochs"})
    if kept:
        reasons.append(f"As configured: {', '.join(f'{name}={getattr(config, name)}' for name in kept)}.")
    if warmup >= steps:
        reasons.append(
            f"The rate never reaches its peak: it rises for {warmup} steps, and there are {steps}."
        )
    frozen = layers // 3
    reasons.append(_what_trains(layers, frozen))
    return Recipe(
        loss="ranking",
        batch_size=config.batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=warmup,
        frozen_layers=frozen,
        mined_negatives=negatives,
        in_batch=min(_IN_BATCH, negatives),
        margin=_MARGIN,
        scale=20.0,
        alphas=_ALPHAS,
        evaluation_steps=config.evaluation_steps,
        save_steps=config.save_steps,
        patience=config.early_stopping_patience,
        lenient=True,
        seed=config.random_seed,
        reasons=tuple(reasons),
    )


def _what_trains(layers: int, frozen: int) -> str:
    if frozen:
        return (
            f"The lowest {frozen} of {layers} layers and the embeddings stay frozen, their outputs are kept."
        )
    if layers:
        return f"Every weight is trained: {layers} layers are too few for a third to stay frozen."
    return "Every weight is trained, with the model's own dropout: the faster path does not know this architecture."
