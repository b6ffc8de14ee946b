"""Groups of near-duplicate queries: the unit that never straddles two splits.

Two queries are near-duplicates when the sets of their character 4-grams (of the normalised text, with a space
at either end) have a cosine |A & B| / sqrt(|A| |B|) of at least `NEAR_DUPLICATE` = 0.7, the specification's
"similar query". A group is a connected component of that relation. Questions made from one template ("how do
I set X in Y") would chain into one component without being duplicates; a component of more than `LARGE_SHARE`
of all queries is therefore taken apart again at the next stricter threshold.

Candidates come from MinHash (Broder 1997) with banding (Leskovec, Rajaraman & Ullman 2014, section 3.4): 72
permutations in 24 bands of 3 rows find a pair of Jaccard similarity s with probability 1 - (1 - s^3)^24,
which is .96 at s = .5 and above .999 from s = .63. Every candidate is verified exactly, so no pair is grouped
by chance; a pair is missed with the probability above. Memory and time grow linearly with the number of
queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ragtune_mcp.core.feedback.text import query_key
from ragtune_mcp.core.workspace import sha256_text

NEAR_DUPLICATE = 0.7
# From the last one up, queries share a group even where a component is taken apart.
THRESHOLDS = (NEAR_DUPLICATE, 0.8, 0.9, 0.95)
LARGE_SHARE = 0.05
LARGE_LEAST = 50
_GRAM = 4
_BANDS, _ROWS = 24, 3
# Members of one bucket are sorted by text; each is compared with this many successors and with the first.
# Chains of near-duplicates stay connected, and a bucket of n costs 5 n comparisons instead of n^2.
_NEIGHBOURS = 4
_KEYS_AT_ONCE = 2_000
_PAIRS_AT_ONCE = 20_000
# Three standard errors of a similarity estimated from 72 minima: what falls below by more is not compared
# exactly.
_SLACK = 0.17

_U64 = npt.NDArray[np.uint64]


def group_queries(queries: Iterable[str], thresholds: Sequence[float] = THRESHOLDS) -> dict[str, str]:
    """Assign each query to its group of near-duplicates.

    Args:
        queries: any spellings; equal normalised texts share a group.
        thresholds: of the cosine, and the stricter ones for components that are too large.

    Returns:
        Query -> group id, `g` and 16 hex digits; it depends on the set of queries only, not on their order.
        The id is the hash of the member whose own hash is smallest, so most groups keep their id when queries
        are added.
    """
    spellings = sorted(set(queries))
    key_of = {query: query_key(query) for query in spellings}
    keys = sorted(set(key_of.values()))
    roots = _components(keys, thresholds, max(LARGE_LEAST, int(LARGE_SHARE * len(keys))))
    hashes = [sha256_text(key)[:16] for key in keys]
    smallest: dict[int, str] = {}
    for number, root in enumerate(roots):
        smallest[root] = min(smallest.get(root, "~"), hashes[number])
    group_of = {key: f"g{smallest[roots[number]]}" for number, key in enumerate(keys)}
    return {query: group_of[key] for query, key in key_of.items()}


def similarity(first: str, second: str) -> float:
    """Cosine of the two queries' character 4-gram sets, in [0, 1]."""
    a, b = _grams(query_key(first)), _grams(query_key(second))
    return len(a & b) / float(np.sqrt(len(a) * len(b)))


def _grams(key: str) -> frozenset[str]:
    padded = f" {key} "
    return frozenset(padded[i : i + _GRAM] for i in range(max(1, len(padded) - _GRAM + 1)))


