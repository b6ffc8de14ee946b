"""The training phase: examples and objective of each fold, the trainer that fits it, validation on the
way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.finetune.backbone import FastBackbone, LibraryBackbone
from ragtune_mcp.core.finetune.corpus_view import CorpusView
from ragtune_mcp.core.finetune.examples import RankingExample, grades, ranking_examples
from ragtune_mcp.core.finetune.folds import Fold
from ragtune_mcp.core.finetune.library_trainer import ranking_columns, train_with_library
from ragtune_mcp.core.finetune.memory import MemoryPlan
from ragtune_mcp.core.finetune.mining import mine_negatives
from ragtune_mcp.core.finetune.objectives import Background, LibraryLoss, Objective, Ranking, columns_for
from ragtune_mcp.core.finetune.progress import Progress
from ragtune_mcp.core.finetune.recipe import Recipe
from ragtune_mcp.core.finetune.selection import Encode, ValidationSet
from ragtune_mcp.core.finetune.trainer import FastTrainer, Step, Trained, Validate

if TYPE_CHECKING:
    from torch import Tensor

# Validating while a fold trains may cost this share of training it.
_VALIDATION_SHARE = 0.15


class Fitted(NamedTuple):
    """One fold's model and the queries it has not seen."""

    trained: Trained
    validation: ValidationSet


class TrainingPhase:
    """Fits one model per fold.

    Args:
        backbone: frozen as the recipe says.
        recipe: how to train.
        memory: bounds of the fast path; None where the library decides.
        view: the corpus by the base model.
        place: document text -> id in the corpus.
        progress: told every step, with loss and time left.
        encode: encodes with given weights, counted as progress.
    """

    def __init__(
        self,
        backbone: FastBackbone | LibraryBackbone,
        recipe: Recipe,
        memory: MemoryPlan | None,
        view: CorpusView,
        place: Mapping[str, str],
        progress: Progress,
        encode: Encode,
    ) -> None:
        self._backbone = backbone
        self._recipe = recipe
        self._memory = memory
        self._view = view
        self._place = place
        self._progress = progress
        self._encode = encode
        self._steps = 0

    def fit(self, folds: Sequence[Fold], checkpoints: Path | None) -> list[Fitted]:
        """Train on every fold in turn.

        Args:
            folds: their held-out parts judge the models.
            checkpoints: one subfolder per fold is used; None for no checkpoints.

        Returns:
            The models in the order of the folds.
        """
        fitted = []
        for number, fold in enumerate(folds):
            validation = ValidationSet(grades(fold.held_out, self._place), self._view)
            folder = checkpoints / f"fold-{number}" if checkpoints else None
            on_step = self._on_step(number, len(folds))
            trained = self._train(fold.train, self._validate(validation, fold), on_step, folder)
            trained.history = [replace(entry, fold=number) for entry in trained.history]
            fitted.append(Fitted(trained, validation))
        return fitted

    def examples(self, pairs: Sequence[TrainingPair]) -> list[RankingExample]:
        """Ranking examples with as many mined negatives as the recipe asks for."""
        examples = ranking_examples(pairs)
        if not self._recipe.mined_negatives:
            return examples
        return mine_negatives(
            examples,
            self._view.of([example.query for example in examples]),
            self._view.of([example.positive for example in examples]),
            self._view.documents,
            self._view.texts,
            per_example=self._recipe.mined_negatives,
            margin=self._recipe.margin,
        )

    def _train(
        self,
        pairs: Sequence[TrainingPair],
        validate: Validate | None,
        on_step: Callable[[Step], None],
        checkpoints: Path | None,
    ) -> Trained:
        if isinstance(self._backbone, FastBackbone):
            tokens = self._memory.part_tokens if self._memory else 1 << 30
            trainer = FastTrainer(self._backbone, self._objective(pairs), self._recipe, micro_tokens=tokens)
            return trainer.run(validate=validate, on_step=on_step, checkpoints=checkpoints)
        rows, labels = self._columns(pairs)
        return train_with_library(
            self._backbone,
            rows,
            labels,
            self._recipe,
            validate=validate,
            on_step=on_step,
            checkpoints=checkpoints,
        )

    def _objective(self, pairs: Sequence[TrainingPair]) -> Objective:
        recipe = self._recipe
        if recipe.loss != "ranking":
            return LibraryLoss(recipe.loss, *columns_for(recipe.loss, pairs, recipe.seed))
        examples = self.examples(pairs)
        background = Background(
            self._view.texts,
            self._view.documents,
            self._view.of([example.query for example in examples]),
            self._view.of([example.positive for example in examples]),
            margin=recipe.margin,
        )
        return Ranking(examples, scale=recipe.scale, background=background)

    def _columns(self, pairs: Sequence[TrainingPair]) -> tuple[list[tuple[str, ...]], list[float] | None]:
        if self._recipe.loss == "ranking":
            return ranking_columns(self.examples(pairs)), None
        return columns_for(self._recipe.loss, pairs, self._recipe.seed)

    def _validate(self, validation: ValidationSet, fold: Fold) -> Validate | None:
        if not len(validation):
            return None
        budget = _VALIDATION_SHARE * 3 * self._backbone.token_count([pair.document for pair in fold.train])
        sample = validation.sample(round(budget), self._backbone.token_count, self._recipe.seed)

        def score(weights: Mapping[str, Tensor]) -> float:
            return float(sample.score(self._encode, weights).mean())

        return score

    def _on_step(self, fold: int, folds: int) -> Callable[[Step], None]:
        upper = max(1, self._backbone.layers - self._backbone.frozen)
        before = self._steps

        def on_step(step: Step) -> None:
            self._steps = before + step.step
            total = before + (folds - fold) * step.steps
            self._progress.advance(
                3 * step.tokens * upper,
                f"training, step {self._steps} of {total}",
                loss=round(step.loss, 4),
                step=self._steps,
                steps=total,
                epoch=round(step.epoch, 2),
                fold=fold,
            )

        return on_step
