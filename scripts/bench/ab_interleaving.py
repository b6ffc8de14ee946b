"""How many queries an interleaved test needs against a split one, on real rankings of two real models.

    .venv/bin/python scripts/bench/ab_interleaving.py encode --out FOLDER        (needs ../shared/data, trains)
    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ab_interleaving.py simulate --out FOLDER

`encode` trains all-MiniLM-L6-v2 on simulated ratings of the collection's training queries and embeds its test
queries and documents with both models. `simulate` mixes the two until the test model is better by the wanted nDCG@5
(cosine of the weighted concatenation of both embeddings: an encoder like any other), and runs tests through the
service path: search, rating of every shown document, results after every query.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.experiment.support import BASE, TUNED, FakeHit, World

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.finetune.metrics import ndcg

K = 5
DEPTH = 20
RATING_NOISE = (0.25, 0.5, 0.25)
ANSWER_SD = 0.8

Rankings = list[list[str]]


def encode(collection_name: str, out: Path) -> None:
    """Train, embed and store: queries, documents and judgements of the test part."""
    from bench_data import DATA, ROOT, load_collection, simulated_ratings, to_dataset
    from finetune_quality import base_run

    from ragtune_mcp.core.finetune.backbone import open_backbone
    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.finetune.config import FineTuningConfig
    from ragtune_mcp.core.finetune.finetuner import fine_tune

    collection = load_collection(collection_name)
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, allow_downloads=False)
    ratings = simulated_ratings(collection, base_run(collection_name, DATA), 1000, "clean", 0)
    out.mkdir(parents=True, exist_ok=True)
    result = fine_tune(
        to_dataset(collection.name, ratings),
        collection.corpus,
        base,
        FineTuningConfig(random_seed=0),
        out / "model",
        report=lambda *_: None,
        cancelled=lambda: None,
        checkpoints=None,
    )
    documents = list(collection.corpus)
    vectors = {}
    for name, folder in (("base", base.path), ("tuned", result.model_path)):
        backbone = open_backbone(folder, 512, low_precision=True)
        vectors[f"{name}_q"] = backbone.encode([collection.queries[q] for q in collection.test])
        vectors[f"{name}_d"] = backbone.encode([collection.corpus[d] for d in documents])
    np.savez(out / "vectors.npz", **vectors)
    judged = [collection.qrels[q] for q in collection.test]
    (out / "judged.json").write_text(json.dumps({"documents": documents, "judged": judged}), encoding="utf-8")
    print(f"{collection_name}: {len(judged)} test queries, {len(documents)} documents")


def rankings(vectors: dict[str, np.ndarray], documents: list[str], weight: float) -> Rankings:
    """Best documents of every query when the tuned embedding has this weight and the base one the rest."""
    scores = (1 - weight) * vectors["base_q"] @ vectors["base_d"].T
    scores = scores + weight * vectors["tuned_q"] @ vectors["tuned_d"].T
    return [[documents[i] for i in np.argsort(-row)[:DEPTH]] for row in scores]


def mean_ndcg(found: Rankings, judged: list[dict[str, float]]) -> float:
    return float(np.mean([ndcg(ids, grades, K) for ids, grades in zip(found, judged, strict=True)]))


def at_gain(wanted: float, make: Callable[[float], Rankings], judged: list[dict[str, float]]) -> float:
    """The weight of the tuned embedding that gains `wanted` nDCG@5 over the base, by bisection."""
    base, low, high = mean_ndcg(make(0.0), judged), 0.0, 1.0
    if mean_ndcg(make(1.0), judged) - base < wanted:
        raise SystemExit(f"the tuned model gains less than {wanted}")
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_ndcg(make(middle), judged) - base < wanted else (low, middle)
    return high


class RankedWorld(World):
    """Answers "<number of the query> <occurrence>" from stored rankings; a null world swaps them by a coin."""

    def prepare(self, found: dict[str, Rankings], judged: list[dict[str, float]], rng, is_null: bool) -> None:
        self.found, self.judged, self.rng, self.is_null = found, judged, rng, is_null
        self.swap = False

    def answer(self, version: str, query: str, k: int) -> list[FakeHit]:
        if self.is_null and self.swap:
            version = BASE if version == TUNED else TUNED
        ids = self.found[version][int(query.split()[0])]
        return [FakeHit(d, d, "s", r, 1 - r / 100) for r, d in enumerate(ids[:k], 1)]

    def one_query(self, number: int, rated_share: float) -> None:
        """Search, then rate each shown document with a chance, and the answer."""
        chosen = int(self.rng.integers(len(self.judged)))
        self.swap = bool(self.rng.integers(2))
        served = self.service.search(f"{chosen} {number}", k=K)
        grades = self.judged[chosen]
        best = max(grades.values())
        rated = {}
        for hit in served.hits:
            if self.rng.random() < rated_share:
                wobble = int(self.rng.choice([-1, 0, 1], p=RATING_NOISE))
                rated[hit.id] = min(5, max(1, round(1 + 4 * grades.get(hit.id, 0) / best) + wobble))
        quality = 2 + 3 * ndcg([hit.id for hit in served.hits], grades, K)
        answer = min(5, max(1, round(quality + self.rng.normal(0, ANSWER_SD))))
        self.outcomes.record(served.query_id, answer, rated)


PLANS = {
    "interleave, document ratings": {"mode": "interleave"},
    "split, document ratings": {"metrics": ("relevance_score",)},
    "split, answer ratings": {"metrics": ("response_quality",)},
}
NULL_LIMIT = 1000
# (plan, share of the shown documents that are rated, both versions equally good)
ROWS = (
    ("interleave, document ratings", 1.0, False),
    ("split, document ratings", 1.0, False),
    ("split, answer ratings", 1.0, False),
    ("interleave, document ratings", 1.0, True),
    ("interleave, document ratings", 0.4, False),
)


def queries_to_decision(
    world: RankedWorld, plan: str, limit: int, share: float, salt: str
) -> tuple[int, str]:
    """(queries used, recommendation) of one test that is read after every query."""
    world.start(duration_hours=8760.0, salt=salt, **PLANS[plan])
    for number in range(limit):
        world.one_query(number, share)
        world.clock.forward(hours=1)
        reading = world.report.results()
        if reading.status != "active":
            return number + 1, reading.recommendation
    return limit, "continue"


def simulate(out: Path, gain: float, streams: int, limit: int, seed: int, rows: list[int]) -> None:
    vectors = dict(np.load(out / "vectors.npz"))
    stored = json.loads((out / "judged.json").read_text(encoding="utf-8"))
    judged = stored["judged"]

    def make(weight: float) -> Rankings:
        return rankings(vectors, stored["documents"], weight)

    found = {BASE: make(0.0), TUNED: make(at_gain(gain, make, judged))}
    scores = {version: mean_ndcg(found[version], judged) for version in found}
    overlap = np.mean([len({*a[:K]} & {*b[:K]}) / K for a, b in zip(found[BASE], found[TUNED], strict=True)])
    print(
        f"{len(judged)} queries, {len(stored['documents'])} documents; nDCG@{K} {scores[BASE]:.3f} ->"
        f" {scores[TUNED]:.3f}, overlap@{K} {overlap:.2f}; at most {limit} queries a test, read after every query\n"
    )
    print("| test | rated | streams | deploy | keep | open | median queries |\n|---|---|---|---|---|---|---|")
    for plan, share, is_null in (ROWS[number] for number in rows):
        most = NULL_LIMIT if is_null else limit
        print(row(found, judged, plan, share, is_null, streams, most, seed), flush=True)


def row(found, judged, plan, share, is_null, streams, limit, seed) -> str:
    """One line of the table."""
    used, outcomes = [], []
    streams *= 2 if is_null else 1
    with tempfile.TemporaryDirectory() as folder:
        for number in range(streams):
            path = Path(folder) / f"{number}.db"
            world = RankedWorld(Database(path))
            world.db.connection.execute("PRAGMA synchronous=OFF")
            world.prepare(found, judged, np.random.default_rng([seed, number, is_null]), is_null)
            n, outcome = queries_to_decision(world, plan, limit, share, f"{seed}/{number}")
            used.append(n)
            outcomes.append(outcome)
            world.db.close()
            path.unlink()
    deploy, keep = (outcomes.count(o) / streams for o in ("deploy_test_model", "keep_baseline"))
    error = math.sqrt(max(deploy * (1 - deploy), 1e-12) / streams)
    median = np.median(used)
    shown = f"> {limit}" if median >= limit else f"{median:.0f}"
    name = f"{plan}, null" if is_null else plan
    name = f"{name}, {limit} queries" if is_null else name
    return f"| {name} | {share:.0%} | {streams} | {deploy:.2f} ± {error:.2f} | {keep:.2f} | {1 - deploy - keep:.2f} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("encode", "simulate"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--collection", default="scrapy_docs")
    parser.add_argument("--gain", type=float, default=0.05)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=list(range(len(ROWS))), help="of the table, from 0"
    )
    options = parser.parse_args()
    if options.command == "encode":
        encode(options.collection, options.out)
    else:
        simulate(options.out, options.gain, options.streams, options.limit, options.seed, options.rows)


if __name__ == "__main__":
    main()
