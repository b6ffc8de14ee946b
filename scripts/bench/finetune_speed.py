"""Training speed beside SentenceTransformerTrainer with its defaults, pair by pair.

    python scripts/bench/finetune_speed.py [--data DIR] [--pairs 3] [--rows 48] [--epochs 2] [--levers]

Both sides train all-MiniLM-L6-v2 on the same (query, positive, mined negative) rows of feedbackqa's real
ratings with MultipleNegativesRankingLoss at the same batch size, warm-up and number of steps; everything else,
the rate of 5e-5 too, is the Trainer's default on its side. Ours is the path of `fine_tune` with the frozen layers
and the rate of `auto`: each distinct text of a batch once, outputs of frozen layers kept, bfloat16 where the
processor has it. The two alternate on one thread, each in a process of its own, so that other load hits both
alike. Time runs from texts to trained weights: loading model and libraries counts on neither side, tokenising and
computing the kept outputs count.

Both of the first pair are scored on the collection's test questions against the whole corpus, and the difference
is given with its paired 95 % interval; training is deterministic, so the other pairs end alike. Ratios are of
CPU seconds (and of wall seconds, which the machine's load disturbs). `--rate` trains ours at another rate.
`--levers` adds one run each of the Trainer in bfloat16 and of ours without freezing and without bfloat16. The
last lines split our time by phase and hold it against the matrix products it contains at the rate this
processor reaches on large ones, measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_data import DATA, ROOT, load_collection, processor, real_ratings, to_dataset

LIBRARY, OURS = "Trainer, defaults", "ours (fine_tune)"
VARIANTS: dict[str, dict[str, Any]] = {
    LIBRARY: {"library": True, "bf16": False},
    OURS: {"bf16": True, "freeze": True},
    "Trainer, bf16=True": {"library": True, "bf16": True},
    "ours, nothing frozen": {"bf16": True},
    "ours, nothing frozen, float32": {"bf16": False},
}
LOSS, BATCH, RATE = "MultipleNegativesRankingLoss", 16, 5e-5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, help="peak learning rate of ours, default auto's")
    parser.add_argument("--levers", action="store_true", help="also a run without each lever")
    parser.add_argument("--score", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, file = arguments.child
        print(json.dumps(measure(VARIANTS[name], json.loads(Path(file).read_text()), arguments)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch) / "rows.json"
        rows = training_rows(arguments)
        task.write_text(json.dumps(rows))
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for pair in range(arguments.pairs):
            # Alternating which goes first.
            for name in (LIBRARY, OURS) if pair % 2 == 0 else (OURS, LIBRARY):
                found[name].append(child(name, task, arguments, score=pair == 0))
        for name in list(VARIANTS)[2:] if arguments.levers else ():
            found[name].append(child(name, task, arguments, score=True))
    print_tables(found, len(rows), arguments)


def child(name: str, task: Path, arguments: argparse.Namespace, *, score: bool) -> dict[str, Any]:
    options = ["--data", str(arguments.data), "--epochs", str(arguments.epochs)]
    options += ["--rate", str(arguments.rate)] if arguments.rate else []
    options += ["--score"] if score else []
    done = subprocess.run(
        [sys.executable, __file__, *options, "--child", name, str(task)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {result['cpu_s']:.1f} s CPU, {result['wall_s']:.1f} s wall", file=sys.stderr, flush=True)
    return result


def training_rows(arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """(query, positive, mined negative) of 500 real ratings."""
    import torch

    torch.set_num_threads(1)
    from ragtune_mcp.core.finetune.backbone import open_backbone
    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.finetune.examples import ranking_examples
    from ragtune_mcp.core.finetune.library_trainer import ranking_task
    from ragtune_mcp.core.finetune.mining import mine_negatives

    collection = load_collection("feedbackqa", arguments.data)
    pairs = to_dataset(collection.name, real_ratings(collection, 500, 0)).pairs
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, allow_downloads=False)
    backbone = open_backbone(base.path, 512, low_precision=True)
    texts = list(collection.corpus.values())
    examples = ranking_examples([pair for pair in pairs if pair.split == "train"])[: arguments.rows]
    examples = mine_negatives(
        examples,
        backbone.encode([example.query for example in examples]),
        backbone.encode([example.positive for example in examples]),
        backbone.encode(texts),
        texts,
        per_example=1,
        margin=0.05,
    )
    return ranking_task(examples)[LOSS].rows


def measure(
    variant: dict[str, Any], rows: list[tuple[str, ...]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one variant and rank the test questions with it."""
    import torch
    import torch._dynamo  # the first optimizer would load it within the time measured

    torch.set_num_threads(1)
    from ragtune_mcp.core.finetune.backbone import open_backbone
    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.finetune.config import FineTuningConfig
    from ragtune_mcp.core.finetune.evaluation import rank_corpus
    from ragtune_mcp.core.finetune.metrics import evaluate_run
    from ragtune_mcp.core.finetune.recipe import choose_recipe

    collection = load_collection("feedbackqa", arguments.data)
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, allow_downloads=False)
    auto = choose_recipe(FineTuningConfig(), len(rows), 6)
    config = FineTuningConfig(
        loss_function=LOSS,
        batch_size=BATCH,
        num_epochs=arguments.epochs,
        learning_rate=RATE if variant.get("library") else arguments.rate or auto.learning_rate,
        warmup_steps=2,
    )
    frozen = auto.frozen_layers if variant.get("freeze") else 0
    recipe = replace(choose_recipe(config, len(rows), 6), frozen_layers=frozen)
    train = by_library if variant.get("library") else by_us
    result, weights = train(base.path, [tuple(row) for row in rows], recipe, bool(variant["bf16"]))
    if not arguments.score:
        return {**result, "rate": recipe.learning_rate}
    scoring = open_backbone(base.path, 512, low_precision=True)
    qrels = {query: collection.qrels[query] for query in collection.test}
    queries = {query: collection.queries[query] for query in qrels}
    run = rank_corpus(lambda texts: scoring.encode(texts, weights), queries, collection.corpus, 10)
    return {**result, "rate": recipe.learning_rate, "ndcg": evaluate_run(run, qrels)["ndcg@10"]}


