"""Collections in BEIR layout: feedback as fine-tuning data sets, judgements of other queries as the truth.

Feedback is real (feedback.jsonl) where a collection has it, otherwise simulated from the judgements by the
collection folder's own `simulate_feedback.py`. Ratings go through the project's own stages: pooled into
judgements, turned into pairs, grouped, split.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragtune_mcp.core.dataset.grouping import group_queries
from ragtune_mcp.core.dataset.pairs import Dataset, PairRules, rated_pairs
from ragtune_mcp.core.dataset.split import assign_splits, in_splits
from ragtune_mcp.core.feedback.judgements import judge
from ragtune_mcp.core.feedback.records import FeedbackRecord, RatedDocument

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Collection:
    """One collection; `train` and `test` are query ids that never overlap."""

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, float]]
    train: list[str]
    test: list[str]
    feedback: list[dict[str, Any]]


def load_collection(name: str, data: Path = DATA) -> Collection:
    folder = data / name
    if not (folder / "corpus.jsonl").is_file():
        raise SystemExit(f"{folder} has no corpus.jsonl; name another folder with --data")
    corpus = {
        row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in _jsonl(folder / "corpus.jsonl")
    }
    queries = {row["_id"]: row["text"] for row in _jsonl(folder / "queries.jsonl")}
    if (folder / "feedback.jsonl").is_file():
        # The rated questions of the train and valid parts are none of the test questions.
        test, train = (_qrels(folder / f"qrels_{part}.tsv") for part in ("test", "train"))
        rows = [row for row in _jsonl(folder / "feedback.jsonl") if row["feedback_split"] != "test"]
        return Collection(name, corpus, queries, {**train, **test}, sorted(train), sorted(test), rows)
    qrels = _qrels(folder / "qrels.tsv")
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    test = sorted(query for query in splits["test"] if query in qrels)
    train = sorted(query for part, ids in splits.items() if part != "test" for query in ids if query in qrels)
    return Collection(name, corpus, queries, qrels, train, test, [])


def real_ratings(collection: Collection, count: int, seed: int) -> list[FeedbackRecord]:
    """`count` of the collection's own ratings in a random order; 0 for all."""
    rows = list(collection.feedback)
    random.Random(seed).shuffle(rows)
    return [
        _record(number, row["query"], row["doc_id"], collection, row["rating"], str(row["rater"]))
        for number, row in enumerate(rows[: count or len(rows)])
    ]


def simulated_ratings(
    collection: Collection, run: dict[str, list[str]], sessions: int, noise: str, seed: int, data: Path = DATA
) -> list[FeedbackRecord]:
    """Ratings of simulated users who saw the rankings of `run` for training queries."""
    spec = importlib.util.spec_from_file_location("simulate_feedback", data / "simulate_feedback.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    top = max(grade for judged in collection.qrels.values() for grade in judged.values())
    rows = module.simulate(
        run, collection.qrels, top, sessions=sessions, noise=noise, seed=seed, qids=collection.train
    )
    return [
        _record(
            number, collection.queries[row["query_id"]], row["doc_id"], collection, row["rating"], row["user"]
        )
        for number, row in enumerate(rows)
    ]


def to_dataset(name: str, ratings: list[FeedbackRecord]) -> Dataset:
    """Pairs of the ratings in the splits a data set of the product has; the gate sees no other judgements."""
    judgements = judge(ratings, None).judgements
    rated = rated_pairs(judgements, PairRules()).pairs
    groups = group_queries(pair.query for pair in rated)
    scorable = dict.fromkeys(groups.values(), False)
    for pair in rated:
        scorable[groups[pair.query]] |= pair.kind == "positive"
    return Dataset(name, tuple(in_splits(rated, groups, assign_splits(scorable))), {})


def judged_ratings(collection: Collection, seed: int) -> list[FeedbackRecord]:
    """Every judged document of the training queries, rated by its judgement: more than any feedback gives."""
    top = max(grade for judged in collection.qrels.values() for grade in judged.values())
    rows = [
        (query, document, 4 if grade < top else 5)
        for query in collection.train
        for document, grade in collection.qrels[query].items()
        if document in collection.corpus
    ]
    random.Random(seed).shuffle(rows)
    return [
        _record(number, collection.queries[query], document, collection, rating, "judgements")
        for number, (query, document, rating) in enumerate(rows)
    ]


def processor() -> str:
    """The processor's name, as a benchmark states it beside its numbers."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _record(
    number: int, query: str, document: str, collection: Collection, rating: int, rater: str
) -> FeedbackRecord:
    shown = RatedDocument(document, collection.corpus[document], rating=rating)
    return FeedbackRecord(f"f{number:05d}", f"f{number:05d}", _NOW, query, documents=(shown,), rater=rater)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(): it breaks on U+0085 inside texts.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _qrels(path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            query, document, grade = line.split("\t")
            if float(grade) > 0:
                found[query][document] = float(grade)
    return dict(found)
