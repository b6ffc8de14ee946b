"""The parts of a data set and where its documents stand in the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.examples import grades, hold_out_groups, is_positive


class Parts(NamedTuple):
    """The pairs by split."""

    train: tuple[TrainingPair, ...]
    validation: tuple[TrainingPair, ...]
    test: tuple[TrainingPair, ...]


def split_parts(pairs: Sequence[TrainingPair], config: FineTuningConfig) -> Parts:
    """The data set's own splits; validation is carved out of the training part where there is none.

    An explicit `validation_split` replaces the data set's own division of training and validation.

    Args:
        pairs: pairs of every split.
        config: validation_split and seed.

    Returns:
        The parts; no query group stands in both training and validation.

    Raises:
        NotEnoughData: fewer than 2 positive training pairs.
    """
    by_split = {
        name: tuple(pair for pair in pairs if pair.split == name) for name in ("train", "validation", "test")
    }
    train, validation = by_split["train"], by_split["validation"]
    if not validation or "validation_split" in config.explicit():
        train, validation = hold_out_groups(
            (*train, *validation), config.validation_split, config.random_seed
        )
    positives = sum(is_positive(pair) for pair in train)
    if positives < 2:
        raise NotEnoughData(
            f"The training part holds {positives} positive pairs; at least 2 are needed.",
            hint="Collect more ratings of 4 and 5, then call generate_training_data.",
        )
    return Parts(train, validation, by_split["test"])


def wanted_feedback(
    pairs: Sequence[TrainingPair], test: Sequence[TrainingPair], place: Mapping[str, str]
) -> str:
    """What would let the gate judge better, in words.

    Args:
        pairs: of every split.
        test: the held-out ones.
        place: document text -> id in the corpus.

    Returns:
        A phrase, to stand after "here is what would help:".
    """
    rated = {pair.query for pair in pairs if pair.kind != "synthetic"}
    held_out = {pair.query for pair in test}
    more = (
        f"more ratings, of more different queries (now {len(rated)} queries, {len(held_out)} of them held out "
        "for testing)"
    )
    answered = {pair.query for pair in test if is_positive(pair)}
    lost = answered - grades(test, place).keys()
    if not lost:
        return more
    return (
        f"index_documents (the documents that answer {len(lost)} of {len(answered)} held-out queries are not in "
        f"the index), and {more}"
    )


def document_ids(pairs: Sequence[TrainingPair], corpus: Mapping[str, str]) -> dict[str, str]:
    """Document text -> id in the corpus; an edited document is found by its id.

    Of documents with the same text the first counts: rankings break their tie in the order of the corpus.
    """
    place: dict[str, str] = {}
    for document, text in corpus.items():
        place.setdefault(text, document)
    for pair in pairs:
        if pair.document not in place and pair.document_id in corpus:
            place[pair.document] = pair.document_id
    return place
