"""The search that feedback refers to, and everything one rater has said on it as an entry for ConPort."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ragtune_mcp.core.clock import from_iso
from ragtune_mcp.core.errors import UnknownId
from ragtune_mcp.core.experiment.assignment import Variant
from ragtune_mcp.core.feedback.parsing import feedback_value
from ragtune_mcp.core.feedback.records import FeedbackRecord, RatedDocument


class ShownDocument(NamedTuple):
    """A result as it was shown; `gap` is set in an interleaved list."""

    rank: int
    text_sha256: str
    source: str
    score: float
    gap: float | None


@dataclass(frozen=True, slots=True)
class Exposed:
    """An answered search: `shown` maps document ids to what was shown, in order."""

    seq: int
    query_id: str
    query: str
    k: int
    unit: str
    assigned: str | None
    test_id: str | None
    phase: int | None
    version: str
    latency_ms: float
    shown: Mapping[str, ShownDocument]


def exposed_search(conn: sqlite3.Connection, query_id: str) -> Exposed:
    """The answered search of a handle; UnknownId (`unknown_query`) where none was ever answered."""
    row = conn.execute(
        "SELECT e.seq, e.query_id, e.query, e.k, e.unit, e.assigned, e.test_id, e.phase, a.version,"
        " a.latency_ms, a.results"
        " FROM exposures e JOIN answers a ON a.exposure_seq = e.seq WHERE e.query_id = ?",
        (query_id,),
    ).fetchone()
    if row is None:
        raise UnknownId(
            f"No search has the query_id {query_id!r}.",
            hint="Use the query_id that search returned.",
            code="unknown_query",
        )
    results = enumerate(json.loads(row["results"]), 1)
    shown = {id_: ShownDocument(rank, *fields) for rank, (id_, *fields) in results}
    return Exposed(**{name: row[name] for name in row.keys() if name != "results"}, shown=shown)


def known_opinions(conn: sqlite3.Connection, query_id: str, rater: str) -> dict[tuple[str, str], sqlite3.Row]:
    """(kind, item) -> the newest revision of each opinion this rater has given on the search."""
    rows = conn.execute(
        "SELECT seq, kind, item, value, revision, replaces, state, at FROM outcomes"
        " WHERE query_id = ? AND rater = ? ORDER BY seq",
        (query_id, rater),
    )
    return {(row["kind"], row["item"]): row for row in rows}


def feedback_of(conn: sqlite3.Connection, query_id: str) -> tuple[str, ...]:
    """The ids of the feedback given on a search, oldest first."""
    rows = conn.execute(
        "SELECT feedback_id FROM feedback WHERE query_id = ? ORDER BY created_at", (query_id,)
    )
    return tuple(row["feedback_id"] for row in rows)


def query_of(conn: sqlite3.Connection, feedback_id: str) -> str | None:
    """The query_id of the search that feedback was given on; None for feedback that came from elsewhere."""
    row = conn.execute("SELECT query_id FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
    return None if row is None else str(row["query_id"])


def feedback_entry(conn: sqlite3.Connection, exposed: Exposed, feedback_id: str) -> dict[str, Any]:
    """All that the rater of a stored feedback has said, in the form `ragtune.feedback/1`."""
    stored = conn.execute("SELECT * FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
    known = known_opinions(conn, exposed.query_id, stored["rater"])

    def said(kind: str, item: str = "") -> int | None:
        row = known.get((kind, item))
        return None if row is None else int(row["value"])

    documents = tuple(
        RatedDocument(
            id=id_,
            text=text,
            text_sha256=document.text_sha256,
            rank=document.rank,
            score=document.score,
            rating=said("document", id_),
            helpful=True if said("helpful", id_) else None,
        )
        for (id_, document), text in zip(exposed.shown.items(), _texts(conn, exposed), strict=True)
    )
    return feedback_value(
        FeedbackRecord(
            feedback_id=feedback_id,
            key=feedback_id,
            timestamp=from_iso(stored["updated_at"]),
            query=exposed.query,
            rating=said("answer"),
            documents=documents,
            rater=stored["rater"],
            query_id=exposed.query_id,
            user_satisfaction=said("satisfaction"),
            comment=stored["comment"],
            retrieval=_retrieval(exposed),
        )
    )


def _retrieval(exposed: Exposed) -> dict[str, Any]:
    return {
        "model_id": exposed.version,
        "k": exposed.k,
        "ab_test_id": exposed.test_id,
        "arm": exposed.assigned if exposed.assigned != Variant.BOTH else None,
        "latency_ms": round(exposed.latency_ms, 3),
    }


def _texts(conn: sqlite3.Connection, exposed: Exposed) -> list[str | None]:
    """Texts of the documents shown, in order."""
    hashes = [document.text_sha256 for document in exposed.shown.values()]
    rows = conn.execute(
        "SELECT text_sha256, text FROM shown_documents WHERE text_sha256 IN (SELECT value FROM json_each(?))",
        (json.dumps(hashes),),
    )
    texts = {row["text_sha256"]: row["text"] for row in rows}
    return [texts.get(sha) for sha in hashes]
