"""Hard negatives: documents the index ranks high for a query, or users rated low for a similar one.

Mined negatives come from the live index. A document near the query may simply be relevant and unrated, so a
candidate must score at most (1 - margin) times what the query's lowest-scoring known positive scores (the
positive-aware filter "TopK-PercPos" of NV-Retriever, Moreira et al. 2024). The margin is calibrated on the
users' own ratings (`calibrate_margin`). A query whose positives are not among its `depth` nearest documents
gives no mined negatives: everything retrieved scores above the positive, so nothing can be told from a false
negative.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ragtune_mcp.core.dataset.grouping import NEAR_DUPLICATE, similarity
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS, Corpus, Hit, PairKind, TrainingPair
from ragtune_mcp.core.feedback.masking import mask
from ragtune_mcp.core.feedback.text import document_key, scrub

Progress = Callable[[float, str], None]
# Stands for all groups in what may not be a negative.
EVERYWHERE = ""


@dataclass(frozen=True, slots=True)
class MiningRules:
    """How hard negatives are mined.

    Attributes:
        per_query: hard negatives of one query; four were measured better than two (docs/training-data.md).
        depth: how many neighbours are looked at.
        margin: relative margin where too few ratings exist to calibrate it.
        margins: the margins calibration chooses from, smallest first.
        tolerated_share: share of high ratings among the rated documents below the ceiling that is still
        accepted. least_rated: rated documents that calibration needs.
        filtered: False switches the margin filter off, for measurement.
        batch: queries per call of the index.
    """

    per_query: int = 4
    depth: int = 50
    margin: float = 0.1
    margins: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    tolerated_share: float = 0.15
    least_rated: int = 30
    filtered: bool = True
    batch: int = 256


@dataclass(frozen=True, slots=True)
class Mined:
    """Hard negatives, and what happened on the way.

    Attributes:
        margin: relative margin used.
        calibrated_on: rated documents the margin rests on; 0 for the default margin.
        counts: queries by outcome: mined, positive_not_retrieved, nothing_left.
        scores: (query, document id) -> cosine under the index's model, of judged and mined documents it retrieved.
    """

    pairs: tuple[TrainingPair, ...]
    margin: float
    calibrated_on: int
    counts: Counter[str] = field(default_factory=Counter)
    scores: Mapping[tuple[str, str], float] = field(default_factory=dict)


class _Query(NamedTuple):
    """One query's judged documents and its neighbours."""

    query: str
    positives: tuple[TrainingPair, ...]
    lows: tuple[TrainingPair, ...]
    hits: tuple[Hit, ...]


def mine_hard_negatives(
    pairs: Sequence[TrainingPair],
    corpus: Corpus,
    rules: MiningRules,
    *,
    taboo: Mapping[str, set[str]],
    progress: Progress | None = None,
) -> Mined:
    """Mine hard negatives for every query of train and validation that has a positive.

    Args:
        pairs: rated pairs with their splits.
        corpus: the live index; queries are passed in batches.
        rules: how many, how deep, which margin.
        taboo: group -> names of documents that no query of the group may have as a mined negative.
        progress: told the share done.

    Returns:
        The negatives in the order of the queries, best-ranked first.
    """
    by_query: dict[str, list[TrainingPair]] = defaultdict(list)
    for pair in pairs:
        if pair.split != "test":
            by_query[pair.query].append(pair)
    names = sorted(q for q, members in by_query.items() if any(p.kind == "positive" for p in members))
    looked_up: list[_Query] = []
    for start in range(0, len(names), rules.batch):
        batch = names[start : start + rules.batch]
        for query, hits in zip(batch, corpus.nearest(batch, rules.depth), strict=True):
            members = by_query[query]
            looked_up.append(
                _Query(
                    query,
                    tuple(p for p in members if p.kind == "positive"),
                    tuple(p for p in members if p.kind == "negative"),
                    tuple(hits),
                )
            )
        if progress is not None:
            progress((start + len(batch)) / len(names), f"mined {start + len(batch)} of {len(names)} queries")
    margin, calibrated_on = calibrate_margin(looked_up, rules)
    counts: Counter[str] = Counter()
    mined: list[TrainingPair] = []
    for item in looked_up:
        mined += _of_query(item, rules, margin, taboo, counts)
    wanted = {(pair.query, pair.document_id) for pair in (*pairs, *mined)}
    scores = {
        (item.query, hit.id): hit.score
        for item in looked_up
        for hit in item.hits
        if (item.query, hit.id) in wanted
    }
    return Mined(tuple(mined), margin, calibrated_on, counts, scores)


