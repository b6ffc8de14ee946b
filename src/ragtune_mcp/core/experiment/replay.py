"""Logged queries answered again by both versions, scored with the ratings at hand: free evidence, not causal.

The ratings were given to documents that earlier searches showed, mostly those of the version that served
then, so a difference here says where to look and never decides a test.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.experiment.assignment import normalise_query
from ragtune_mcp.core.experiment.serving import Hit
from ragtune_mcp.core.finetune.intervals import paired_interval
from ragtune_mcp.core.finetune.metrics import ndcg

MAX_QUERIES = 200
CUTOFF = 10
_DEPTH = 50
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Replay:
    """Both versions on the queries whose documents were rated.

    Attributes:
        queries: number of queries scored.
        baseline: mean nDCG@10 of the baseline over judged documents only (unjudged ones removed).
        test: the same of the test version.
        difference: test - baseline, with its paired bootstrap 95 % interval `low` to `high`.
        judged_baseline: share of the baseline's first 5 results that were ever rated.
        judged_test: the same of the test version; far below the baseline's means that little is known of it.
    """

    queries: int
    baseline: float | None
    test: float | None
    difference: float | None
    low: float | None
    high: float | None
    judged_baseline: float
    judged_test: float


def rated_queries(conn: sqlite3.Connection, limit: int = MAX_QUERIES) -> dict[str, dict[str, float]]:
    """The queries rated last, with the mean gain (rating - 1)/4 of each of their rated documents.

    Args:
        conn: any connection.
        limit: number of queries.

    Returns:
        query text -> {document id: gain in [0, 1]}; only queries with a document that is not all bad.
    """
    newest: dict[tuple[str, str, str], tuple[str, str, float]] = {}
    for row in conn.execute(
        "SELECT e.query, o.query_id, o.rater, o.item, o.value FROM outcomes o"
        " JOIN exposures e ON e.seq = o.exposure_seq WHERE o.kind = 'document' ORDER BY o.seq"
    ):
        key = (row["query_id"], row["rater"], row["item"])
        newest.pop(key, None)
        newest[key] = (row["query"], row["item"], (row["value"] - 1.0) / 4.0)
    gains: dict[str, dict[str, list[float]]] = {}
    texts: dict[str, str] = {}
    for query, item, gain in reversed(newest.values()):
        unit = normalise_query(query)
        texts.setdefault(unit, query)
        gains.setdefault(unit, defaultdict(list))[item].append(gain)
    means = {texts[u]: {item: sum(g) / len(g) for item, g in items.items()} for u, items in gains.items()}
    useful = [(query, items) for query, items in means.items() if max(items.values()) > 0.0]
    return dict(useful[:limit])


def replay(
    gains: dict[str, dict[str, float]],
    baseline_version: str,
    test_version: str,
    search_version: Callable[[str, str, int], Sequence[Hit]],
    seed: int = 0,
) -> Replay:
    """Search every rated query with both versions and compare nDCG@10 over the judged documents.

    Args:
        gains: as `rated_queries` returns them.
        baseline_version: version that serves.
        test_version: version under test.
        search_version: (version, query, k) -> results, best first.
        seed: of the bootstrap.

    Returns:
        The comparison.
    """
    scores: dict[str, list[float]] = {baseline_version: [], test_version: []}
    judged: dict[str, list[float]] = {baseline_version: [], test_version: []}
    for query, grades in gains.items():
        for version in scores:
            ranking = [hit.id for hit in search_version(version, query, _DEPTH)]
            scores[version].append(ndcg([id_ for id_ in ranking if id_ in grades], grades, CUTOFF))
            judged[version].append(sum(id_ in grades for id_ in ranking[:_SHOWN]) / _SHOWN)
    pairs = zip(scores[test_version], scores[baseline_version], strict=True)
    interval = paired_interval([test - baseline for test, baseline in pairs], seed)
    return Replay(
        queries=interval.n,
        baseline=_mean(scores[baseline_version]),
        test=_mean(scores[test_version]),
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        judged_baseline=_mean(judged[baseline_version]) or 0.0,
        judged_test=_mean(judged[test_version]) or 0.0,
    )


def keep_replay(conn: sqlite3.Connection, test_id: str, result: Replay, at: datetime) -> None:
    """Store a replay beside its test."""
    conn.execute("INSERT INTO replays VALUES (?, ?, ?)", (test_id, to_iso(at), json.dumps(asdict(result))))


def kept_replay(conn: sqlite3.Connection, test_id: str) -> dict[str, Any]:
    """The newest replay of a test as plain numbers, {} without one."""
    row = conn.execute(
        "SELECT result FROM replays WHERE test_id = ? ORDER BY rowid DESC LIMIT 1", (test_id,)
    ).fetchone()
    return json.loads(row["result"]) if row else {}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
