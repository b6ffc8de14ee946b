"""From entries to a data set in memory: clean, judge, pair, split, mine; and an exact account of every entry.

An entry is *used* when its id stands on at least one rated pair of the data set. Every other entry is
rejected under one reason: those of cleaning and judging, and of this stage

    neutral_rating       all its opinions were pooled to a rating between the thresholds
    contradictory        as before, because raters disagreed from one side of 3 to the other
    query_cap            only weightier judgements of its query were kept
    held_out_and_trained its query is near one that was held out and one that was trained on
    document_in_test     its document is a positive of a test query (option keep_documents_apart)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ragtune_mcp.core.dataset.grouping import group_queries
from ragtune_mcp.core.dataset.negatives import (
    EVERYWHERE,
    Mined,
    MiningRules,
    document_names,
    easy_negatives,
    mine_hard_negatives,
    similar_query_negatives,
    taboo_documents,
)
from ragtune_mcp.core.dataset.options import DatasetOptions
from ragtune_mcp.core.dataset.pairs import (
    NEGATIVE_KINDS,
    Corpus,
    RatedPairs,
    SplitName,
    TrainingPair,
    canonical,
    rated_pairs,
)
from ragtune_mcp.core.dataset.split import SliceLedger, assign_splits, check_split, in_splits
from ragtune_mcp.core.dataset.synthetic import synthetic_pairs
from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.feedback.cleaning import Cleaned, clean
from ragtune_mcp.core.feedback.judgements import DocumentCatalogue, Judged, JudgementOptions, judge
from ragtune_mcp.core.feedback.masking import mask
from ragtune_mcp.core.feedback.records import FeedbackBatch, Judgement, Rejected
from ragtune_mcp.core.feedback.text import query_key

Progress = Callable[[float, str], None]
# Easy negatives may close a small gap to the minimum, not stand in for ratings nobody gave.
EASY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Sources:
    """The other stages as this one sees them; None where a workspace has no index or no database."""

    corpus: Corpus | None = None
    documents: DocumentCatalogue | None = None
    ledger: SliceLedger | None = None


@dataclass(frozen=True, slots=True)
class Assembled:
    """A data set in memory with its account: `read == len(entries) + len(rejected)`.

    Attributes:
        entries: feedback id -> ConPort key of every entry that was used.
        mined: how the hard negatives were mined; None without an index.
        excluded: group -> document ids that no pair of it names and that must not be its negatives.
    """

    pairs: tuple[TrainingPair, ...]
    judged: Judged
    rejected: tuple[Rejected, ...]
    entries: Mapping[str, str]
    read: int
    masked: Counter[str]
    mined: Mined | None
    excluded: Mapping[str, set[str]]

    @property
    def ratings(self) -> int:
        """Opinions behind the rated pairs."""
        rated = {(p.query, p.document_id) for p in self.pairs if p.rating is not None}
        return sum(j.n_opinions for j in self.judged.judgements if (j.query, j.document_id) in rated)

    def statistics(self) -> dict[str, Any]:
        """The counts of the tool contract; hard and easy negatives are among the negatives."""
        kinds = Counter(pair.kind for pair in self.pairs)
        splits = Counter(pair.split for pair in self.pairs)
        return {
            "total_pairs": len(self.pairs),
            "positive_pairs": kinds["positive"],
            "negative_pairs": sum(kinds[kind] for kind in NEGATIVE_KINDS),
            "hard_negative_pairs": kinds["hard_negative"],
            "synthetic_pairs": kinds["synthetic"],
            "feedback_read": self.read,
            "feedback_used": len(self.entries),
            "skipped": dict(sorted(Counter(r.reason for r in self.rejected).items())),
            "queries": len({pair.query for pair in self.pairs}),
            "train_pairs": splits["train"],
            "validation_pairs": splits["validation"],
            "test_pairs": splits["test"],
        }


def assemble(
    batch: FeedbackBatch,
    options: DatasetOptions,
    sources: Sources,
    progress: Progress,
    *,
    enforce_minimum: bool = True,
) -> Assembled:
    """Make a data set of a batch of entries.

    Args:
        batch: entries as read; their order does not matter.
        options: thresholds, minima and switches.
        sources: index, document texts and ledger.
        progress: told the share done, in [0, 1], and what is going on.
        enforce_minimum: False returns whatever there is.

    Returns:
        The pairs in canonical order, and the account.

    Raises:
        NotEnoughData: fewer positives, negatives or ratings than the options ask for.
        LeakySplit: a query group stands in two splits (an internal fault, never shipped).
    """
    base = _rate(batch, options, sources, progress)
    pairs, used, rejected = base.pairs, base.used, base.rejected
    if enforce_minimum:
        positives = sum(pair.kind == "positive" for pair in pairs)
        require_enough("positive pairs", positives, options.min_positive_samples, len(used), rejected)
    pairs, mined = _with_hard_negatives(pairs, options, sources.corpus, base.taboo, progress)
    if enforce_minimum:
        pairs = _topped_up(pairs, options, base.taboo)
        negatives = sum(pair.kind in NEGATIVE_KINDS for pair in pairs)
        require_enough("negative pairs", negatives, options.min_negative_samples, len(used), rejected)
    if options.include_synthetic and sources.documents is not None:
        more = synthetic_pairs(
            sources.documents.all_texts(),
            pairs,
            options.seed,
            held_out={pair.query for pair in base.between},
            refused=_refused(base, pairs),
        )
        pairs = _merged(pairs, more)
    check_split(pairs)
    result = Assembled(
        pairs=tuple(sorted(pairs, key=canonical)),
        judged=base.judged,
        rejected=tuple(rejected),
        entries={r.feedback_id: r.key for r in base.cleaned.batch.records if r.feedback_id in used},
        read=batch.read,
        masked=base.cleaned.masked + base.judged.masked,
        mined=mined,
        excluded=base.excluded,
    )
    if enforce_minimum:
        require_enough("usable ratings", result.ratings, options.min_ratings, len(used), rejected)
    return result


def require_enough(what: str, have: int, need: int, used: int, rejected: Collection[Rejected]) -> None:
    """Refuse when there are fewer samples than needed.

    Args:
        what: the samples, as in "positive pairs".
        have: how many there are.
        need: how many there must be.
        used: entries that can be used.
        rejected: entries that cannot; their reasons stand in the message.

    Raises:
        NotEnoughData: `have` is below `need`.
    """
    if have >= need:
        return
    reasons = Counter(r.reason for r in rejected)
    skipped = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "none"
    raise NotEnoughData(
        f"There are {have} {what}; {need} are needed (have {have}, need {need}). "
        f"Of {used + len(rejected)} feedback entries {used} were used; skipped: {skipped}.",
        hint="Collect more ratings with record_feedback, raise days_back, or lower the minimum.",
    )


class _Rated(NamedTuple):
    """Rated pairs with their splits, and the account of the entries, which later steps do not change."""

    cleaned: Cleaned
    judged: Judged
    pairs: list[TrainingPair]
    rated: RatedPairs
    between: Sequence[TrainingPair]
    groups: Mapping[str, str]
    taboo: Mapping[str, set[str]]
    excluded: Mapping[str, set[str]]
    used: frozenset[str]
    rejected: list[Rejected]


def _rate(batch: FeedbackBatch, options: DatasetOptions, sources: Sources, progress: Progress) -> _Rated:
    cleaned = clean(batch)
    progress(0.2, f"{len(cleaned.batch.records)} of {batch.read} entries are clean")
    how = JudgementOptions(attribute_answers=options.attribute_answers)
    judged = judge(cleaned.batch.records, sources.documents, how)
    progress(0.4, f"{len(judged.judgements)} judgements")
    rated = rated_pairs(judged.judgements, options.pair_rules)
    groups = group_queries(pair.query for pair in rated.pairs)
    held_out, trained = sources.ledger.slices(groups) if sources.ledger is not None else (set(), set())
    between = [pair for pair in rated.pairs if groups[pair.query] in held_out & trained]
    placed = [pair for pair in rated.pairs if groups[pair.query] not in held_out & trained]
    splits = _splits(placed, judged.judgements, groups, options, held_out, trained)
    pairs = in_splits(placed, groups, splits)
    tested: list[TrainingPair] = []
    apart: list[TrainingPair] = []
    if options.keep_documents_apart:
        tested = [p for p in pairs if p.split == "test" and p.kind == "positive"]
        pairs, apart = _documents_apart(pairs, tested)
    used = frozenset(i for pair in pairs for i in pair.feedback_ids)
    rejected = _account(cleaned.batch.rejected, judged, rated, between, apart, used)
    progress(0.5, f"{len(pairs)} rated pairs in {len(set(groups.values()))} query groups")
    excluded: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    unusable: list[tuple[str, Judgement | TrainingPair]] = [*_undecided(rated, groups)]
    unusable += [(EVERYWHERE, pair) for pair in tested]
    for group, document in unusable:
        excluded[group].add(document.document_id)
        names[group] |= document_names(document.document_id, document.document)
    taboo = taboo_documents(pairs, names)
    return _Rated(cleaned, judged, pairs, rated, between, groups, taboo, excluded, used, rejected)


def _with_hard_negatives(
    pairs: Sequence[TrainingPair],
    options: DatasetOptions,
    corpus: Corpus | None,
    taboo: Mapping[str, set[str]],
    progress: Progress,
) -> tuple[list[TrainingPair], Mined | None]:
    if not options.include_hard_negatives:
        return list(pairs), None
    rules = MiningRules()
    merged = _merged(pairs, similar_query_negatives(pairs, rules.per_query, taboo=taboo))
    if corpus is None:
        return merged, None
    mined = mine_hard_negatives(
        merged, corpus, rules, taboo=taboo, progress=lambda share, what: progress(0.5 + 0.4 * share, what)
    )
    return _merged(merged, mined.pairs), mined


def _splits(
    pairs: Sequence[TrainingPair],
    judgements: Sequence[Judgement],
    groups: Mapping[str, str],
    options: DatasetOptions,
    held_out: Collection[str],
    trained: Collection[str],
) -> dict[str, SplitName]:
    scorable = dict.fromkeys((groups[pair.query] for pair in pairs), False)
    for pair in pairs:
        scorable[groups[pair.query]] |= pair.kind == "positive"
    newest_first: list[str] | None = None
    if options.by_time:
        first_seen: dict[str, Any] = {}
        for judgement in judgements:
            group = groups.get(judgement.query, "")
            first_seen[group] = min(first_seen.get(group, judgement.timestamp), judgement.timestamp)
        newest_first = sorted(scorable, key=lambda g: (first_seen[g], g), reverse=True)
    return assign_splits(scorable, held_out=held_out, trained=trained, order=newest_first)


def _documents_apart(
    pairs: Sequence[TrainingPair], tested: Sequence[TrainingPair]
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Pairs without those of train and validation whose document is a tested one, and these."""
    names = {name for pair in tested for name in document_names(pair.document_id, pair.document)}
    left: list[TrainingPair] = []
    apart: list[TrainingPair] = []
    for pair in pairs:
        clear = pair.split == "test" or names.isdisjoint(document_names(pair.document_id, pair.document))
        (left if clear else apart).append(pair)
    return left, apart


