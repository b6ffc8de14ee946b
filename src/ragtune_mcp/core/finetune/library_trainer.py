"""Training through `SentenceTransformerTrainer`, for architectures the fast path does not know."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ragtune_mcp.core.finetune.backbone import LibraryBackbone
from ragtune_mcp.core.finetune.config import TrainingMetrics
from ragtune_mcp.core.finetune.examples import RankingExample
from ragtune_mcp.core.finetune.objectives import library_loss
from ragtune_mcp.core.finetune.recipe import Recipe
from ragtune_mcp.core.finetune.trainer import Step, Trained, Validate

if TYPE_CHECKING:
    from torch import Tensor

_RANKING_LOSS = "MultipleNegativesRankingLoss"
_COLUMNS = ("anchor", "positive", "negative")


def train_with_library(
    backbone: LibraryBackbone,
    rows: Sequence[tuple[str, ...]],
    labels: Sequence[float] | None,
    recipe: Recipe,
    *,
    validate: Validate | None,
    on_step: Callable[[Step], None],
    checkpoints: Path | None = None,
) -> Trained:
    """Train with the library's own loop, loss and schedule.

    Args:
        backbone: holds the model; its base weights are put back afterwards.
        rows: texts per example, one per column of the loss.
        labels: labels where the loss takes any.
        recipe: rate, epochs, batch size, seed; "ranking" becomes MultipleNegativesRankingLoss.
        validate: score of weights, higher is better; None to keep the last weights.
        on_step: called after every step; may raise to stop.
        checkpoints: the Trainer's own checkpoints are written and resumed here; None for neither.

    Returns:
        The best weights and the history.
    """
    from sentence_transformers import SentenceTransformerTrainer

    name = _RANKING_LOSS if recipe.loss == "ranking" else recipe.loss
    watcher = _watcher(backbone, recipe, len(rows), validate, on_step)
    with TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=backbone.model,
            args=_arguments(
                recipe, checkpoints or Path(scratch), backbone.low_precision, save=checkpoints is not None
            ),
            train_dataset=_dataset(rows, labels),
            loss=library_loss(name, backbone.model),
            callbacks=[watcher],
        )
        resume = checkpoints is not None and any(checkpoints.glob("checkpoint-*"))
        try:
            trainer.train(resume_from_checkpoint=resume)
            last = backbone.weights()
        finally:
            backbone.load(backbone.base_weights)
            backbone.model.to("cpu")
    history: list[TrainingMetrics] = watcher.history
    return Trained(
        watcher.best or last,
        history,
        watcher.step,
        watcher.best_step or watcher.step,
        watcher.best_score,
        history[-1].train_loss if history else math.nan,
        watcher.stopped_early,
    )


def ranking_columns(examples: Sequence[RankingExample]) -> list[tuple[str, ...]]:
    """(anchor, positive, negatives...) with equally many negatives per row, as the library's loss wants
    them.
    """
    count = min((len(example.negatives) for example in examples), default=0)
    return [(example.query, example.positive, *example.negatives[:count]) for example in examples]


def _dataset(rows: Sequence[tuple[str, ...]], labels: Sequence[float] | None) -> Any:
    from datasets import Dataset

    width = len(rows[0])
    names = [*_COLUMNS[:2], *(f"{_COLUMNS[2]}_{index}" for index in range(1, width - 1))][:width]
    columns: dict[str, list[Any]] = {
        name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    if labels is not None:
        columns["label"] = list(labels)
    return Dataset.from_dict(columns)


def _arguments(recipe: Recipe, folder: Path, low_precision: bool, *, save: bool) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        weight_decay=0.0,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=True,
        bf16=low_precision,
        save_strategy="steps" if save else "no",
        save_steps=recipe.save_steps,
        save_total_limit=1,
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def _watcher(
    backbone: LibraryBackbone,
    recipe: Recipe,
    examples: int,
    validate: Validate | None,
    on_step: Callable[[Step], None],
) -> Any:
    """A Trainer callback: progress, validation, best weights, patience."""
    from transformers import TrainerCallback

    per_epoch = math.ceil(examples / recipe.batch_size)

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.history: list[TrainingMetrics] = []
            self.best: Mapping[str, Tensor] | None = None
            self.best_step = 0
            self.best_score: float | None = None
            self.step = 0
            self.stopped_early = False
            self._waited = 0
            self._started = time.monotonic()
            self._losses: list[float] = []

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
        ) -> Any:
            if not logs or "loss" not in logs:
                return control
            self.step = state.global_step
            self._losses.append(float(logs["loss"]))
            if self.step % per_epoch == 0 or self.step % recipe.evaluation_steps == 0:
                self._validate(float(logs.get("learning_rate", 0.0)))
                control.should_training_stop = control.should_training_stop or self.stopped_early
            on_step(Step(self.step, per_epoch * recipe.epochs, self.step / per_epoch, float(logs["loss"]), 0))
            return control

        def _validate(self, rate: float) -> None:
            weights = backbone.weights()
            score = validate(weights) if validate else None
            if validate:
                backbone.load(weights)
                backbone.model.train()
            elapsed = round(time.monotonic() - self._started, 2)
            loss = sum(self._losses) / len(self._losses)
            self._losses.clear()
            self.history.append(
                TrainingMetrics(self.step, round(self.step / per_epoch, 4), loss, rate, score, elapsed)
            )
            if score is None:
                return
            if self.best_score is None or score > self.best_score:
                self.best, self.best_score, self.best_step, self._waited = weights, score, self.step, 0
            else:
                self._waited += 1
                self.stopped_early = self._waited >= recipe.patience

    return Watcher()
