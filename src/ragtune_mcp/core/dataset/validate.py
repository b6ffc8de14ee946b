"""What a data set must satisfy to be trained on, checked on the file's own content."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ragtune_mcp.core.dataset.grouping import THRESHOLDS, group_queries
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS, Dataset, TrainingPair
from ragtune_mcp.core.dataset.split import check_split
from ragtune_mcp.core.errors import LeakySplit
from ragtune_mcp.core.feedback.text import query_key, text_key

MIN_PAIRS = 20
BALANCED = (0.2, 0.8)


@dataclass(frozen=True, slots=True)
class Validation:
    """Problems make a data set unfit; warnings are worth a look."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def validate(dataset: Dataset) -> Validation:
    """Check a data set.

    Args:
        dataset: as loaded; with a manifest its counts are checked too.

    Returns:
        Problems: a split that leaks, also by near-duplicate queries; a (query, document) both positive and
        negative, or twice; label, weight or rating out of range or against the kind; synthetic or mined pairs
        where there must be none; a rated pair without its feedback; counts that do not add up. Warnings:
        fewer than 20 pairs, a positive share outside 0.2 to 0.8, an empty split.
    """
    pairs = dataset.pairs
    problems = [*_leaks(pairs), *_contradictions(pairs), *_fields(dataset), *_counts(dataset)]
    return Validation(tuple(problems), tuple(balance_warnings(pairs)))


def refuse_leaks(dataset: Dataset) -> None:
    """Refuse to train on a data set whose held-out queries stand in train, by itself or by a near-duplicate.

    Args:
        dataset: as loaded.

    Raises:
        LeakySplit: naming the first leak.
    """
    for leak in _leaks(dataset.pairs):
        raise LeakySplit(
            leak,
            hint="Leave the columns query_group and split out; loading then groups and splits the queries.",
        )


def balance_warnings(pairs: Sequence[TrainingPair]) -> Iterator[str]:
    """What makes a data set lopsided or small."""
    if len(pairs) < MIN_PAIRS:
        yield f"{len(pairs)} pairs; below {MIN_PAIRS} training teaches little."
    positives = sum(pair.kind not in NEGATIVE_KINDS for pair in pairs)
    share = positives / len(pairs) if pairs else 0.0
    if not BALANCED[0] <= share <= BALANCED[1]:
        yield f"{share:.0%} of the pairs are positives; between 20 % and 80 % is balanced."
    splits = Counter(pair.split for pair in pairs if pair.kind == "positive")
    for name in ("train", "validation", "test"):
        if not splits[name]:
            yield f"The {name} split holds no positive pair."
    heaviest = Counter(pair.query_group for pair in pairs).most_common(1)
    if heaviest and len(pairs) >= MIN_PAIRS and heaviest[0][1] > 0.2 * len(pairs):
        yield f"One group of near-duplicate queries holds {heaviest[0][1]} of {len(pairs)} pairs."


def _leaks(pairs: Sequence[TrainingPair]) -> Iterator[str]:
    try:
        check_split(pairs)
    except LeakySplit as error:
        yield error.message
        return
    rated = {pair.query: pair for pair in pairs if pair.kind != "synthetic"}
    split_of: dict[str, TrainingPair] = {}
    for query, group in sorted(group_queries(rated, THRESHOLDS[-1:]).items()):
        first = split_of.setdefault(group, rated[query])
        if first.split != rated[query].split:
            yield (
                f"The near-duplicate queries {first.query[:80]!r} ({first.split}) and {query[:80]!r} "
                f"({rated[query].split}) stand in different splits."
            )


def _contradictions(pairs: Sequence[TrainingPair]) -> Iterator[str]:
    sides: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for pair in pairs:
        sides[query_key(pair.query), text_key(pair.document)].append(pair.kind in NEGATIVE_KINDS)
    for (query, _), found in sides.items():
        if len(set(found)) > 1:
            yield f"The query {query[:80]!r} has the same document as a positive and as a negative."
        elif len(found) > 1:
            yield f"The query {query[:80]!r} has the same document {len(found)} times."


def _fields(dataset: Dataset) -> Iterator[str]:
    for number, pair in enumerate(dataset.pairs, 1):
        if not 0 <= pair.label <= 1 or not 0 < pair.weight <= 1 or not 1 <= (pair.rating or 3) <= 5:
            numbers = f"label {pair.label}, weight {pair.weight} or rating {pair.rating}"
            yield f"Pair {number}: {numbers} is out of range."
        if (pair.label < 0.5) != (pair.kind in NEGATIVE_KINDS):
            yield f"Pair {number}: the label {pair.label} does not go with the kind {pair.kind}."
        if pair.kind == "synthetic" and pair.split != "train":
            yield f"Pair {number}: a synthetic pair stands in {pair.split}."
        if dataset.manifest and pair.rating is not None and not pair.feedback_ids:
            yield f"Pair {number}: a rated pair without the feedback it comes from."


def _counts(dataset: Dataset) -> Iterator[str]:
    counts = dataset.manifest.get("statistics")
    if not counts:
        return
    read, used, skipped = counts["feedback_read"], counts["feedback_used"], sum(counts["skipped"].values())
    if read != used + skipped:
        yield f"{read} entries were read, but {used} used and {skipped} skipped make {used + skipped}."
    if (
        counts["total_pairs"]
        != counts["positive_pairs"] + counts["negative_pairs"] + counts["synthetic_pairs"]
    ):
        yield "The counts of positive, negative and synthetic pairs do not make the total."
    complete = counts["total_pairs"] == len(dataset.pairs)
    ids = {i for pair in dataset.pairs if pair.rating is not None for i in pair.feedback_ids}
    if complete and len(ids) != used:
        yield f"{used} entries are said to be used, but the pairs name {len(ids)}."
