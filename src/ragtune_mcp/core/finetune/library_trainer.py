"""Training through `SentenceTransformerTrainer`, for architectures the fast path does not know."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.finetune.backbone import LibraryBackbone
from ragtune_mcp.core.finetune.config import TrainingMetrics
from ragtune_mcp.core.finetune.examples import RankingExample
from ragtune_mcp.core.finetune.objectives import Columns, library_loss
from ragtune_mcp.core.finetune.recipe import Recipe
from ragtune_mcp.core.finetune.trainer import Step, Trained, Validate, diverged

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = ("anchor", "positive", "negative")


def train_with_library(
    backbone: LibraryBackbone,
    tasks: Mapping[str, Columns],
    recipe: Recipe,
    *,
    validate: Validate | None,
    on_step: Callable[[Step], None],
    checkpoints: Path | None = None,
) -> Trained:
    """Train with the library's own loop, loss and schedule.

    Args:
        backbone: holds the model; its base weights are put back afterwards.
        tasks: loss -> its columns; with several the Trainer alternates between them, in proportion.
        recipe: rate, epochs, batch size, seed.
        validate: (n,) scores of weights, one per query, higher is better; None to keep the last weights.
        on_step: called after every step; may raise to stop.
        checkpoints: the Trainer's own checkpoints are written and resumed here; None for neither.

    Returns:
        The best weights and the history.
    """
    from sentence_transformers import SentenceTransformerTrainer

    steps = sum(math.ceil(len(columns.rows) / recipe.batch_size) for columns in tasks.values())
    watcher = _watcher(backbone, recipe, steps, validate, on_step)
    datasets = {name: _dataset(columns) for name, columns in tasks.items()}
    losses = {name: library_loss(name, backbone.model) for name in tasks}
    with TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=backbone.model,
            args=_arguments(
                recipe, checkpoints or Path(scratch), backbone.low_precision, save=checkpoints is not None
            ),
            train_dataset=datasets if len(tasks) > 1 else next(iter(datasets.values())),
            loss=losses if len(tasks) > 1 else next(iter(losses.values())),
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
        watcher.kept.step or watcher.step,
        watcher.kept.score,
        history[-1].train_loss if history else math.nan,
        watcher.stopped_early,
        np.array(watcher.kept.scores),
    )


def ranking_task(examples: Sequence[RankingExample]) -> dict[str, Columns]:
    """The recipe's objective for the library: (anchor, positive, negatives...).

    The library wants equally many negatives per row: short rows repeat theirs, and a row without any takes
    the first that is no answer to its query, of the others.
    """
    count = max((len(example.negatives) for example in examples), default=0)
    everything = dict.fromkeys(text for example in examples for text in example.negatives)
    rows: list[tuple[str, ...]] = []
    for example in examples:
        own = example.negatives or tuple(
            islice((text for text in everything if text not in example.answers), count)
        )
        if count and not own:
            raise NotEnoughData(f"No document can serve as a negative of {example.query!r}.")
        rows.append((example.query, example.positive, *islice(cycle(own), count)))
    return {"MultipleNegativesRankingLoss": Columns(rows, None)}


def _dataset(task: Columns) -> Any:
    from datasets import Dataset

    rows, labels = task
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
    per_epoch: int,
    validate: Validate | None,
    on_step: Callable[[Step], None],
) -> Any:
    """A Trainer callback: progress, validation, best weights, patience."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.history: list[TrainingMetrics] = []
            self.best: Mapping[str, Tensor] | None = None
            self.kept = recipe.kept_step()
            self.step = 0
            self.stopped_early = False
            self._started = time.monotonic()
            self._losses: list[float] = []

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
        ) -> Any:
            if not logs or "loss" not in logs:
                return control
            self.step = state.global_step
            if not math.isfinite(logs["loss"]):
                raise diverged(logs["loss"], recipe.learning_rate)
            self._losses.append(float(logs["loss"]))
            if self.step % per_epoch == 0 or self.step % recipe.evaluation_steps == 0:
                self._validate(float(logs.get("learning_rate", 0.0)))
                control.should_training_stop = control.should_training_stop or self.stopped_early
            score = (
                self.history[-1].eval_score if self.history and self.history[-1].step == self.step else None
            )
            steps = per_epoch * recipe.epochs
            on_step(Step(self.step, steps, self.step / per_epoch, float(logs["loss"]), 0, score))
            return control

        def _validate(self, rate: float) -> None:
            weights = backbone.weights()
            scores = validate(weights) if validate else None
            score = None if scores is None else float(scores.mean())
            if validate:
                backbone.load(weights)
                backbone.model.train()
            elapsed = round(time.monotonic() - self._started, 2)
            loss = sum(self._losses) / len(self._losses)
            self._losses.clear()
            self.history.append(
                TrainingMetrics(self.step, round(self.step / per_epoch, 4), loss, rate, score, elapsed)
            )
            if scores is None:
                return
            if self.kept.see(self.step, scores):
                self.best = weights
            self.stopped_early = self.kept.exhausted

    return Watcher()