def _components(keys: Sequence[str], thresholds: Sequence[float], largest: int) -> list[int]:
    """A root per key; keys of one component share it. Oversized components are cut at the next threshold."""
    roots = np.arange(len(keys))
    if len(keys) < 2:
        return roots.tolist()
    shingles, bounds = _shingles(keys)
    signatures = _signatures(shingles, bounds)
    roots = _linked(signatures, shingles, bounds, thresholds[0])
    for threshold in thresholds[1:]:
        sizes = np.bincount(roots, minlength=len(keys))
        members = np.flatnonzero(sizes[roots] > largest)
        if not len(members):
            break
        runs = _ranges(bounds[members], np.diff(bounds)[members])
        own_bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.diff(bounds)[members])])
        finer = _linked(signatures[members], shingles[runs], own_bounds, threshold)
        # Two components cut apart here stay apart: the stricter relation is contained in the looser one.
        roots[members] = members[finer]
    return roots.tolist()


def _linked(
    signatures: npt.NDArray[np.uint32], shingles: _U64, bounds: npt.NDArray[np.int64], threshold: float
) -> npt.NDArray[np.int64]:
    """The smallest member of each key's component, band by band: keys already linked are not compared
    again.
    """
    parent = np.arange(len(signatures))
    for band in range(_BANDS):
        pairs = _candidates(signatures[:, band * _ROWS : (band + 1) * _ROWS], parent)
        pairs = _plausible(pairs, signatures, np.diff(bounds), threshold)
        links = _verified(pairs, shingles, bounds, threshold)
        if links:
            parent = _joined(parent, links)
    return parent


