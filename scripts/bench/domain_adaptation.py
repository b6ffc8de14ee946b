"""Does training on pairs from the documents' structure, before any rating, help?

    python scripts/bench/domain_adaptation.py [--data DIR] [--only COLLECTION ...]

Four models per collection, all scored on test queries that no rating was given for, each against the whole
corpus: the base model; the base model adapted on (heading, document) and (keywords, document) pairs that
`dataset/synthetic.py` makes, none of them near a test query; the base model tuned on ratings by `fine_tune`;
the adapted model tuned on the same ratings. Prints one row per collection.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench_data import DATA, ROOT, Collection, load_collection, real_ratings, simulated_ratings, to_dataset

from ragtune_mcp.core.dataset import synthetic
from ragtune_mcp.core.dataset.pairs import Dataset, TrainingPair
from ragtune_mcp.core.finetune.backbone import FastBackbone, open_backbone
from ragtune_mcp.core.finetune.base import BaseModel, resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.evaluation import Vectors, compare
from ragtune_mcp.core.finetune.examples import ranking_examples
from ragtune_mcp.core.finetune.objectives import Ranking
from ragtune_mcp.core.finetune.recipe import choose_recipe
from ragtune_mcp.core.finetune.trainer import FastTrainer
from ragtune_mcp.core.finetune.tuning import fine_tune

COLLECTIONS = ("scrapy_docs", "feedbackqa", "peps")
RATINGS, SEARCHES = 500, 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", choices=COLLECTIONS, default=list(COLLECTIONS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "| collection | test queries | ratings | structural pairs | base | adapted | tuned | adapted, then tuned "
        "| tuned over base | adapted over base | adapted, then tuned over tuned | s (CPU) of adaptation |"
    )
    print("|" + "---|" * 12)
    for name in arguments.only:
        print("| " + " | ".join(measure(name, arguments.data, arguments.seed)) + " |", flush=True)


def measure(name: str, data: Path, seed: int) -> list[str]:
    collection = load_collection(name, data)
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, False)
    first = vectors(base.path, collection, collection.test)
    ratings = (
        real_ratings(collection, RATINGS, seed)
        if collection.feedback
        else simulated_ratings(
            collection, vectors(base.path, collection, collection.train).rank(10), SEARCHES, "mild", seed
        )
    )
    dataset = to_dataset(name, ratings)
    pairs = structural_pairs(collection, dataset, data / name, seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cpu = time.process_time()
        adapt(base, pairs, folder / "adapted", seed)
        cpu = time.process_time() - cpu
        tune(base, dataset, collection, folder / "tuned", seed)
        tune(BaseModel("adapted", folder / "adapted"), dataset, collection, folder / "both", seed)
        runs = {"base": first.rank(10)} | {
            arm: vectors(folder / arm, collection, collection.test).rank(10)
            for arm in ("adapted", "tuned", "both")
        }
    qrels = {query: collection.qrels[query] for query in collection.test}
    scores = [compare(runs["base"], runs[arm], qrels).summary()["tuned"]["ndcg@10"] for arm in runs]
    return [
        name,
        str(len(qrels)),
        str(len(ratings)),
        str(len(pairs)),
        *(f"{score:.4f}" for score in scores),
        *(
            gain(runs[left], runs[right], qrels)
            for left, right in (("base", "tuned"), ("base", "adapted"), ("tuned", "both"))
        ),
        f"{cpu:.0f}",
    ]


def structural_pairs(collection: Collection, dataset: Dataset, folder: Path, seed: int) -> list[TrainingPair]:
    """All there are, not the few that go beside ratings."""
    with (folder / "corpus.jsonl").open(encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    documents = {row["_id"]: f"{row.get('title', '')}\n\n{row['text']}" for row in rows}
    held_out = [
        TrainingPair(collection.queries[query], "", 1.0, query_group=query, split="test")
        for query in collection.test
    ]
    rated = [replace(pair, weight=1e9) for pair in dataset.pairs]
    return [
        replace(pair, document=collection.corpus[pair.document_id], weight=1.0)
        for pair in synthetic.synthetic_pairs(documents, [*rated, *held_out], seed)
    ]


def adapt(base: BaseModel, pairs: list[TrainingPair], output: Path, seed: int) -> None:
    """One epoch with in-batch negatives, as the recipe trains: rate, frozen layers, bfloat16."""
    backbone = open_backbone(base.path, 512, low_precision=True)
    assert isinstance(backbone, FastBackbone)
    recipe = choose_recipe(
        FineTuningConfig(batch_size=32, num_epochs=1, random_seed=seed), len(pairs), backbone.layers
    )
    recipe = replace(recipe, epochs=1)
    backbone.freeze(recipe.frozen_layers, 10**9)
    trained = FastTrainer(backbone, Ranking(ranking_examples(pairs)), recipe, micro_tokens=16_000).run(
        validate=None, on_step=lambda step: None
    )
    backbone.save(trained.weights, output)


def tune(base: BaseModel, dataset: Dataset, collection: Collection, output: Path, seed: int) -> None:
    fine_tune(
        dataset,
        collection.corpus,
        base,
        FineTuningConfig(random_seed=seed),
        output,
        report=lambda *_: None,
        cancelled=lambda: None,
        checkpoints=None,
    )


def vectors(folder: Path, collection: Collection, queries: list[str]) -> Vectors:
    backbone = open_backbone(folder, 512, low_precision=True)
    found = backbone.encode([collection.queries[query] for query in queries])
    documents = backbone.encode(list(collection.corpus.values()))
    return Vectors(dict(zip(queries, found, strict=True)), documents, list(collection.corpus))


def gain(
    left: Mapping[str, list[str]], right: Mapping[str, list[str]], qrels: dict[str, dict[str, float]]
) -> str:
    found = compare(left, right, qrels).gain()
    return f"{found.mean:+.3f} ({found.low:+.3f} .. {found.high:+.3f})"


if __name__ == "__main__":
    main()
