"""From a data set to a judged model: the order of the phases of one fine-tuning run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.finetune.backbone import FastBackbone, LibraryBackbone, open_backbone
from ragtune_mcp.core.finetune.base import BaseModel
from ragtune_mcp.core.finetune.card import CardData, model_card
from ragtune_mcp.core.finetune.config import FineTuningConfig, TrainingMetrics
from ragtune_mcp.core.finetune.encoded import Encoded
from ragtune_mcp.core.finetune.evaluation import Vectors
from ragtune_mcp.core.finetune.evaluation import report as evaluation_report
from ragtune_mcp.core.finetune.examples import (
    RankingExample,
    grades,
    group_of,
    is_positive,
    ranking_examples,
)
from ragtune_mcp.core.finetune.gate import (
    Forgetting,
    GateVerdict,
    judge,
    neighbour_agreement,
    probe_correlation,
)
from ragtune_mcp.core.finetune.library_trainer import ranking_task, train_with_library
from ragtune_mcp.core.finetune.memory import MemoryPlan, plan_run
from ragtune_mcp.core.finetune.mining import mine_negatives
from ragtune_mcp.core.finetune.objectives import Objective, Ranking, objective_for, tasks_for
from ragtune_mcp.core.finetune.parts import document_ids, split_parts, wanted_feedback
from ragtune_mcp.core.finetune.progress import Progress, Report
from ragtune_mcp.core.finetune.recipe import choose_recipe
from ragtune_mcp.core.finetune.save import save_model
from ragtune_mcp.core.finetune.selection import Choice, ValidationSet, choose_alpha
from ragtune_mcp.core.finetune.similarity import pair_metrics
from ragtune_mcp.core.finetune.trainer import FastTrainer, Step, Trained, interpolate

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
        self._dataset = dataset
        self._progress = progress
        self._parts = split_parts(dataset.pairs, config)
        self._ids = list(corpus)
        self._texts = list(corpus.values())
        self._place = document_ids(dataset.pairs, corpus)
        self._corpus = corpus
        progress.start("loading the base model")
        self._backbone = open_backbone(base.path, config.max_seq_length, low_precision=config.use_amp)
        self._window = ""
        served = self._backbone
        if served.max_tokens < served.limit:
            # The base model is served with its own window, so that is what a shorter one has to beat.
            served = open_backbone(base.path, served.limit, low_precision=config.use_amp)
            self._window = (
                f"Texts are cut to {self._backbone.max_tokens} tokens as configured; the base model it is "
                f"compared with reads {served.limit}."
            )
        positives = sum(is_positive(pair) for pair in self._parts.train)
        options = dataset.manifest.get("options", {})
        self._recipe = choose_recipe(
            config,
            positives,
            self._backbone.layers,
            hard_negatives=options.get("include_hard_negatives", True),
        )
        self._memory = self._plan_memory()
        if self._memory:
            gib = self._memory.gib
            progress.advance(0, f"expecting to take {gib} GiB of memory", memory_gib=gib)
        self._queries = sorted({pair.query for pair in dataset.pairs})
        self._plan_work()
        layers = self._backbone.layers or 1

        def tick(tokens: int) -> None:
            progress.advance(tokens * layers)

        self._by_base = Encoded(self._backbone, None, tick)
        self._as_served = self._by_base if served is self._backbone else Encoded(served, None, tick)

    def result(self, output: Path, checkpoints: Path | None) -> FineTuneResult:
        before = self._encode_base()
        validation = ValidationSet(grades(self._parts.validation, self._place), self._corpus, before)
        trained = self._train(validation, checkpoints)
        choice, candidates = self._choose(trained, validation)
        # A blocked run still leaves the mildest trained candidate, so that the verdict is about a real model.
        alpha = choice.alpha or min(a for a in self._recipe.alphas if a > 0)
        tuned = candidates[alpha]
        assert tuned.weights is not None
        self._progress.start("encoding the corpus with the tuned model")
        after = self._vectors(tuned)
        evaluation, metrics = self._evaluate(before, after, tuned)
        gate = self._judge(
            evaluation.pop("differences"), before.documents, after.documents, tuned, choice.alpha
        )
        self._progress.start("saving the model")
        metrics = {
            "final_train_loss": trained.final_loss,
            "final_eval_score": choice.scores.get(alpha, trained.best_score),
            "base_eval_score": choice.scores.get(0.0),
            **metrics,
        }
        chosen = {
            "recipe": self._recipe.to_dict(),
            "interpolation": choice.to_dict(),
            "reasons": [*self._recipe.reasons, *filter(None, [self._window]), choice.reason],
            "steps": trained.steps,
            "best_step": trained.best_step,
            "stopped_early": trained.stopped_early,
            "memory": self._memory.to_dict() if self._memory else None,
        }
        card = model_card(self._card_data(output.name), evaluation, gate, chosen)
        save_model(self._backbone, tuned.weights, card, output)
        return FineTuneResult(
            output, self._progress.elapsed_s, metrics, evaluation, gate, trained.history, chosen
        )

    def _card_data(self, name: str) -> CardData:
        return CardData(
            name=name,
            base=self._base.name,
            dataset_id=self._dataset.dataset_id,
            pairs={part: len(pairs) for part, pairs in self._parts._asdict().items()},
            queries={
                part: len({pair.query for pair in pairs}) for part, pairs in self._parts._asdict().items()
            },
            max_tokens=self._backbone.max_tokens,
            duration_s=self._progress.elapsed_s,
        )

    def _plan_memory(self) -> MemoryPlan | None:
        """Freeze the backbone within the memory there is; None where the library decides."""
        backbone, recipe = self._backbone, self._recipe
        if not isinstance(backbone, FastBackbone):
            return None
        if recipe.loss == "ranking":
            # What will be mined is taken to be as long as the answers.
            examples = ranking_examples(self._parts.train)
            tasks = [[(e.query, *[e.positive] * (1 + recipe.in_batch)) for e in examples]]
        else:
            named = tasks_for(recipe.loss, self._parts.train, recipe.seed)
            tasks = [columns.rows for columns in named.values()]
        plan = plan_run(backbone, recipe.frozen_layers, recipe.batch_size, tasks, self._texts)
        backbone.freeze(recipe.frozen_layers, plan.kept_bytes)
        return plan

    def _plan_work(self) -> None:
        layers = self._backbone.layers or 1
        self._upper = upper = layers - self._backbone.frozen
        corpus = self._backbone.token_count(self._texts)
        ranking = self._recipe.loss == "ranking"
        read = [
            text
            for pair in self._parts.train
            if is_positive(pair) or not ranking
            for text in (pair.query, pair.document)
        ]
        per_epoch = self._backbone.token_count(read)
        in_batch = self._recipe.in_batch
        fixed = min(corpus, per_epoch * (self._recipe.mined_negatives - in_batch))
        held_out = min(corpus, 3000 * len({pair.query for pair in self._parts.validation}))
        self._progress.plan(
            {
                "encoding the corpus with the base model": corpus * layers * (2 if self._window else 1),
                "training": (3 * (1 + in_batch) * per_epoch + fixed + held_out) * self._recipe.epochs * upper,
                "choosing the interpolation": held_out * upper * (len(self._recipe.alphas) - 2),
                "encoding the corpus with the tuned model": corpus * upper,
                "evaluating": corpus * upper * 0.05,
            }
        )

    def _encode_base(self) -> Vectors:
        self._progress.start("encoding the corpus with the base model")
        if isinstance(self._backbone, FastBackbone):
            # Texts that are read in every epoch come first, should the memory bound not hold them all.
            self._backbone.keep(
                [text for pair in self._parts.train for text in (pair.query, pair.document)],
                lambda _: self._progress.advance(0),
            )
        return self._vectors(self._as_served)

    def _vectors(self, encode: Encoded) -> Vectors:
        queries = dict(zip(self._queries, encode(self._queries), strict=True))
        return Vectors(queries, encode(self._texts), self._ids)

    def _encoded(self, weights: Mapping[str, Tensor]) -> Encoded:
        return Encoded(self._backbone, weights, lambda tokens: self._progress.advance(tokens * self._upper))

    def _seen(self, weights: Mapping[str, Tensor]) -> Encoded:
        """The same within training, whose progress is that of its steps."""
        return Encoded(self._backbone, weights, lambda _: self._progress.advance(0))

    def _train(self, validation: ValidationSet, checkpoints: Path | None) -> Trained:
        recipe = self._recipe
        validate = (lambda weights: validation.score(self._seen(weights))) if len(validation) else None

        def on_step(step: Step) -> None:
            validated = {} if step.eval_score is None else {"eval_score": round(step.eval_score, 4)}
            self._progress.reach(
                step.step / step.steps,
                f"training, step {step.step} of {step.steps}",
                loss=round(step.loss, 4),
                step=step.step,
                steps=step.steps,
                epoch=round(step.epoch, 2),
                **validated,
            )

        if recipe.loss == "ranking":
            examples = self._mined()
        self._progress.start("training")
        if isinstance(self._backbone, LibraryBackbone):
            tasks = (
                ranking_task(examples)
                if recipe.loss == "ranking"
                else tasks_for(recipe.loss, self._parts.train, recipe.seed)
            )
            return train_with_library(
                self._backbone,
                tasks,
                recipe,
                validate=validate,
                on_step=on_step,
                checkpoints=checkpoints,
                judged_by=validation.key,
            )
        objective: Objective = (
            Ranking(examples, scale=recipe.scale, in_batch=recipe.in_batch)
            if recipe.loss == "ranking"
            else objective_for(tasks_for(recipe.loss, self._parts.train, recipe.seed))
        )
        assert self._memory is not None
        trainer = FastTrainer(
            self._backbone,
            objective,
            recipe,
            micro_tokens=self._memory.part_tokens,
            read=lambda texts, weights: (self._by_base if weights is None else self._seen(weights))(texts),
            on_part=lambda: self._progress.advance(0),
        )
        return trainer.run(
            validate=validate, on_step=on_step, checkpoints=checkpoints, judged_by=validation.key
        )

    def _mined(self) -> list[RankingExample]:
        examples = ranking_examples(self._parts.train, self._corpus, self._dataset.excluded_negatives)
        return mine_negatives(
            examples,
            self._by_base([example.query for example in examples]),
            self._by_base([example.positive for example in examples]),
            self._by_base(self._texts),
            self._texts,
            per_example=self._recipe.mined_negatives,
            margin=self._recipe.margin,
        )

    def _choose(self, trained: Trained, validation: ValidationSet) -> tuple[Choice, dict[float, Encoded]]:
        """The interpolation to keep, and all that were candidates."""
        self._progress.start("choosing the interpolation")
        candidates = {
            alpha: self._encoded(interpolate(self._backbone.base_weights, trained.weights, alpha))
            for alpha in self._recipe.alphas
            if alpha > 0
        }
        known = {0.0: validation.base, **({1.0: trained.scores} if len(trained.scores) else {})}
        scores = {
            alpha: known[alpha] if alpha in known else validation.score(candidates[alpha])
            for alpha in self._recipe.alphas
        }
        return choose_alpha(scores), candidates

    def _evaluate(
        self, before: Vectors, after: Vectors, tuned: Encoded
    ) -> tuple[dict[str, Any], dict[str, float | None]]:
        self._progress.start("evaluating")
        qrels = grades(self._parts.test, self._place)
        base_run, tuned_run = (
            Vectors({query: v.queries[query] for query in qrels}, v.documents, v.ids).rank()
            for v in (before, after)
        )
        rated = {
            self._place[pair.document]
            for pair in self._parts.train
            if pair.rating and pair.document in self._place
        }
        seed = self._config.random_seed
        groups = {pair.query: group_of(pair) for pair in self._parts.test}
        found = evaluation_report(base_run, tuned_run, qrels, rated, groups, seed)
        found["documents"] = len(self._ids)
        pairs = {
            "base": pair_metrics(self._as_served, self._parts.test),
            "tuned": pair_metrics(tuned, self._parts.test),
        }
        found["pairs"] = pairs
        metrics: dict[str, float | None] = {"test_queries": float(found["queries"])}
        for name, gain in found["gain"].items():
            metrics[f"base_{name}"], metrics[f"tuned_{name}"] = found["base"][name], found["tuned"][name]
            metrics[f"gain_{name}"] = gain["mean"]
        metrics.update(pairs["tuned"])
        return found, metrics

    def _judge(
        self,
        differences: np.ndarray,
        before: np.ndarray,
        after: np.ndarray,
        tuned: Encoded,
        alpha: float,
    ) -> GateVerdict:
        forgetting = Forgetting(
            probe_correlation(self._as_served),
            probe_correlation(tuned),
            neighbour_agreement(before, after, self._config.random_seed),
        )
        hint = wanted_feedback(self._dataset.pairs, self._parts.test, self._place)
        return judge(
            differences, forgetting, chosen_alpha=alpha, seed=self._config.random_seed, ratings_hint=hint
        )