def calibrate_margin(queries: Iterable[_Query], rules: MiningRules) -> tuple[float, int]:
    """The margin at which the users' own ratings show few false negatives.

    Every rated document that was retrieved has a relative score: its score over that of the lowest other
    positive of its query. Documents rated low show where negatives lie, documents rated high that stand
    beside another positive show where false ones would come from. The smallest margin is taken below whose
    ceiling at most `tolerated_share` of the rated documents were rated high; the largest, where none
    satisfies.

    Args:
        queries: judged documents and neighbours.
        rules: margins to choose from, and how many ratings that takes.

    Returns:
        The margin, and the number of rated documents it rests on; the default margin and 0 where there are
        fewer than `least_rated` documents, or none of them was rated low.
    """
    low: list[float] = []
    high: list[float] = []
    for item in queries:
        score = {hit.id: hit.score for hit in item.hits}
        positives = [score[p.document_id] for p in item.positives if p.document_id in score]
        if not positives or min(positives) <= 0:
            continue
        low += [score[p.document_id] / min(positives) for p in item.lows if p.document_id in score]
        for i, own in enumerate(positives):
            others = positives[:i] + positives[i + 1 :]
            if others:
                high.append(own / min(others))
    rated = len(low) + len(high)
    if not low or rated < rules.least_rated:
        return rules.margin, 0
    for margin in rules.margins:
        highs = sum(ratio <= 1 - margin for ratio in high)
        lows = sum(ratio <= 1 - margin for ratio in low)
        if lows and highs <= rules.tolerated_share * (highs + lows):
            return margin, rated
    return rules.margins[-1], rated


