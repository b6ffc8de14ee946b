"""Training pairs to training examples, one shape per family of losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ragtune_mcp.core.dataset.pairs import TrainingPair

# From this label on ((rating - 1) / 4, so a pooled rating of 3.5) a document counts as an answer to the
# query.
RELEVANT_LABEL = 0.625


class RankingExample(NamedTuple):
    """A query, a document that answers it and documents that do not.

    Attributes:
        answers: every document that answers, or may answer, the query or a near-duplicate of it, the positive
            included; none of them may serve as a negative.
        weight: trust in the positive, (0, 1].
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    answers: frozenset[str]
    weight: float


def is_positive(pair: TrainingPair) -> bool:
    """Whether the document answers the query."""
    return pair.kind in ("positive", "synthetic")


def group_of(pair: TrainingPair) -> str:
    """The pair's query group; the query itself where the data set has none."""
    return pair.query_group or pair.query


def answers_by_group(
    pairs: Iterable[TrainingPair],
    corpus: Mapping[str, str] = {},
    excluded: Callable[[str], Iterable[str]] = lambda group: (),
) -> dict[str, frozenset[str]]:
    """Query group -> texts that may not be its negatives.

    Args:
        pairs: documents rated as answers count, in the pair's wording and in the corpus's: a pair's text may
            have been masked.
        corpus: document id -> text.
        excluded: query group -> ids of further documents; see `Dataset.excluded_negatives`.

    Returns:
        The texts of every group that has an answer.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        if is_positive(pair) or pair.label >= RELEVANT_LABEL:
            found[group_of(pair)] |= {pair.document, corpus.get(pair.document_id, pair.document)}
    for group, texts in found.items():
        texts.update(corpus[document] for document in excluded(group) if document in corpus)
    return {group: frozenset(texts) for group, texts in found.items()}


def ranking_examples(
    pairs: Sequence[TrainingPair],
    corpus: Mapping[str, str] = {},
    excluded: Callable[[str], Iterable[str]] = lambda group: (),
) -> list[RankingExample]:
    """One example per distinct positive pair, without negatives yet, in the order of the pairs; arguments as
    in `answers_by_group`.
    """
    answers = answers_by_group(pairs, corpus, excluded)
    best: dict[tuple[str, str], RankingExample] = {}
    for pair in pairs:
        key = (pair.query, pair.document)
        if is_positive(pair) and (key not in best or best[key].weight < pair.weight):
            best[key] = RankingExample(pair.query, pair.document, (), answers[group_of(pair)], pair.weight)
    return list(best.values())


def triplets(pairs: Sequence[TrainingPair], seed: int) -> list[tuple[str, str, str]]:
    """(anchor, positive, negative) for every positive pair.

    The negative is drawn from the documents rated low or mined for the same query; where there is none, from
    the positives of other queries.

    Args:
        pairs: training pairs.
        seed: fixes the draw.

    Returns:
        One triplet per distinct positive pair for which a negative exists.
    """
    rng = np.random.default_rng(seed)
    own: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        if not is_positive(pair) and pair.label < RELEVANT_LABEL:
            own[pair.query].append(pair.document)
    examples = ranking_examples(pairs)
    everything = sorted({example.positive for example in examples})
    found = []
    for example in examples:
        candidates = sorted(set(own[example.query]) - example.answers)
        if not candidates:
            candidates = [document for document in everything if document not in example.answers]
        if candidates:
            found.append((example.query, example.positive, candidates[int(rng.integers(len(candidates)))]))
    return found


def labelled_pairs(pairs: Sequence[TrainingPair]) -> list[tuple[str, str, float]]:
    """(query, document, label) of every distinct pair; the first one wins."""
    found: dict[tuple[str, str], float] = {}
    for pair in pairs:
        found.setdefault((pair.query, pair.document), pair.label)
    return [(query, document, label) for (query, document), label in found.items()]


def hold_out_groups(
    pairs: Sequence[TrainingPair], share: float, seed: int
) -> tuple[tuple[TrainingPair, ...], tuple[TrainingPair, ...]]:
    """Split pairs into (kept, held out) by query group.

    Args:
        pairs: pairs of any kind.
        share: share of the groups that have a rated positive to hold out; at least one, never all.
        seed: fixes the draw.

    Returns:
        The two parts; no group stands in both. Synthetic pairs are never held out: those of a group that is
        held out are in neither.
    """
    groups = sorted({group_of(pair) for pair in pairs if pair.kind == "positive"})
    if len(groups) < 2:
        return tuple(pairs), ()
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    held = {groups[index] for index in np.random.default_rng(seed).permutation(len(groups))[:count]}
    return (
        tuple(pair for pair in pairs if group_of(pair) not in held),
        tuple(pair for pair in pairs if group_of(pair) in held and pair.kind != "synthetic"),
    )


def grades(pairs: Iterable[TrainingPair], ids: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Graded judgements for evaluation: query -> {document id: gain}.

    The gain is the pooled rating above 2, so ratings of 3, 4 and 5 count 1, 2 and 3 and lower ones nothing.

    Args:
        pairs: rated or synthetic pairs; mined negatives are left out.
        ids: document text -> id in the corpus; documents that are not there cannot be retrieved and are left
            out.

    Returns:
        Judgements of the queries that have at least one document with a gain.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for pair in pairs:
        document = ids.get(pair.document)
        if document is None or pair.kind in ("hard_negative", "easy_negative"):
            continue
        rating = pair.rating if pair.rating is not None else 1 + 4 * pair.label
        gain = max(0.0, rating - 2.0)
        found[pair.query][document] = max(gain, found[pair.query].get(document, 0.0))
    return {query: judged for query, judged in found.items() if any(judged.values())}
