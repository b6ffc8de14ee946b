"""A smaller, faster student of a version, judged against it on the same held-out feedback."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.finetune.backbone import FastBackbone, open_backbone
from ragtune_mcp.core.finetune.base import BaseModel
from ragtune_mcp.core.finetune.card import student_card
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.evaluation import Vectors
from ragtune_mcp.core.finetune.evaluation import report as evaluation_report
from ragtune_mcp.core.finetune.examples import grades, group_of
from ragtune_mcp.core.finetune.gate import MIN_QUERIES, GateVerdict, Verdict, probe_correlation
from ragtune_mcp.core.finetune.intervals import paired_interval
from ragtune_mcp.core.finetune.memory import MemoryPlan, plan_run
from ragtune_mcp.core.finetune.parts import document_ids
from ragtune_mcp.core.finetune.progress import Progress, Report
from ragtune_mcp.core.finetune.recipe import Recipe, choose_recipe
from ragtune_mcp.core.finetune.save import save_model
from ragtune_mcp.core.finetune.student import Matching, sentences, write_student
from ragtune_mcp.core.finetune.trainer import FastTrainer, Step, Trained
from ragtune_mcp.core.finetune.tuning import FineTuneResult

if TYPE_CHECKING:
    from torch import Tensor

# What a student may lose against its teacher in mean nDCG@10, and in correlation with the similarity probes.
MARGIN = 0.03
_EPOCHS, _BATCH, _RATE, _WARMUP_SHARE = 2, 32, 2e-4, 0.1
_SENTENCES = 5
# With fewer held-out queries a bootstrap interval is too narrow where a student loses a lot on a few of them: a loss
# of the whole margin passed in 15 % of simulated runs at 15 queries, in 5 % at 60.
_PASS_QUERIES = 60
_SEED = 42


def distill(
    dataset: Dataset,
    corpus: Mapping[str, str],
    teacher: BaseModel,
    layers: int,
    output: Path,
    *,
    report: Report,
    cancelled: Callable[[], None],
    checkpoints: Path | None,
) -> FineTuneResult:
    """Train a student of fewer layers and judge it against its teacher.

    Args:
        dataset: what the teacher was tuned on; its training queries are matched, its test part judges.
        corpus: document id -> text: the whole index.
        teacher: the version to be made smaller.
        layers: of the student; fewer than the teacher's.
        output: folder to create with the model.
        report: as in `fine_tune`.
        cancelled: as in `fine_tune`.
        checkpoints: as in `fine_tune`.

    Returns:
        The result; in its evaluation the teacher is called base, the student tuned.

    Raises:
        InvalidInput: the teacher is not a BERT that the fast path knows, or has no more layers.
        JobCancelled: raised by `cancelled`.
    """
    started, progress = time.monotonic(), Progress(report, cancelled)
    progress.start("loading the teacher")
    source = output.with_name(f".{output.name}.student")
    shutil.rmtree(source, ignore_errors=True)
    source.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_student(teacher.path, layers, source)
        models = _opened(teacher.path), _opened(source)
        texts = texts_to_match(dataset, corpus, _SEED)
        memory = plan_student(models[1], texts)
        progress.advance(0, f"expecting to take {memory.gib} GiB of memory", memory_gib=memory.gib)
        trained = _train(*models, texts, memory, progress, checkpoints)
        evaluation, metrics, gate = _judge(*models, trained, dataset, corpus, progress)
        progress.start("saving the model")
        chosen: dict[str, Any] = {
            "layers": layers,
            "reasons": [
                f"{layers} of the {models[0].layers} layers of {teacher.name}, trained to give its vectors on "
                f"{len(texts)} documents, rated queries and sentences of the documents."
            ],
            "steps": trained.steps,
            "memory": memory.to_dict(),
        }
        metrics = {"final_train_loss": trained.final_loss, **metrics}
        card = student_card(output.name, teacher.name, evaluation, gate, chosen)
        save_model(models[1], trained.weights, card, output)
    finally:
        shutil.rmtree(source, ignore_errors=True)
    duration = time.monotonic() - started
    return FineTuneResult(output, duration, metrics, evaluation, gate, trained.history, chosen)


def train_student(
    teacher: FastBackbone,
    student: FastBackbone,
    texts: Sequence[str],
    *,
    seed: int,
    memory: MemoryPlan,
    on_step: Callable[[Step], None],
    checkpoints: Path | None,
    tick: Callable[[int], None] | None = None,
) -> Trained:
    """Train every weight of the student to give the teacher's vectors (Reimers and Gurevych 2020).

    Args:
        teacher: gives the vectors to match.
        student: from `write_student`.
        texts: documents and query-like texts; none of a held-out query.
        seed: of the order.
        memory: from `plan_student`.
        on_step: called after every step; may raise to stop.
        checkpoints: where to save and resume; None for neither.
        tick: called with the tokens that the teacher has encoded.

    Returns:
        The last weights and the history.
    """
    objective = Matching(texts, teacher.encode(texts, tick=tick))
    trainer = FastTrainer(student, objective, _recipe(len(texts), seed), micro_tokens=memory.part_tokens)
    return trainer.run(validate=None, on_step=on_step, checkpoints=checkpoints)


def plan_student(student: FastBackbone, texts: Sequence[str]) -> MemoryPlan:
    """The memory that `train_student` takes.

    Args:
        student: from `write_student`.
        texts: what it will be trained on.

    Returns:
        The plan.

    Raises:
        NotEnoughMemory: not even the smallest plan fits.
    """
    return plan_run(student, 0, _BATCH, [[(text,) for text in texts]], texts)


def texts_to_match(dataset: Dataset, corpus: Mapping[str, str], seed: int) -> list[str]:
    """Documents, queries that are not held out, and sentences of the documents for want of more queries; no
    sentence is a held-out query.
    """
    documents = list(corpus.values())
    held_out = {pair.query.strip().casefold() for pair in dataset.pairs if pair.split == "test"}
    queries = sorted({pair.query for pair in dataset.pairs if pair.split != "test"})
    short = [
        text for text in sentences(documents, _SENTENCES, seed) if text.strip().casefold() not in held_out
    ]
    return list(dict.fromkeys([*documents, *queries, *short]))


def judge_student(differences: np.ndarray, teacher_probe: float, student_probe: float) -> GateVerdict:
    """Non-inferiority: the student need not be better, but must stay within `MARGIN` of its teacher.

    Args:
        differences: (n,) nDCG@10 of the student minus the teacher per held-out query.
        teacher_probe: the teacher's correlation with the similarity probes.
        student_probe: the student's.

    Returns:
        "block" when there are too few queries or the mean loss, of either kind, is above the margin; "pass" when
        the whole 95 % interval of at least 60 queries is within it; else "warn".
    """
    found = paired_interval(differences)
    reasons: list[str] = []
    verdict: Verdict = "warn"
    if found.n < MIN_QUERIES or found.mean is None or found.low is None:
        verdict = "block"
        reasons.append(
            f"Not enough held-out feedback: {found.n} judged queries, {MIN_QUERIES} are needed to judge a model."
        )
    else:
        shown = (
            f"nDCG@10 {found.mean:+.3f} against the teacher ({found.low:+.3f} .. {found.high:+.3f}) on {found.n} "
            f"held-out queries; {MARGIN:.2f} may be lost, and {_PASS_QUERIES} queries are needed to be sure"
        )
        within = found.low >= -MARGIN and found.n >= _PASS_QUERIES
        verdict = "block" if found.mean < -MARGIN else "pass" if within else "warn"
        words = {
            "block": "The student lost too much",
            "pass": "The student keeps up",
            "warn": "It may lose more",
        }
        reasons.append(f"{words[verdict]}: {shown}.")
    if teacher_probe - student_probe > MARGIN:
        verdict = "block"
        reasons.append(
            f"General similarity was damaged: correlation with the similarity probes {teacher_probe:.3f} -> "
            f"{student_probe:.3f}."
        )
    details = {
        "metric": "ndcg@10",
        "gain": found.to_dict(),
        "margin": MARGIN,
        "probe_base": round(teacher_probe, 4),
        "probe_tuned": round(student_probe, 4),
    }
    return GateVerdict(verdict, reasons, details)


def _train(
    teacher: FastBackbone,
    student: FastBackbone,
    texts: Sequence[str],
    memory: MemoryPlan,
    progress: Progress,
    checkpoints: Path | None,
) -> Trained:
    tokens = teacher.token_count(texts)
    progress.plan(
        {
            "encoding with the teacher": tokens * teacher.layers,
            "training": 3 * _EPOCHS * tokens * student.layers,
            "evaluating": tokens * (teacher.layers + student.layers),
        }
    )
    progress.start("encoding with the teacher")

    started: list[int] = []

    def on_step(step: Step) -> None:
        if not started:
            progress.start("training")
        started.append(step.step)
        progress.reach(
            step.step / step.steps,
            f"training, step {step.step} of {step.steps}",
            loss=round(step.loss, 4),
            step=step.step,
            steps=step.steps,
        )

    return train_student(
        teacher,
        student,
        texts,
        seed=_SEED,
        memory=memory,
        on_step=on_step,
        checkpoints=checkpoints,
        tick=lambda done: progress.advance(done * teacher.layers),
    )


def _judge(
    teacher: FastBackbone,
    student: FastBackbone,
    trained: Trained,
    dataset: Dataset,
    corpus: Mapping[str, str],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, float | None], GateVerdict]:
    progress.start("evaluating")
    held_out = [pair for pair in dataset.pairs if pair.split == "test"]
    place = document_ids(dataset.pairs, corpus)
    qrels = grades(held_out, place)
    seconds: list[float] = []

    def ranked(model: FastBackbone, weights: Mapping[str, Tensor] | None) -> dict[str, list[str]]:
        began = time.process_time()
        documents = model.encode(
            list(corpus.values()), weights, lambda done: progress.advance(done * model.layers)
        )
        seconds.append(time.process_time() - began)
        queries = dict(zip(qrels, model.encode(list(qrels), weights), strict=True))
        return Vectors(queries, documents, list(corpus)).rank()

    before, after = ranked(teacher, None), ranked(student, trained.weights)
    rated = {
        place[pair.document]
        for pair in dataset.pairs
        if pair.split == "train" and pair.rating and pair.document in place
    }
    groups = {pair.query: group_of(pair) for pair in held_out}
    evaluation = evaluation_report(before, after, qrels, rated, groups, _SEED)
    evaluation["documents"] = len(corpus)
    gate = judge_student(
        evaluation.pop("differences"),
        probe_correlation(teacher.encode),
        probe_correlation(lambda texts: student.encode(texts, trained.weights)),
    )
    metrics: dict[str, float | None] = {"test_queries": float(evaluation["queries"])}
    metrics["encoding_speed_ratio"] = round(seconds[0] / seconds[1], 2) if seconds[1] else None
    for name, gain in evaluation["gain"].items():
        metrics[f"base_{name}"], metrics[f"tuned_{name}"] = (
            evaluation["base"][name],
            evaluation["tuned"][name],
        )
        metrics[f"gain_{name}"] = gain["mean"]
    return evaluation, metrics, gate


def _opened(folder: Path) -> FastBackbone:
    backbone = open_backbone(folder, 8192, low_precision=True)
    if not isinstance(backbone, FastBackbone):
        raise InvalidInput(f"{folder.name} is not a plain BERT: its layers cannot be taken apart.")
    return backbone


def _recipe(texts: int, seed: int) -> Recipe:
    config = FineTuningConfig(
        loss_function="CosineSimilarityLoss",
        batch_size=_BATCH,
        num_epochs=_EPOCHS,
        learning_rate=_RATE,
        random_seed=seed,
    )
    steps = -(-texts // _BATCH) * _EPOCHS
    warmup = round(_WARMUP_SHARE * steps)
    return replace(choose_recipe(config, texts, 0), loss="distillation", warmup_steps=warmup)