def similar_query_negatives(
    pairs: Sequence[TrainingPair], per_query: int, *, taboo: Mapping[str, set[str]]
) -> list[TrainingPair]:
    """The specification's hard negatives: documents rated low for a similar query (cosine >= 0.7).

    Similar queries share a group, so such a pair never crosses a split.

    Args:
        pairs: rated pairs with groups.
        per_query: most such negatives of one query.
        taboo: group -> names of documents that are relevant, or undecided, for some query of the group.

    Returns:
        Pairs that carry the feedback ids of the low rating.
    """
    groups: dict[str, list[TrainingPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.query_group].append(pair)
    found: list[TrainingPair] = []
    for group in sorted(groups):
        members = groups[group]
        lows = [p for p in members if p.kind == "negative" and not is_taboo(taboo, group, _names(p))]
        if not lows or len({p.query for p in members}) == 1:
            continue
        for query in sorted({p.query for p in members if p.kind == "positive"}):
            own = {p.document_id for p in members if p.query == query}
            found += _borrowed(query, lows, own, per_query)
    return found


def easy_negatives(
    pairs: Sequence[TrainingPair], wanted: int, seed: int, *, taboo: Mapping[str, set[str]]
) -> list[TrainingPair]:
    """Random documents as negatives, to reach a minimum; spread evenly over the queries.

    Args:
        pairs: rated pairs; their documents are the pool.
        wanted: how many.
        seed: of the choice.
        taboo: group -> names of documents that may not be used for it.

    Returns:
        At most `wanted` pairs of train and validation queries; fewer where the pool is exhausted.
    """
    pool = {pair.document_id: pair.document for pair in pairs}
    names = {i: document_names(i, pool[i]) for i in sorted(pool)}
    anchors = {p.query: p for p in pairs if p.kind == "positive" and p.split != "test"}
    judged: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        judged[pair.query_group] |= names[pair.document_id]
    queues: list[list[TrainingPair]] = []
    for query in sorted(anchors):
        anchor = anchors[query]
        group = anchor.query_group
        allowed = [
            i for i, own in names.items() if own.isdisjoint(judged[group]) and not is_taboo(taboo, group, own)
        ]
        chosen = random.Random(f"{seed}:{query}").sample(
            allowed, min(len(allowed), 1 + wanted // len(anchors))
        )
        queues.append([_negative(anchor, i, pool[i], "easy_negative") for i in chosen])
    rounds = max((len(queue) for queue in queues), default=0)
    spread = [queue[i] for i in range(rounds) for queue in queues if i < len(queue)]
    return spread[:wanted]


def document_names(document_id: str, text: str) -> set[str]:
    """What a document is recognised by: its id, and its text, which may be indexed under other ids too."""
    return {document_id, document_key(text)}


def is_taboo(taboo: Mapping[str, set[str]], group: str, names: set[str]) -> bool:
    """Whether a document of these names may not be used for the group, or not for any."""
    return not names.isdisjoint(taboo.get(group, ())) or not names.isdisjoint(taboo.get(EVERYWHERE, ()))


def taboo_documents(pairs: Iterable[TrainingPair], undecided: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Group -> names of documents that are positive for some query of it, or on which users do not agree."""
    taboo = {group: set(names) for group, names in undecided.items()}
    for pair in pairs:
        if pair.kind not in NEGATIVE_KINDS:
            taboo.setdefault(pair.query_group, set()).update(_names(pair))
    return taboo


def _of_query(
    item: _Query, rules: MiningRules, margin: float, taboo: Mapping[str, set[str]], counts: Counter[str]
) -> list[TrainingPair]:
    ceiling = float("inf")
    if rules.filtered:
        scores = positive_scores(item)
        if not scores:
            counts["positive_not_retrieved"] += 1
            return []
        ceiling = (1 - margin) * min(scores)
    seen = {name for p in (*item.positives, *item.lows) for name in _names(p)}
    anchor = max(item.positives, key=lambda p: (p.weight, p.document_id))
    found: list[TrainingPair] = []
    for hit in item.hits:
        if len(found) == rules.per_query:
            break
        if hit.score > ceiling or hit.id in seen or not hit.text.strip():
            continue
        # Cleaned as the texts of pairs are: a positive with a secret is not its own negative.
        text = mask(scrub(hit.text))
        names = document_names(hit.id, text)
        if names.isdisjoint(seen) and not is_taboo(taboo, anchor.query_group, names):
            seen |= names
            found.append(_negative(anchor, hit.id, text, "hard_negative"))
    counts["mined" if found else "nothing_left"] += 1
    return found


def positive_scores(item: _Query) -> list[float]:
    """The scores of the query's positives among its neighbours."""
    wanted = {p.document_id for p in item.positives}
    return [hit.score for hit in item.hits if hit.id in wanted]


def _names(pair: TrainingPair) -> set[str]:
    return document_names(pair.document_id, pair.document)


def _negative(anchor: TrainingPair, document_id: str, document: str, kind: PairKind) -> TrainingPair:
    return replace(anchor, document=document, document_id=document_id, label=0.0, kind=kind, rating=None)


def _borrowed(query: str, lows: Sequence[TrainingPair], own: set[str], per_query: int) -> list[TrainingPair]:
    scored = [
        (similarity(query, low.query), low)
        for low in lows
        if low.query != query and low.document_id not in own
    ]
    close = sorted((-s, low.document_id, low.query, low) for s, low in scored if s >= NEAR_DUPLICATE)
    best = {low.document_id: (-negated, low) for negated, _, _, low in reversed(close)}
    return [
        replace(
            low, query=query, label=0.0, kind="hard_negative", rating=None, weight=round(low.weight * s, 6)
        )
        for s, low in sorted(best.values(), key=lambda b: (-b[0], b[1].document_id))[:per_query]
    ]