def _joined(parent: npt.NDArray[np.int64], links: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Union-find over flat labels: each link joins two components under the smaller label."""
    joined: dict[int, int] = {}

    def find(item: int) -> int:
        path = []
        while item in joined:
            path.append(item)
            item = joined[item]
        for passed in path:
            joined[passed] = item
        return item

    for left, right in links:
        a, b = find(int(parent[left])), find(int(parent[right]))
        if a != b:
            joined[max(a, b)] = min(a, b)
    table = np.arange(len(parent))
    for label in joined:
        table[label] = find(label)
    return table[parent]


def _shingles(keys: Sequence[str]) -> tuple[_U64, npt.NDArray[np.int64]]:
    """Distinct 4-gram hashes of every key, sorted within the key, and the (n + 1,) bounds of each key's
    run.
    """
    parts: list[_U64] = []
    sizes: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        values, counts = _chunk_shingles(
            [f" {key} ".ljust(_GRAM) for key in keys[start : start + _KEYS_AT_ONCE]]
        )
        parts.append(values)
        sizes.append(counts)
    bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(sizes))])
    return np.concatenate(parts), bounds


def _chunk_shingles(texts: Sequence[str]) -> tuple[_U64, npt.NDArray[np.int64]]:
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    hashed = np.zeros(len(codes) - _GRAM + 1, dtype=np.uint64)
    for i in range(_GRAM):
        hashed = hashed * np.uint64(0x100000001B3) + codes[i : i + len(hashed)]
    hashed = _mixed(hashed)
    ends = np.cumsum(lengths)
    owner = np.repeat(np.arange(len(texts)), lengths)[: len(hashed)]
    inside = np.arange(len(hashed)) + _GRAM <= ends[owner]
    order = np.lexsort((hashed[inside], owner[inside]))
    owners, values = owner[inside][order], hashed[inside][order]
    fresh = np.ones(len(values), dtype=bool)
    fresh[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])
    return values[fresh], np.bincount(owners[fresh], minlength=len(texts))


def _mixed(values: _U64) -> _U64:
    # The finaliser of splitmix64: spreads the low-entropy polynomial over all 64 bits.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)), dtype=np.uint64)


def _signatures(shingles: _U64, bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """(n, bands * rows) minima of each key's shingles under fixed pseudo-random permutations."""
    seeds = _mixed(np.arange(1, 2 * _BANDS * _ROWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    factors, offsets = seeds[::2] | np.uint64(1), seeds[1::2]
    signatures = np.empty((len(bounds) - 1, _BANDS * _ROWS), dtype=np.uint32)
    for start in range(0, len(signatures), _KEYS_AT_ONCE):
        own = bounds[start : start + _KEYS_AT_ONCE + 1]
        values = shingles[own[0] : own[-1]]
        for column, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            permuted = ((values * factor + offset) >> np.uint64(32)).astype(np.uint32)
            signatures[start : start + _KEYS_AT_ONCE, column] = np.minimum.reduceat(
                permuted, own[:-1] - own[0]
            )
    return signatures


def _candidates(rows: npt.NDArray[np.uint32], parent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(m, 2) distinct pairs, not yet linked, that agree in all columns of one band; smaller number first."""
    bucket = np.zeros(len(rows), dtype=np.uint64)
    for column in range(rows.shape[1]):
        bucket = _mixed((bucket << np.uint64(7)) ^ bucket ^ rows[:, column])
    # A stable sort keeps the members of a bucket in the order of their text.
    order = np.argsort(bucket, kind="stable")
    ordered = bucket[order]
    here = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.concatenate([[True], ordered[1:] != ordered[:-1]]), here, 0))
    found = [_pairs(order[first], order, first != here)]
    found += [
        _pairs(order[:-step], order[step:], ordered[step:] == ordered[:-step])
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1)
    ]
    pairs = np.concatenate(found)
    pairs = pairs[parent[pairs[:, 0]] != parent[pairs[:, 1]]]
    codes = np.unique(pairs[:, 0] * len(rows) + pairs[:, 1])
    return np.stack([codes // len(rows), codes % len(rows)], axis=1)


def _pairs(
    left: npt.NDArray[Any], right: npt.NDArray[Any], keep: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    pair = np.stack([left[keep], right[keep]], axis=1)
    return np.sort(pair, axis=1).astype(np.int64)


def _plausible(
    pairs: npt.NDArray[np.int64],
    signatures: npt.NDArray[np.uint32],
    sizes: npt.NDArray[np.int64],
    threshold: float,
) -> npt.NDArray[np.int64]:
    """The pairs whose estimated Jaccard similarity allows the cosine asked for."""
    keep = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        left, right = pairs[start : start + _PAIRS_AT_ONCE].T
        estimate = (signatures[left] == signatures[right]).mean(axis=1)
        shared = threshold * np.sqrt(sizes[left] * sizes[right])
        keep[start : start + _PAIRS_AT_ONCE] = (
            estimate >= shared / (sizes[left] + sizes[right] - shared) - _SLACK
        )
    return pairs[keep]


def _verified(
    pairs: npt.NDArray[np.int64], shingles: _U64, bounds: npt.NDArray[np.int64], threshold: float
) -> list[tuple[int, int]]:
    """The pairs whose exact cosine reaches the threshold."""
    sizes = np.diff(bounds)
    links: list[tuple[int, int]] = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        shared = _intersections(part, shingles, bounds)
        cosine = shared / np.sqrt(sizes[part[:, 0]] * sizes[part[:, 1]])
        # A hair of slack: equal sets must not fall below 1 by rounding.
        close = part[cosine >= threshold - 1e-9]
        links += zip(close[:, 0].tolist(), close[:, 1].tolist(), strict=True)
    return links


def _intersections(
    pairs: npt.NDArray[np.int64], shingles: _U64, bounds: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many shingles each pair shares: both runs side by side, sorted; an equal neighbour is a shared
    one.
    """
    left, right = pairs[:, 0], pairs[:, 1]
    sizes = np.diff(bounds)
    rows = np.concatenate([np.repeat(np.arange(len(pairs)), sizes[side]) for side in (left, right)])
    values = np.concatenate([shingles[_ranges(bounds[side], sizes[side])] for side in (left, right)])
    order = np.lexsort((values, rows))
    rows, values = rows[order], values[order]
    equal = (values[1:] == values[:-1]) & (rows[1:] == rows[:-1])
    return np.bincount(rows[1:][equal], minlength=len(pairs))


def _ranges(starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The indices start, start + 1, ... of every run, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes - starts, sizes)