def _undecided(rated: RatedPairs, groups: Mapping[str, str]) -> Iterator[tuple[str, Judgement]]:
    """Judgements that must not become negatives, with their group: users do not agree, or beyond the cap."""
    for judgement in rated.neutral:
        if judgement.query in groups:
            yield groups[judgement.query], judgement
    for judgement in rated.capped:
        if judgement.rating > 3:
            yield groups[judgement.query], judgement


def _refused(base: _Rated, pairs: Iterable[TrainingPair]) -> dict[str, set[str]]:
    """Group, and query key -> names of documents that may not be a synthetic positive there."""
    refused: dict[str, set[str]] = defaultdict(set)
    refused[EVERYWHERE] |= base.taboo.get(EVERYWHERE, set())
    for judgement in (*base.rated.neutral, *base.rated.capped):
        key = query_key(judgement.query)
        for place in {key, base.groups.get(judgement.query, key)}:
            refused[place] |= document_names(judgement.document_id, judgement.document)
    for pair in pairs:
        if pair.kind in NEGATIVE_KINDS:
            refused[pair.query_group] |= document_names(pair.document_id, pair.document)
    return refused


def _merged(pairs: Sequence[TrainingPair], more: Iterable[TrainingPair]) -> list[TrainingPair]:
    """Pairs with those of `more` whose (query, document) is not there yet, by id and by text."""
    merged = list(pairs)
    seen = {name for pair in pairs for name in _places(pair)}
    for pair in more:
        own = _places(pair)
        if not own & seen:
            seen |= own
            merged.append(pair)
    return merged


