"""The recipe: what is trained, how, and why; chosen from the configuration and the amount of data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ragtune_mcp.core.finetune.config import FineTuningConfig

_LEARNING_RATE = 5e-5
_WARMUP_SHARE = 0.1
_NEGATIVES = 1
# Without kept corpus vectors a batch needs negatives of its own.
_LIBRARY_NEGATIVES = 4
_MARGIN = 0.05
_CANDIDATES = (0.0, 0.25, 0.5, 0.75, 1.0)
_MEASURED = (0.0, 0.5, 1.0)
# Folds by positive pairs: more runs where each is short and each query counts.
_FOLDS = ((400, 4), (800, 3), (2000, 2))


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a training run.

    Attributes:
        loss: "ranking" for the recipe's own objective, else the name of a sentence-transformers loss.
        warmup_steps: steps of linear warm-up.
        frozen_layers: lowest encoder layers (and the embeddings) left as they are.
        mined_negatives: hard negatives per positive, mined from the corpus with the base model.
        margin: relative margin of the mining filter.
        scale: inverse temperature of the ranking objective.
        folds: training runs, each without a part of the queries, which then judge it; the weights are
            averaged.
        alphas: interpolation weights between base (0) and trained (1) measured on the held-out queries.
        candidates: interpolation weights to choose from.
        keep_last: keep a run's last weights unless patience ran out; a small validation sample picks a lucky
            step.
        reasons: one sentence per choice.
    """

    loss: str
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_steps: int
    frozen_layers: int
    mined_negatives: int
    margin: float
    scale: float
    folds: int
    alphas: tuple[float, ...]
    candidates: tuple[float, ...]
    keep_last: bool
    evaluation_steps: int
    save_steps: int
    patience: int
    seed: int
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        fields = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def choose_recipe(config: FineTuningConfig, positives: int, layers: int) -> Recipe:
    """The recipe for a configuration and an amount of data.

    Args:
        config: under loss "auto", fields that differ from their defaults win over the recipe's choice; under
            a named loss every field is literal.
        positives: training pairs that are answers.
        layers: encoder layers of the model; 0 when unknown.

    Returns:
        The recipe with its reasons.
    """
    if config.loss_function != "auto":
        return _literal(config)
    return _auto(config, positives, layers)


def _literal(config: FineTuningConfig) -> Recipe:
    return Recipe(
        loss=config.loss_function,
        batch_size=config.batch_size,
        epochs=config.num_epochs,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        frozen_layers=0,
        mined_negatives=0,
        margin=0.0,
        scale=20.0,
        folds=1,
        alphas=(1.0,),
        candidates=(1.0,),
        keep_last=False,
        evaluation_steps=config.evaluation_steps,
        save_steps=config.save_steps,
        patience=config.early_stopping_patience,
        seed=config.random_seed,
        reasons=(
            f"loss_function={config.loss_function}: every setting is taken as given, all layers train.",
        ),
    )


def _auto(config: FineTuningConfig, positives: int, layers: int) -> Recipe:
    explicit = config.explicit()
    library = layers == 0
    negatives = _LIBRARY_NEGATIVES if library else _NEGATIVES
    folds = _folds(positives, explicit, library=library)
    steps = -(-positives // config.batch_size) * config.num_epochs
    frozen = layers // 2
    return Recipe(
        loss="ranking",
        batch_size=config.batch_size,
        epochs=config.num_epochs,
        learning_rate=config.learning_rate if "learning_rate" in explicit else _LEARNING_RATE,
        warmup_steps=config.warmup_steps if "warmup_steps" in explicit else round(_WARMUP_SHARE * steps),
        frozen_layers=frozen,
        mined_negatives=negatives,
        margin=_MARGIN,
        scale=20.0,
        folds=folds,
        alphas=_CANDIDATES if folds == 1 else _MEASURED,
        candidates=_CANDIDATES,
        keep_last=True,
        evaluation_steps=config.evaluation_steps,
        save_steps=config.save_steps,
        patience=config.early_stopping_patience,
        seed=config.random_seed,
        reasons=tuple(_reasons(config, positives, negatives, folds, frozen, layers)),
    )


def _folds(positives: int, explicit: frozenset[str], *, library: bool) -> int:
    if library or "validation_split" in explicit:
        return 1
    return next((folds for limit, folds in _FOLDS if positives <= limit), 1)


def _reasons(
    config: FineTuningConfig, positives: int, negatives: int, folds: int, frozen: int, layers: int
) -> Iterator[str]:
    against = "the other documents of its batch" if not layers else "all other documents of the corpus"
    mined = f", {negatives} of them mined as hard negatives and encoded anew" if negatives else ""
    yield f"{positives} positive pairs: each is ranked against {against}{mined}."
    if folds > 1:
        yield (
            f"{folds} runs, each without another {1 / folds:.0%} of the queries, which then judge it; "
            "the weights are averaged, so that every rating trains and every query validates."
        )
    if frozen:
        yield f"The lower {frozen} of {layers} layers and the embeddings stay frozen: half the work."
    kept = sorted(
        config.explicit() & {"learning_rate", "warmup_steps", "batch_size", "num_epochs", "validation_split"}
    )
    if kept:
        yield f"As configured: {', '.join(f'{name}={getattr(config, name)}' for name in kept)}."
