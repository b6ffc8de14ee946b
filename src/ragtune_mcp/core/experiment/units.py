"""The opinions on one unit, and its value for a metric: frozen at first use, and as it stands now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ragtune_mcp.core.experiment.interleaving import HELPFUL_RATING
from ragtune_mcp.core.experiment.metrics import RELEVANCE, Metric, relevance_score

# What an interleaved list is credited by.
ON_DOCUMENTS = ("document", "helpful")


class Opinion(NamedTuple):
    """One logged opinion: all of one call share `submission`; `replaces` is the seq of the first revision."""

    seq: int
    submission: int
    query_id: str
    rater: str
    kind: str
    item: str
    value: float
    rank: int | None
    gap: float | None
    replaces: int | None
    state: str


class UnitChange(NamedTuple):
    """A unit with new opinions: what was said up to the last reading, and up to this one.

    `covariate` was known before the unit was assigned; `edits` maps the seq of a rating to the value that
    replaced it in time.
    """

    phase: int
    in_test: bool
    propensity: float
    covariate: float
    before: Sequence[Opinion]
    after: Sequence[Opinion]
    edits: Mapping[int, float]


class CreditedQuery(NamedTuple):
    """Frozen (rating, discount gap) of an interleaved query's documents, with its place in the order."""

    seq: int
    rated: tuple[tuple[float, float], ...]
    are_marks: bool


class First(NamedTuple):
    """A unit's frozen value and its place in the order of arrival."""

    seq: int
    value: float


def current_value(metric: Metric, opinions: Iterable[Opinion]) -> float | None:
    """Mean over (search, rater) of the newest revision; None without an opinion on this metric."""
    newest: dict[tuple[str, str], dict[str, Opinion]] = {}
    for opinion in opinions:
        if opinion.kind == metric.kind:
            newest.setdefault((opinion.query_id, opinion.rater), {})[opinion.item] = opinion
    if not newest:
        return None
    values = [_value(metric, said.values()) for said in newest.values()]
    return sum(values) / len(values)


def first_value(metric: Metric, change: UnitChange) -> First | None:
    """The value of the first submission on this metric, with edits made in time; None without one."""
    first = _first_submission(change, (metric.kind,))
    return First(first[0].seq, _value(metric, first)) if first else None


def first_credited(change: UnitChange) -> CreditedQuery | None:
    """The first submission on documents of an interleaved list; its helpful marks where it rates none.

    One submission and no later one, so that the credit does not depend on what was said when it was read.
    """
    first = _first_submission(change, ON_DOCUMENTS)
    rated = [o for o in first if o.kind == "document"]
    if rated:
        return CreditedQuery(rated[0].seq, tuple((o.value, o.gap or 0.0) for o in rated), are_marks=False)
    if first:
        marks = tuple((HELPFUL_RATING, o.gap or 0.0) for o in first)
        return CreditedQuery(first[0].seq, marks, are_marks=True)
    return None


def _first_submission(change: UnitChange, kinds: Collection[str]) -> list[Opinion]:
    of_kind = [o for o in change.after if o.kind in kinds and o.replaces is None]
    return [
        o._replace(value=change.edits.get(o.seq, o.value))
        for o in of_kind
        if o.submission == of_kind[0].submission
    ]


def _value(metric: Metric, said: Iterable[Opinion]) -> float:
    if metric is RELEVANCE:
        return relevance_score((o.rank or 1, o.value) for o in said)
    return next(o.value for o in said)