def by_library(folder: Path, rows: list[tuple[str, ...]], recipe: Any, bf16: bool) -> tuple[Any, Any]:
    from ragtune_mcp.core.finetune.backbone import LibraryBackbone
    from ragtune_mcp.core.finetune.library_trainer import train_with_library
    from ragtune_mcp.core.finetune.objectives import Columns

    backbone = LibraryBackbone(folder, 512, low_precision=bf16)
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train_with_library(
        backbone, {LOSS: Columns(rows, None)}, recipe, validate=None, on_step=lambda step: None
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    weights = {
        name.split(".model.", 1)[1]: tensor for name, tensor in trained.weights.items() if ".model." in name
    }
    return {"steps": trained.steps, "cpu_s": cpu, "wall_s": wall}, weights


def by_us(folder: Path, rows: list[tuple[str, ...]], recipe: Any, bf16: bool) -> tuple[Any, Any]:
    import torch

    from ragtune_mcp.core.finetune.backbone import FastBackbone, open_backbone
    from ragtune_mcp.core.finetune.examples import RankingExample
    from ragtune_mcp.core.finetune.objectives import Ranking
    from ragtune_mcp.core.finetune.trainer import FastTrainer, Step

    backbone = open_backbone(folder, 512, low_precision=bf16)
    assert isinstance(backbone, FastBackbone)
    objective = Ranking(
        [
            RankingExample(query, positive, tuple(negatives), frozenset({positive}), 1.0)
            for query, positive, *negatives in rows
        ],
        scale=recipe.scale,
    )
    phases: dict[str, float] = {}
    steps: list[Step] = []

    def timed(phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            started = time.process_time()
            found = work(*positional, **named)
            phases[phase] = phases.get(phase, 0.0) + time.process_time() - started
            return found

        return run

    texts = [text for row in rows for text in row]
    wall, cpu = time.perf_counter(), time.process_time()
    timed("tokenising", backbone.table.rows)(texts)
    backbone.freeze(recipe.frozen_layers, 10**9)
    timed("outputs of frozen layers, once", backbone.keep)(texts)
    trainer = FastTrainer(backbone, objective, recipe, micro_tokens=10**9)
    backbone.encode = timed("negatives, once an epoch", backbone.encode)  # type: ignore[method-assign]
    backbone.embed = timed("forward", backbone.embed)  # type: ignore[method-assign]
    objective.loss = timed("loss", objective.loss)  # type: ignore[method-assign]
    torch.Tensor.backward = timed("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    trainer._optimizer.step = timed("optimizer", trainer._optimizer.step)  # noqa: SLF001
    trained = trainer.run(validate=None, on_step=steps.append)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    phases["other"] = cpu - sum(phases.values())
    # Multiply-adds of one token in one layer: 12 width^2 forward, twice that backward; attention not counted.
    layer = 2 * 12 * backbone.shape.width**2
    fixed = recipe.epochs * backbone.token_count(objective.fixed)
    products = layer * (
        (3 * sum(step.tokens for step in steps) + fixed) * (backbone.layers - recipe.frozen_layers)
        + backbone.token_count(texts) * recipe.frozen_layers
    )
    return {
        "steps": trained.steps,
        "cpu_s": cpu,
        "wall_s": wall,
        "phases": phases,
        "products_s": products / product_rate(backbone.dtype),
    }, trained.weights


def product_rate(dtype: Any) -> float:
    """Multiply-add operations per CPU second of large matrix products on one thread."""
    import torch

    left = torch.randn(4096, 384, dtype=dtype)
    right = torch.randn(1536, 384, dtype=dtype)
    for _ in range(3):
        torch.nn.functional.linear(left, right)
    cpu = time.process_time()
    for _ in range(30):
        torch.nn.functional.linear(left, right)
    return 30 * 2 * 4096 * 384 * 1536 / (time.process_time() - cpu)


def print_tables(found: dict[str, list[dict[str, Any]]], rows: int, arguments: argparse.Namespace) -> None:
    from ragtune_mcp.core.finetune.intervals import paired_interval

    examples = rows * arguments.epochs
    print(
        f"{processor()}, 1 thread; {rows} rows, {arguments.epochs} epochs, batch {BATCH}, rate {RATE:g}, "
        f"ours {found[OURS][0]['rate']:g}.\n"
    )
    print("| variant | runs | steps | s (CPU) | s (wall) | examples/s (CPU) | nDCG@10 |\n|" + "---|" * 7)
    for name, runs in found.items():
        if runs:
            cpu, wall = ([run[key] for run in runs] for key in ("cpu_s", "wall_s"))
            scores = list(runs[0]["ndcg"].values())
            print(
                f"| {name} | {len(runs)} | {runs[0]['steps']} | {spread(cpu, '.1f')} | {spread(wall, '.1f')} | "
                f"{spread([examples / each for each in cpu], '.2f')} | {statistics.mean(scores):.4f} |"
            )
    pairs = list(zip(found[LIBRARY], found[OURS], strict=True))
    for key, what in (("cpu_s", "CPU"), ("wall_s", "wall")):
        print(
            f"\nRatio by pair, {what} time: {spread([left[key] / right[key] for left, right in pairs], '.1f')}"
        )
    library, ours = (found[name][0]["ndcg"] for name in (LIBRARY, OURS))
    gain = paired_interval([ours[query] - library[query] for query in library])
    print(
        f"\nnDCG@10 of ours over the Trainer's on {gain.n} test questions: "
        f"{gain.mean:+.4f} ({gain.low:+.4f} .. {gain.high:+.4f})"
    )
    last = found[OURS][-1]
    print("\n| phase | s (CPU) | share |\n|---|---|---|")
    for phase, seconds in last["phases"].items():
        print(f"| {phase} | {seconds:.2f} | {seconds / last['cpu_s']:.0%} |")
    print(
        f"\nThe matrix products alone would take {last['products_s']:.2f} s at this core's rate for large ones: "
        f"{last['products_s'] / last['cpu_s']:.0%} of the time taken."
    )


def spread(values: list[float], form: str) -> str:
    """Median, with the range of several runs."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} .. {max(values):{form}})"


if __name__ == "__main__":
    main()
