"""Training speed beside SentenceTransformerTrainer with its defaults: same examples, same steps, same loss.

    python scripts/bench/finetune_speed.py [--data DIR] [--ratings 500] [--negatives 1] [--epochs 1]
    [--threads N]

Both sides train all-MiniLM-L6-v2 on the same (query, positive, negatives) rows in the same number of steps
and are scored on the same held-out questions against the whole corpus. The library's side is what its
documentation
shows: MultipleNegativesRankingLoss, its own defaults for everything else. Ours is `fine_tune`'s path: each
distinct text of a batch once, lower half frozen with kept outputs, bfloat16 where the processor has it.
Further rows take our levers away one by one. Each row is a process of its own. The last lines give the share
of the processor's measured matrix-product rate that training reaches.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench_data import DATA, ROOT, load_collection, real_ratings, to_dataset

VARIANTS = {
    "sentence-transformers Trainer, defaults": {"library": True, "bf16": False},
    "sentence-transformers Trainer, bf16": {"library": True, "bf16": True},
    "ours, float32, nothing frozen": {"bf16": False, "frozen": 0},
    "ours, bfloat16, nothing frozen": {"bf16": True, "frozen": 0},
    "ours, bfloat16, lower half frozen (fine_tune)": {"bf16": True, "frozen": 3},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--ratings", type=int, default=500)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="run only rows whose name contains one of these")
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(VARIANTS[arguments.variant], arguments)))
        return
    options = [a for a in sys.argv[1:] if a not in ("--only", *(arguments.only or ()))]
    print("| variant | steps | s (wall) | s (CPU) | examples/s CPU | ratio | nDCG@10 | gain | products |")
    print("|---|---|---|---|---|---|---|---|---|")
    reference = None
    for name in VARIANTS:
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        done = subprocess.run(
            [sys.executable, __file__, *options, "--variant", name],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rate = found["examples"] / found["cpu_s"]
        reference = reference or rate
        print(
            f"| {name} | {found['steps']} | {found['wall_s']:.1f} | {found['cpu_s']:.1f} | {rate:.2f} | "
            f"{rate / reference:.1f}x | {found['ndcg']:.4f} | {found['gain']:+.4f} | {found['share']:.0%} |",
            flush=True,
        )


def measure(variant: dict[str, object], arguments: argparse.Namespace) -> dict[str, float]:
    """Train one variant and score it."""
    import torch

    torch.set_num_threads(arguments.threads)
    from ragtune_mcp.core.finetune.backbone import FastBackbone, LibraryBackbone, open_backbone
    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.finetune.config import FineTuningConfig
    from ragtune_mcp.core.finetune.evaluation import rank_corpus
    from ragtune_mcp.core.finetune.examples import grades, ranking_examples
    from ragtune_mcp.core.finetune.library_trainer import ranking_columns, train_with_library
    from ragtune_mcp.core.finetune.metrics import evaluate_run
    from ragtune_mcp.core.finetune.mining import mine_negatives
    from ragtune_mcp.core.finetune.objectives import LibraryLoss
    from ragtune_mcp.core.finetune.recipe import choose_recipe
    from ragtune_mcp.core.finetune.trainer import FastTrainer

    collection = load_collection("feedbackqa", arguments.data)
    pairs = to_dataset(collection.name, real_ratings(collection, arguments.ratings, 0)).pairs
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, allow_downloads=False)
    scoring = open_backbone(base.path, 512, low_precision=True)
    assert isinstance(scoring, FastBackbone)
    documents = scoring.encode(list(collection.corpus.values()))
    examples = ranking_examples([pair for pair in pairs if pair.split == "train"])
    examples = mine_negatives(
        examples,
        scoring.encode([example.query for example in examples]),
        scoring.encode([example.positive for example in examples]),
        documents,
        list(collection.corpus.values()),
        per_example=arguments.negatives,
        margin=0.05,
    )
    rows = ranking_columns(examples)
    config = FineTuningConfig(num_epochs=arguments.epochs, learning_rate=5e-5)
    recipe = replace(choose_recipe(config, len(rows), 6), frozen_layers=int(variant.get("frozen", 0)))
    qrels = grades(
        [pair for pair in pairs if pair.split == "test"], {t: d for d, t in collection.corpus.items()}
    )
    queries = {query: query for query in qrels}

    def score(weights: object) -> float:
        found = evaluate_run(
            rank_corpus(lambda texts: scoring.encode(texts, weights), queries, collection.corpus), qrels
        )
        return sum(found["ndcg@10"].values()) / len(qrels)

    tokens = 0
    if variant.get("library"):
        library = LibraryBackbone(base.path, 512, low_precision=bool(variant["bf16"]))
        recipe = replace(recipe, loss="MultipleNegativesRankingLoss")
        started, cpu = time.perf_counter(), time.process_time()
        trained = train_with_library(library, rows, None, recipe, validate=None, on_step=lambda step: None)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        weights = {
            name.split(".model.", 1)[1]: tensor
            for name, tensor in trained.weights.items()
            if ".model." in name
        }
    else:
        backbone = open_backbone(base.path, 512, low_precision=bool(variant["bf16"]))
        assert isinstance(backbone, FastBackbone)
        started, cpu = time.perf_counter(), time.process_time()
        backbone.freeze(int(variant["frozen"]), 10**9)
        # Included in the time: computing the outputs that are kept.
        backbone.keep([text for row in rows for text in row])
        trainer = FastTrainer(
            backbone, LibraryLoss("MultipleNegativesRankingLoss", rows, None), recipe, micro_tokens=10**9
        )
        steps = []
        trained = trainer.run(validate=None, on_step=steps.append)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        weights = trained.weights
        tokens = sum(step.tokens for step in steps)
    before, after = score(None), score(weights)
    layers = 6 - int(variant.get("frozen", 0))
    # Products of one token in one layer: 12 width^2 multiply-adds forward, twice that backward.
    operations = tokens * layers * 12 * 384**2 * 2 * 3
    return {
        "steps": trained.steps,
        "examples": trained.steps * 16,
        "wall_s": wall,
        "cpu_s": cpu,
        "ndcg": after,
        "gain": after - before,
        "share": operations / cpu / _product_rate(bool(variant["bf16"])) if tokens else 0.0,
    }


def _product_rate(bf16: bool) -> float:
    """Multiply-add operations per CPU second of large matrix products on one thread."""
    import torch

    left = torch.randn(4096, 384, dtype=torch.bfloat16 if bf16 else torch.float32)
    right = torch.randn(1536, 384, dtype=left.dtype)
    for _ in range(3):
        torch.nn.functional.linear(left, right)
    cpu = time.process_time()
    for _ in range(20):
        torch.nn.functional.linear(left, right)
    return 20 * 2 * 4096 * 384 * 1536 / (time.process_time() - cpu)


if __name__ == "__main__":
    main()