def _places(pair: TrainingPair) -> set[tuple[str, str]]:
    # By the key of the query, as the validator compares: a synthetic query may be a rated one spelt otherwise.
    key = query_key(pair.query)
    return {(key, name) for name in document_names(pair.document_id, pair.document)}


def _topped_up(
    pairs: list[TrainingPair], options: DatasetOptions, taboo: Mapping[str, set[str]]
) -> list[TrainingPair]:
    have = sum(pair.kind in NEGATIVE_KINDS for pair in pairs)
    missing = options.min_negative_samples - have
    if 0 < missing <= EASY_SHARE * options.min_negative_samples and any(p.kind == "negative" for p in pairs):
        pairs = _merged(pairs, easy_negatives(pairs, missing, options.seed, taboo=taboo))
    return pairs


def _account(
    rejected: Iterable[Rejected],
    judged: Judged,
    rated: RatedPairs,
    between: Sequence[TrainingPair],
    apart: Sequence[TrainingPair],
    used: frozenset[str],
) -> list[Rejected]:
    """Every entry that stands on no rated pair, once, under the reason that comes last in this function."""
    disputed = {(c.query, c.document_id): c.ratings for c in judged.contradictions if not c.resolved}
    reasons: dict[str, Rejected] = {}
    for judgement in rated.capped:
        for i in judgement.feedback_ids:
            reasons[i] = Rejected(i, "query_cap", f"query {judgement.query[:80]!r} has weightier judgements")
    for judgement in rated.neutral:
        ratings = disputed.get((judgement.query, judgement.document_id))
        reason = "neutral_rating" if ratings is None else "contradictory"
        counts = "" if ratings is None else f" ({_counted(ratings)})"
        pooled = f"{judgement.n_opinions} opinions{counts} pooled to {judgement.rating:.2f}"
        detail = f"document {judgement.document_id[:80]!r}: {pooled}"
        for i in judgement.feedback_ids:
            reasons[i] = Rejected(i, reason, detail)
    for pair in between:
        detail = f"query {pair.query[:80]!r} is near one that was held out and one that was trained on"
        for i in pair.feedback_ids:
            reasons[i] = Rejected(i, "held_out_and_trained", detail)
    for pair in apart:
        for i in pair.feedback_ids:
            reasons[i] = Rejected(i, "document_in_test", f"document {pair.document_id[:80]!r}")
    everything = [*rejected, *judged.rejected, *(r for i, r in reasons.items() if i not in used)]
    masked = (replace(r, detail=mask(r.detail)) for r in everything)
    return sorted(masked, key=lambda r: (r.feedback_id, r.reason, r.detail))


def _counted(ratings: Sequence[float]) -> str:
    return ", ".join(f"{n} of {rating:g}" for rating, n in sorted(Counter(ratings).items()))
