"""Train, validation and test by groups of near-duplicate queries, with a test slice that never trains.

A group's place follows from the hash of its id alone, so it does not depend on the seed, on the other groups
or on the order of anything: later data leaves the groups that exist where they are. Two things can still move
a group: its id changes when a new near-duplicate query joins it, and small data sets are topped up so that no
slice is empty. Both are closed by the ledger: a group holding a query that an earlier data set held out for
test stays in test; one holding a query that was trained on never enters it; one holding both is left out
(`assemble`).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.pairs import SplitName, TrainingPair
from ragtune_mcp.core.errors import LeakySplit
from ragtune_mcp.core.feedback.text import query_key
from ragtune_mcp.core.workspace import sha256_text

_SALT = "ragtune split 1: "
# The gate judges nothing below 15 held-out queries; a few more, since documents of some may be gone by then.
_LEAST_TEST = 18


@dataclass(frozen=True, slots=True)
class SplitShares:
    """Shares of groups; the rest is train.

    A fifth is held out because the gate compares two models on it and needs queries; validation only chooses
    among candidates.
    """

    validation: float = 0.1
    test: float = 0.2


def assign_splits(
    scorable: Mapping[str, bool],
    shares: SplitShares | None = None,
    *,
    held_out: Collection[str] = (),
    trained: Collection[str] = (),
    order: Sequence[str] | None = None,
) -> dict[str, SplitName]:
    """Place every group.

    Args:
        scorable: group id -> whether it holds a positive; only such groups can be scored.
        shares: wished shares.
        held_out: groups that stay in test whatever their hash.
        trained: groups that must not enter test.
        order: place the groups by this order instead of by hash: the first ones are tested on.

    Returns:
        Group id -> split. From three scorable groups on every split holds at least one of them, and test and
        validation each hold between half and one and a half of their share; test at least 18 where that is
        within its bounds, because the gate needs them.
    """
    shares = shares or SplitShares()
    place = {group: _place(group) for group in scorable}
    if order is not None:
        place = {group: position / len(order) for position, group in enumerate(order)}
    ordered = sorted(scorable, key=lambda g: (place[g], g))
    fixed = set(held_out) & set(scorable)
    free = [g for g in ordered if g not in fixed and g not in set(trained)]
    scored = sum(scorable.values())
    test = fixed | {g for g in free if place[g] < shares.test}
    low, high = _bounds(shares.test, scored, most=scored - 1)
    _clamp(test, free, scorable, (max(low, min(high, _LEAST_TEST)), high), keep=fixed)
    rest = [g for g in ordered if g not in test]
    # Measured from where test ends, so that both slices keep their groups when the other changes.
    rest.sort(key=lambda g: ((place[g] - shares.test) % 1.0, g))
    end = round(shares.test + shares.validation, 12)
    validation = {g for g in rest if shares.test <= place[g] < end}
    left = sum(scorable[g] for g in rest)
    _clamp(validation, rest, scorable, _bounds(shares.validation, scored, most=left - 1), keep=set())
    return {g: "test" if g in test else "validation" if g in validation else "train" for g in ordered}


def in_splits(
    pairs: Iterable[TrainingPair], groups: Mapping[str, str], splits: Mapping[str, SplitName]
) -> list[TrainingPair]:
    """The pairs with the group of their query and the split of that group."""
    return [replace(p, query_group=groups[p.query], split=splits[groups[p.query]]) for p in pairs]


def check_split(pairs: Iterable[TrainingPair]) -> None:
    """Refuse a data set in which a query, or a query group, stands in two splits.

    Args:
        pairs: all pairs of the data set.

    Raises:
        LeakySplit: naming the first such group.
    """
    seen: dict[str, TrainingPair] = {}
    for pair in pairs:
        for what in (f"group {pair.query_group}", f"query {query_key(pair.query)!r}"):
            first = seen.setdefault(what, pair)
            if first.split != pair.split:
                raise LeakySplit(f"The {what} stands in {first.split} and in {pair.split}.")


class SliceLedger:
    """Which queries earlier data sets of this workspace held out or trained on, by hash."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def slices(self, queries: Mapping[str, str]) -> tuple[set[str], set[str]]:
        """Look up what happened to the queries before.

        Args:
            queries: query -> group id.

        Returns:
            The groups with a query once held out, and those with a query once trained on.
        """
        known = {
            row["query_sha256"]: row["slice"]
            for row in self._db.connection.execute("SELECT * FROM query_slices")
        }
        groups: dict[str, set[str]] = defaultdict(set)
        for query, group in queries.items() if known else ():
            groups[known.get(_digest(query), "")].add(group)
        return groups["test"], groups["train"]

    def record(self, pairs: Sequence[TrainingPair], dataset_id: str) -> None:
        """Remember the slices of a data set; what was remembered before stays."""
        rows = {
            _digest(pair.query): "test" if pair.split == "test" else "train"
            for pair in pairs
            if pair.kind != "synthetic"
        }
        now = to_iso(utc_now())
        with self._db.transaction() as connection:
            connection.executemany(
                "INSERT INTO query_slices (query_sha256, slice, dataset_id, assigned_at) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (query_sha256) DO UPDATE SET slice = 'test' WHERE excluded.slice = 'test'",
                [(digest, name, dataset_id, now) for digest, name in sorted(rows.items())],
            )


def _digest(query: str) -> str:
    return sha256_text(query_key(query))


def _place(group: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a group."""
    return int.from_bytes(hashlib.sha256((_SALT + group).encode()).digest()[:6], "big") / 2**48


def _bounds(share: float, scored: int, most: int) -> tuple[int, int]:
    """Fewest and most groups of a slice: half to one and a half of its share, at least one, never all there
    is.
    """
    most = max(0, most)
    low = min(most, max(1, math.floor(share * scored / 2)))
    return low, min(most, max(low, math.ceil(1.5 * share * scored)))


def _clamp(
    chosen: set[str],
    candidates: Sequence[str],
    scorable: Mapping[str, bool],
    bounds: tuple[int, int],
    keep: set[str],
) -> None:
    """Add or drop scorable candidates, in their order, until the number chosen is within the bounds."""
    low, high = bounds
    scored = sum(scorable[g] for g in chosen)
    for group in candidates:
        if scored >= low:
            break
        if scorable[group] and group not in chosen:
            chosen.add(group)
            scored += 1
    for group in reversed(candidates):
        if scored <= high:
            break
        if scorable[group] and group in chosen and group not in keep:
            chosen.remove(group)
            scored -= 1
