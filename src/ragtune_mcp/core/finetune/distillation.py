"""A smaller, faster student of a version, judged against it on the same held-out feedback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ragtune_mcp.core.finetune.backbone import FastBackbone
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.recipe import Recipe, choose_recipe
from ragtune_mcp.core.finetune.student import Matching, sentences
from ragtune_mcp.core.finetune.trainer import FastTrainer, Step, Trained

# What a student may lose against its teacher, in mean nDCG@10 over the held-out queries.
MARGIN = 0.03
_PROBE_MARGIN = 0.03
_EPOCHS, _BATCH, _RATE, _WARMUP_SHARE = 2, 32, 2e-4, 0.1
_SENTENCES = 5
_PART_TOKENS = 8192


def train_student(
    teacher: FastBackbone,
    student: FastBackbone,
    texts: list[str],
    *,
    seed: int,
    on_step: Callable[[Step], None],
    checkpoints: Path | None,
) -> Trained:
    """Train every weight of the student to give the teacher's vectors.

    Mean squared distance of unit vectors as in Reimers and Gurevych 2020, written as 1 - cosine.

    Args:
        teacher: gives the vectors to match.
        student: from `write_student`.
        texts: documents and query-like texts; none of a held-out query.
        seed: of the order.
        on_step: called after every step; may raise to stop.
        checkpoints: where to save and resume; None for neither.

    Returns:
        The last weights and the history.
    """
    objective = Matching(texts, teacher.encode(texts))
    recipe = _recipe(len(texts), seed)
    trainer = FastTrainer(student, objective, recipe, micro_tokens=_PART_TOKENS)
    return trainer.run(validate=None, on_step=on_step, checkpoints=checkpoints)


def texts_to_match(corpus: Mapping[str, str], queries: list[str], seed: int) -> list[str]:
    """Documents, queries, and sentences of the documents for want of more queries."""
    documents = list(corpus.values())
    return list(dict.fromkeys([*documents, *queries, *sentences(documents, _SENTENCES, seed)]))


def _recipe(texts: int, seed: int) -> Recipe:
    config = FineTuningConfig(
        loss_function="CosineSimilarityLoss",
        batch_size=_BATCH,
        num_epochs=_EPOCHS,
        learning_rate=_RATE,
        random_seed=seed,
    )
    steps = -(-texts // _BATCH) * _EPOCHS
    return replace(
        choose_recipe(config, texts, 0), loss="distillation", warmup_steps=round(_WARMUP_SHARE * steps)
    )
