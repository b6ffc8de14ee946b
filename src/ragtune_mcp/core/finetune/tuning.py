"""From a data set to a judged model: the order of the phases of one fine-tuning run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from ragtune_mcp.core.dataset.pairs import Dataset, TrainingPair
from ragtune_mcp.core.finetune.backbone import FastBackbone, LibraryBackbone, open_backbone
from ragtune_mcp.core.finetune.base import BaseModel
from ragtune_mcp.core.finetune.card import CardData, model_card
from ragtune_mcp.core.finetune.config import FineTuningConfig, TrainingMetrics
from ragtune_mcp.core.finetune.corpus_view import CorpusView
from ragtune_mcp.core.finetune.evaluation import Vectors, compare
from ragtune_mcp.core.finetune.evaluation import report as evaluation_report
from ragtune_mcp.core.finetune.examples import grades, is_positive
from ragtune_mcp.core.finetune.folds import make_folds
from ragtune_mcp.core.finetune.gate import (
    Forgetting,
    GateVerdict,
    judge,
    neighbour_agreement,
    probe_correlation,
)
from ragtune_mcp.core.finetune.memory import MemoryPlan, plan_memory
from ragtune_mcp.core.finetune.parts import document_ids, split_parts
from ragtune_mcp.core.finetune.progress import Progress, Report
from ragtune_mcp.core.finetune.recipe import Recipe, choose_recipe
from ragtune_mcp.core.finetune.selection import Choice, choose_alpha
from ragtune_mcp.core.finetune.similarity import pair_metrics
from ragtune_mcp.core.finetune.trainer import average, interpolate
from ragtune_mcp.core.finetune.training import Fitted, TrainingPhase

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """What one run leaves behind.

    Attributes:
        metrics: flat numbers: final_train_loss, final_eval_score (validation nDCG@10 of the kept weights),
            ...
        evaluation: held-out test queries against the whole corpus, base and tuned; see `evaluation.report`.
        chosen: the recipe, the interpolation kept, and why.
    """

    model_path: Path
    duration_s: float
    metrics: dict[str, float | None]
    evaluation: dict[str, Any]
    gate: GateVerdict
    history: list[TrainingMetrics]
    chosen: dict[str, Any]


def fine_tune(
    dataset: Dataset,
    corpus: Mapping[str, str],
    base: BaseModel,
    config: FineTuningConfig,
    output: Path,
    *,
    report: Report,
    cancelled: Callable[[], None],
    checkpoints: Path | None,
) -> FineTuneResult:
    """Train, choose, evaluate and judge one model.

    Args:
        dataset: pairs with their splits; the test part is never trained on and never used for a choice.
        corpus: document id -> text: the whole index that queries are answered from.
        base: the model to start from.
        config: see `FineTuningConfig`.
        output: folder to create with the model; written beside it first and renamed when complete.
        report: receives (fraction, message, fields); fields hold `eta_s`, and in training `loss`.
        cancelled: raises when the job was cancelled; called at least once per step.
        checkpoints: folder for checkpoints; an interrupted run with the same data and recipe is resumed from
            it.

    Returns:
        The result; a model that did not pass the gate is returned too, with the verdict "block".

    Raises:
        NotEnoughData: too few positive pairs.
        JobCancelled: raised by `cancelled`.
    """
    return _Run(dataset, corpus, base, config, Progress(report, cancelled)).result(output, checkpoints)


class _Run:
    """The phases of one run; each reads what the ones before it left."""

    def __init__(
        self,
        dataset: Dataset,
        corpus: Mapping[str, str],
        base: BaseModel,
        config: FineTuningConfig,
        progress: Progress,
    ) -> None:
        self._config = config
        self._base = base
        self._dataset_id = dataset.dataset_id
        self._progress = progress
        self._parts = split_parts(dataset.pairs, config)
        self._corpus = corpus
        self._place = document_ids(dataset.pairs, corpus)
        self._queries = sorted({pair.query for pair in dataset.pairs})
        progress.start("loading the base model")
        self._backbone = open_backbone(base.path, config.max_seq_length, low_precision=config.use_amp)
        trained = (*self._parts.train, *self._parts.validation)
        positives = sum(is_positive(pair) for pair in trained)
        self._recipe = choose_recipe(config, positives, self._backbone.layers)
        self._folds = make_folds(
            self._parts.train, self._parts.validation, self._recipe.folds, config.random_seed
        )
        self._memory = freeze_within_memory(self._backbone, self._recipe, trained, list(corpus.values()))
        self._upper = max(1, self._backbone.layers - self._backbone.frozen)
        progress.plan(self._work())

    def result(self, output: Path, checkpoints: Path | None) -> FineTuneResult:
        view = self._encode_base()
        self._progress.start("training")
        phase = TrainingPhase(
            self._backbone, self._recipe, self._memory, view, self._place, self._progress, self._encode
        )
        fitted = phase.fit(self._folds, checkpoints)
        choice = self._choose(fitted)
        # A blocked run still leaves the mildest trained candidate, so that the verdict is about a real model.
        alpha = choice.alpha or min(a for a in self._recipe.candidates if a > 0)
        weights = interpolate(
            self._backbone.base_weights, average([f.trained.weights for f in fitted]), alpha
        )
        tuned = self._encode_tuned(weights)
        evaluation, gate = self._evaluate(view, tuned, weights, choice.alpha)
        history = [entry for f in fitted for entry in f.trained.history]
        metrics = self._metrics(fitted, choice, alpha, evaluation)
        chosen = self._chosen(fitted, choice)
        self._progress.start("saving the model")
        card = model_card(self._card_data(output.name), evaluation, gate, chosen)
        _save(self._backbone, weights, card, output)
        return FineTuneResult(output, self._progress.elapsed_s, metrics, evaluation, gate, history, chosen)

    def _work(self) -> dict[str, float]:
        """Tokens x layers of each phase, for the progress bar."""
        count, recipe = self._backbone.token_count, self._recipe
        corpus = count(list(self._corpus.values()))
        training = validating = 0
        for fold in self._folds:
            answers = [
                text for pair in fold.train if is_positive(pair) for text in (pair.query, pair.document)
            ]
            training += count(answers) * (1 + recipe.mined_negatives)
            held_out = [pair for pair in fold.held_out if is_positive(pair)]
            validating += min(corpus, 20 * count([pair.document for pair in held_out]))
        return {
            "encoding the corpus with the base model": corpus * max(1, self._backbone.layers),
            "training": 3.5 * training * recipe.epochs * self._upper,
            "choosing the candidate": validating * sum(a > 0 for a in recipe.alphas) * self._upper,
            "encoding the corpus with the tuned model": corpus * self._upper,
            "evaluating": corpus * self._upper * 0.05,
        }

    def _encode_base(self) -> CorpusView:
        self._progress.start("encoding the corpus with the base model")
        layers = max(1, self._backbone.layers)
        if isinstance(self._backbone, FastBackbone):
            # Texts that are read in every epoch come first, should the memory bound not hold them all.
            trained = (*self._parts.train, *self._parts.validation)
            self._backbone.keep([text for pair in trained for text in (pair.query, pair.document)])
        return CorpusView(
            self._backbone,
            self._corpus,
            self._queries,
            lambda tokens: self._progress.advance(tokens * layers),
        )

    def _encode(self, texts: Sequence[str], weights: Mapping[str, Tensor] | None) -> np.ndarray:
        return self._backbone.encode(
            texts, weights, lambda tokens: self._progress.advance(tokens * self._upper)
        )

    def _encode_tuned(self, weights: Mapping[str, Tensor]) -> Vectors:
        self._progress.start("encoding the corpus with the tuned model")
        documents = self._encode(list(self._corpus.values()), weights)
        queries = dict(zip(self._queries, self._encode(self._queries, weights), strict=True))
        return Vectors(queries, documents, list(self._corpus))

    def _choose(self, fitted: Sequence[Fitted]) -> Choice:
        """Score the candidates of every fold on the queries it has not seen."""
        self._progress.start("choosing the candidate")
        base = self._backbone.base_weights
        scores = {
            alpha: np.concatenate(
                [
                    f.validation.base_score()
                    if alpha == 0
                    else f.validation.score(self._encode, interpolate(base, f.trained.weights, alpha))
                    for f in fitted
                ]
            )
            for alpha in self._recipe.alphas
        }
        return choose_alpha(scores, self._recipe.candidates)

    def _evaluate(
        self, view: CorpusView, tuned: Vectors, weights: Mapping[str, Tensor], alpha: float
    ) -> tuple[dict[str, Any], GateVerdict]:
        self._progress.start("evaluating")
        seed, test = self._config.random_seed, self._parts.test
        qrels = grades(test, self._place)
        runs = [vectors.rank(qrels) for vectors in (view.vectors(), tuned)]
        trained = (*self._parts.train, *self._parts.validation)
        rated = {
            self._place[p.document] for p in trained if p.rating is not None and p.document in self._place
        }
        evaluation = evaluation_report(
            runs[0], runs[1], qrels, rated, {query: query for query in qrels}, seed
        )
        evaluation["documents"] = len(self._corpus)
        evaluation["pairs"] = {
            "base": pair_metrics(view.of, test),
            "tuned": pair_metrics(lambda texts: self._encode(texts, weights), test),
        }
        forgetting = Forgetting(
            probe_correlation(view.of),
            probe_correlation(lambda texts: self._encode(texts, weights)),
            neighbour_agreement(view.documents, tuned.documents, seed),
        )
        hint = (
            f"more ratings, of more different queries (now {len(self._queries)} queries, "
            f"{len({pair.query for pair in test})} of them held out for testing)"
        )
        differences = compare(runs[0], runs[1], qrels).differences()
        return evaluation, judge(differences, forgetting, chosen_alpha=alpha, seed=seed, ratings_hint=hint)

    def _metrics(
        self, fitted: Sequence[Fitted], choice: Choice, alpha: float, evaluation: Mapping[str, Any]
    ) -> dict[str, float | None]:
        metrics: dict[str, float | None] = {
            "final_train_loss": float(np.mean([f.trained.final_loss for f in fitted])),
            "final_eval_score": choice.score(alpha) if choice.scores else None,
            "base_eval_score": choice.scores.get(0.0),
            "test_queries": float(evaluation["queries"]),
        }
        for name, gain in evaluation["gain"].items():
            metrics[f"base_{name}"] = evaluation["base"][name]
            metrics[f"tuned_{name}"] = evaluation["tuned"][name]
            metrics[f"gain_{name}"] = gain["mean"]
        metrics.update(evaluation["pairs"]["tuned"])
        return metrics

    def _chosen(self, fitted: Sequence[Fitted], choice: Choice) -> dict[str, Any]:
        return {
            "recipe": self._recipe.to_dict(),
            "interpolation": choice.to_dict(),
            "reasons": [*self._recipe.reasons, choice.reason],
            "steps": sum(f.trained.steps for f in fitted),
            "best_steps": [f.trained.best_step for f in fitted],
            "stopped_early": any(f.trained.stopped_early for f in fitted),
            "memory": self._memory.to_dict() if self._memory else None,
        }

    def _card_data(self, name: str) -> CardData:
        parts = self._parts._asdict()
        return CardData(
            name=name,
            base=self._base.name,
            dataset_id=self._dataset_id,
            pairs={part: len(pairs) for part, pairs in parts.items()},
            queries={part: len({pair.query for pair in pairs}) for part, pairs in parts.items()},
            max_tokens=self._backbone.max_tokens,
            duration_s=self._progress.elapsed_s,
        )


def freeze_within_memory(
    backbone: FastBackbone | LibraryBackbone,
    recipe: Recipe,
    pairs: Sequence[TrainingPair],
    texts: Sequence[str],
) -> MemoryPlan | None:
    """Freeze the fast backbone's lower layers within the memory there is.

    Args:
        backbone: the library's own is left alone.
        recipe: frozen layers, batch size, negatives.
        pairs: what is trained on.
        texts: the corpus.

    Returns:
        The bounds of the run; None where the library decides.

    Raises:
        JobFailed: the run does not fit into memory.
    """
    if not isinstance(backbone, FastBackbone):
        return None
    answers = [text for pair in pairs for text in (pair.query, pair.document)]
    corpus, training = backbone.token_count(texts), backbone.token_count(answers)
    per_example = 2 * training / max(1, len(set(answers))) * (1 + recipe.mined_negatives)
    width, item_bytes = backbone.shape.width, backbone.dtype.itemsize
    plan = plan_memory(
        backbone.size(recipe.frozen_layers),
        text_tokens=backbone.max_tokens,
        batch_tokens=round(recipe.batch_size * per_example),
        kept_bytes=(corpus + training) * width * item_bytes if recipe.frozen_layers else 0,
        vector_bytes=2 * len(texts) * width * 4,
        item_bytes=item_bytes,
        available=psutil.virtual_memory().available,
    )
    backbone.freeze(recipe.frozen_layers, plan.kept_bytes)
    return plan


def _save(
    backbone: FastBackbone | LibraryBackbone, weights: Mapping[str, Tensor], card: str, output: Path
) -> None:
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    backbone.save(weights, partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    os.replace(partial, output)
