"""Training through `SentenceTransformerTrainer`, for architectures the fast path does not know."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.errors import JobCancelled, NotEnoughData
from ragtune_mcp.core.finetune.backbone import LibraryBackbone
from ragtune_mcp.core.finetune.checkpoint import Checkpoint, TrainerCheckpoints
from ragtune_mcp.core.finetune.config import TrainingMetrics
from ragtune_mcp.core.finetune.examples import RankingExample
from ragtune_mcp.core.finetune.objectives import Columns, library_loss
from ragtune_mcp.core.finetune.recipe import Recipe
from ragtune_mcp.core.finetune.selection import KeptStep
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
    judged_by: str = "",
) -> Trained:
    """Train with the library's own loop, loss and schedule.

    Args:
        backbone: holds the model; its base weights are put back afterwards.
        tasks: loss -> its columns; with several the Trainer alternates between them, in proportion.
        recipe: rate, epochs, batch size, seed.
        validate: (n,) scores of weights, one per query, higher is better; None to keep the last weights.
        on_step: called after every step; may raise to stop. JobCancelled keeps the state in a checkpoint, the
            best weights so far among it.
        checkpoints: where to save and resume; None for neither.
        judged_by: identifies what `validate` scores on; scores on anything else are not gone on from.

    Returns:
        The best weights and the history.

    Raises:
        JobFailed: training diverged.
    """
    from sentence_transformers import SentenceTransformerTrainer

    fingerprint = _fingerprint(backbone, tasks, recipe, judged_by) if checkpoints else ""
    saved = TrainerCheckpoints(checkpoints, fingerprint) if checkpoints else None
    run, place = _resumed(saved) or (_Run(recipe.kept_step()), None)
    per_epoch = sum(math.ceil(len(columns.rows) / recipe.batch_size) for columns in tasks.values())
    watcher = _Watcher(run, backbone, recipe, per_epoch, validate, on_step, saved)
    datasets = {name: _dataset(columns) for name, columns in tasks.items()}
    losses = {name: library_loss(name, backbone.model) for name in tasks}
    with TemporaryDirectory() as scratch:
        trainer = SentenceTransformerTrainer(
            model=backbone.model,
            args=_arguments(recipe, checkpoints or Path(scratch), backbone.low_precision),
            train_dataset=datasets if len(tasks) > 1 else next(iter(datasets.values())),
            loss=losses if len(tasks) > 1 else next(iter(losses.values())),
            callbacks=[_callback(watcher)],
        )
        try:
            with suppress(_Exhausted):
                trainer.train(resume_from_checkpoint=str(place) if place else None)
            last = backbone.weights()
        finally:
            backbone.load(backbone.base_weights)
            backbone.model.to("cpu")
    return Trained(
        run.best or last,
        run.history,
        run.step,
        run.kept.step or run.step,
        run.kept.score,
        run.history[-1].train_loss if run.history else math.nan,
        run.stopped_early,
        np.array(run.kept.scores),
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


def _arguments(recipe: Recipe, folder: Path, low_precision: bool) -> Any:
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
        save_strategy="no",  # the callback asks for each
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # or a loss that is not a number is shown as 0
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


class _Exhausted(Exception):  # noqa: N818 -- not an error
    """Patience ran out before the first step: the Trainer looks for that after a step only."""


@dataclass(slots=True)
class _Run:
    """How far training is: what a checkpoint carries beside the Trainer's own state."""

    kept: KeptStep
    step: int = 0
    rate: float = 0.0
    losses: list[float] = field(default_factory=list)
    history: list[TrainingMetrics] = field(default_factory=list)
    stopped_early: bool = False
    elapsed_s: float = 0.0
    best: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def validated(self) -> bool:
        """Whether the last step was followed by its validation."""
        return bool(self.history) and self.history[-1].step == self.step

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Run:
        state = dict(checkpoint.state)
        state["history"] = [TrainingMetrics(**entry) for entry in state["history"]]
        state["kept"] = KeptStep(**state["kept"])
        return cls(**state, best=checkpoint.tensors.get("best", {}))

    def checkpoint(self) -> Checkpoint:
        state = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "best"}
        state["kept"] = asdict(self.kept)
        state["history"] = [entry.to_dict() for entry in self.history]
        return Checkpoint({"best": self.best}, state)


