"""What the demo works on: documents to index, ratings to load into ConPort, held-out judgements to measure with."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

Qrels = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Collection:
    """One demo input. `files` are copied into the workspace, `paths` is what index_documents is told to read."""

    name: str
    files: tuple[Path, ...]
    paths: list[str]
    feedback: list[dict[str, Any]]
    queries: dict[str, str]
    qrels: Qrels
    note: str
    conport: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def max_grade(self) -> int:
        return max(grade for judged in self.qrels.values() for grade in judged.values())


def load_sample(folder: Path) -> Collection:
    """The shipped sample: Markdown knowledge, ConPort items, ratings with relative ages."""
    now = datetime.now(UTC).replace(microsecond=0)
    feedback = []
    for number, row in enumerate(_jsonl(folder / "feedback.jsonl")):
        row = dict(row)
        row["timestamp"] = (now - timedelta(days=row.pop("age_days"))).isoformat()
        feedback.append({"key": f"sample-{number:05d}", "value": _entry(row, f"sample-{number:05d}")})
    return Collection(
        name="sample workspace",
        files=(folder / "knowledge",),
        paths=["knowledge/**/*.md"],
        feedback=feedback,
        queries={row["_id"]: row["text"] for row in _jsonl(folder / "queries.jsonl")},
        qrels=_qrels(folder / "qrels_test.tsv"),
        note="ratings of eight simulated raters, some careless; see sample/README.md",
        conport=json.loads((folder / "conport.json").read_text(encoding="utf-8")),
    )


def load_beir(folder: Path, ratings: int, seed: int) -> Collection:
    """A folder in BEIR layout. Ratings whose `feedback_split` is test stay out, so that the test questions are unseen."""
    for name in ("corpus.jsonl", "queries.jsonl", "feedback.jsonl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing; --data needs corpus.jsonl, queries.jsonl, feedback.jsonl and qrels"
            )
    rows = [row for row in _jsonl(folder / "feedback.jsonl") if row.get("feedback_split") != "test"]
    if ratings:
        random.Random(seed).shuffle(rows)
        rows = rows[:ratings]
    test = folder / "qrels_test.tsv"
    yesterday = (datetime.now(UTC) - timedelta(days=1)).replace(microsecond=0)
    for row in rows:
        row["timestamp"] = yesterday.isoformat()
    return Collection(
        name=folder.resolve().name,
        files=(folder / "corpus.jsonl",),
        paths=["corpus.jsonl"],
        feedback=[{"key": f"fb-{n:05d}", "value": _entry(row, f"fb-{n:05d}")} for n, row in enumerate(rows)],
        queries={row["_id"]: row["text"] for row in _jsonl(folder / "queries.jsonl")},
        qrels=_qrels(test if test.is_file() else folder / "qrels.tsv"),
        note="human ratings as collected",
    )


def _entry(row: dict[str, Any], key: str) -> dict[str, Any]:
    """A rating row as a `UserFeedback` value; rows already in an entry's shape stay as they are."""
    if "doc_id" not in row:
        return {"feedback_id": key, **row}
    return {
        "schema": "ragtune.feedback/1",
        "feedback_id": key,
        "timestamp": row["timestamp"],
        "session_id": str(row["rater"]),
        "query": row["query"],
        "rating": None,
        "detailed_feedback": {"comments": row.get("comment", "")},
        "document_ids": [row["doc_id"]],
        "documents": [{"id": row["doc_id"], "rating": row["rating"]}],
    }


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for line in path.read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            query, document, grade = line.split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
    return qrels
