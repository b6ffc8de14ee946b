"""Cross-fitting: every query is held out from one training run, and all of them are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.finetune.examples import group_of, is_positive


class Fold(NamedTuple):
    """Pairs to train on, and the pairs of other query groups that judge the result."""

    train: tuple[TrainingPair, ...]
    held_out: tuple[TrainingPair, ...]


def make_folds(
    train: Sequence[TrainingPair], validation: Sequence[TrainingPair], count: int, seed: int
) -> list[Fold]:
    """Divide the query groups of both parts into folds.

    Args:
        train: training pairs.
        validation: held-out pairs; with more than one fold they are trained on like the others.
        count: number of folds; 1 keeps the two parts as they are.
        seed: fixes the division.

    Returns:
        At most `count` folds, fewer where there are fewer groups with a positive pair; each fold's training
        part holds at least two positives, and no group stands on both sides of a fold.
    """
    pairs = (*train, *validation)
    groups = sorted({group_of(pair) for pair in pairs})
    scored = {group_of(pair) for pair in pairs if is_positive(pair)}
    order = [groups[index] for index in np.random.default_rng([seed, 0]).permutation(len(groups))]
    # Groups with a positive are dealt out first, so that every fold has something to be judged by.
    order.sort(key=lambda group: group not in scored)
    count = min(count, len(scored))
    while count > 1:
        place = {group: position % count for position, group in enumerate(order)}
        folds = [
            Fold(
                tuple(pair for pair in pairs if place[group_of(pair)] != number),
                tuple(pair for pair in pairs if place[group_of(pair)] == number),
            )
            for number in range(count)
        ]
        if all(sum(map(is_positive, fold.train)) > 1 for fold in folds):
            return folds
        count -= 1
    return [Fold(tuple(train), tuple(validation))]