def _resumed(saved: TrainerCheckpoints | None) -> tuple[_Run, Path] | None:
    found = saved.newest() if saved else None
    return (_Run.of(found.checkpoint), found.folder) if found else None


def _fingerprint(
    backbone: LibraryBackbone, tasks: Mapping[str, Columns], recipe: Recipe, judged_by: str
) -> str:
    digest = hashlib.sha256(repr((recipe, backbone.max_tokens, backbone.low_precision, judged_by)).encode())
    for name, columns in tasks.items():
        digest.update(repr((name, columns)).encode())
    for name, weight in backbone.base_weights.items():
        digest.update(name.encode())
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


class _Watcher:
    """What happens after the Trainer's steps: progress, validation, best weights, patience, checkpoints."""

    def __init__(
        self,
        run: _Run,
        backbone: LibraryBackbone,
        recipe: Recipe,
        per_epoch: int,
        validate: Validate | None,
        on_step: Callable[[Step], None],
        saved: TrainerCheckpoints | None,
    ) -> None:
        self._run = run
        self._backbone = backbone
        self._recipe = recipe
        self._per_epoch = per_epoch
        self._score = validate
        self._on_step = on_step
        self._saved = saved
        self._cancelled: JobCancelled | None = None
        self._started = time.monotonic() - run.elapsed_s

    def begin(self) -> None:
        """Before the first step, with the weights of the checkpoint in place."""
        run = self._run
        if run.step and self._is_due(run.step) and not run.validated:
            self._validate()  # it was cancelled in the middle of this one
        if run.stopped_early:
            raise _Exhausted

    def step(self, step: int, logs: Mapping[str, float], control: Any) -> None:
        """After a step; tells the Trainer through `control` to save and to stop."""
        run, loss = self._run, float(logs["loss"])
        if not math.isfinite(loss) or not math.isfinite(logs.get("grad_norm", 0.0)):
            raise diverged(loss, self._recipe.learning_rate)
        run.step, run.rate = step, float(logs["learning_rate"])
        run.losses.append(loss)
        run.elapsed_s = time.monotonic() - self._started
        try:
            if self._is_due(step):
                self._validate()
            score = run.history[-1].eval_score if run.validated else None
            steps = self._per_epoch * self._recipe.epochs
            self._on_step(Step(step, steps, step / self._per_epoch, loss, 0, score))
        except JobCancelled as cancelled:
            if self._saved is None:
                raise
            self._cancelled = cancelled  # leaves once this step is saved
        control.should_training_stop = control.should_training_stop or run.stopped_early
        regular = step % self._per_epoch == 0 or step % self._recipe.save_steps == 0
        if self._saved is not None and (regular or self._cancelled):
            self._saved.clear(step)
            control.should_save = True

    def save(self) -> None:
        """After the Trainer has written its part of a checkpoint."""
        assert self._saved is not None
        self._saved.complete(self._run.step, self._run.checkpoint())
        if self._cancelled is not None:
            raise self._cancelled

    def _is_due(self, step: int) -> bool:
        return step % self._per_epoch == 0 or step % self._recipe.evaluation_steps == 0

    def _validate(self) -> None:
        run, scores = self._run, None
        weights = self._backbone.weights()
        if self._score is not None:
            try:
                scores = self._score(weights)
            finally:
                # Reading texts puts the base weights back; a checkpoint of a cancelled validation needs these.
                self._backbone.load(weights)
                self._backbone.model.train()
        run.history.append(
            TrainingMetrics(
                step=run.step,
                epoch=round(run.step / self._per_epoch, 4),
                train_loss=float(np.mean(run.losses)),
                learning_rate=run.rate,
                eval_score=None if scores is None else float(scores.mean()),
                elapsed_s=round(time.monotonic() - self._started, 2),
            )
        )
        run.losses.clear()
        if scores is None:
            return
        if run.kept.see(run.step, scores):
            run.best = weights
        run.stopped_early = run.kept.exhausted


def _callback(watcher: _Watcher) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watcher.begin()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                watcher.step(state.global_step, logs, control)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watcher.save()

    return Callback()
