"""Collections in BEIR layout as fine-tuning data sets: feedback for training, qrels for the test part.

Feedback is real (feedback.jsonl) where a collection has it, otherwise simulated from the judgements by the
collection folder's own `simulate_feedback.py`. Ratings go through the project's own stages: pooled into
judgements, turned into pairs, grouped.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragtune_mcp.core.dataset.grouping import group_queries
from ragtune_mcp.core.dataset.pairs import Dataset, PairRules, TrainingPair, rated_pairs
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
        qrels = _qrels(folder / "qrels_test.tsv")
        rows = [row for row in _jsonl(folder / "feedback.jsonl") if row["feedback_split"] != "test"]
        return Collection(name, corpus, queries, qrels, [], sorted(qrels), rows)
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


def to_dataset(
    collection: Collection, ratings: list[FeedbackRecord], validation: float, seed: int
) -> Dataset:
    """Pairs of the ratings, `validation` of their groups held out, and the test queries' judgements as test
    part.
    """
    judgements = judge(ratings, None).judgements
    groups = group_queries(judgement.query for judgement in judgements)
    names = sorted(set(groups.values()))
    random.Random(seed).shuffle(names)
    held = set(names[: round(validation * len(names))])
    rated = [
        replace(
            pair,
            query_group=groups[pair.query],
            split="validation" if groups[pair.query] in held else "train",
        )
        for pair in rated_pairs(judgements, PairRules()).pairs
    ]
    return Dataset(f"{collection.name}-{seed}", (*rated, *_test_pairs(collection)), {})


def _test_pairs(collection: Collection) -> Iterator[TrainingPair]:
    top = max(grade for judged in collection.qrels.values() for grade in judged.values())
    for query in collection.test:
        text = collection.queries[query]
        for document, grade in collection.qrels[query].items():
            if grade > 0 and document in collection.corpus:
                # Gains are the rating above 2, so this keeps the grades' proportions.
                rating = 2 + 3 * grade / top
                yield TrainingPair(
                    query=text,
                    document=collection.corpus[document],
                    label=(rating - 1) / 4,
                    rating=rating,
                    document_id=document,
                    query_group=f"test:{text}",
                    split="test",
                )


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
