"""Gain of fine-tuning on held-out queries, by collection, amount of feedback, recipe and seed.

    python scripts/bench/finetune_quality.py run [--only feedbackqa] [--seeds 0 1 2 3 4] [--recipes auto ...]
    python scripts/bench/finetune_quality.py table

`run` trains with `fine_tune` as a job does and appends one JSON line per run to --results; runs already in
the file are skipped, so it can be stopped and repeated. `table` prints the Markdown tables of
docs/fine-tuning.md from that file. Test queries never give feedback; every score is against the whole corpus.
A worse model is one whose true difference on the test queries has one-sided p < .05.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_data import DATA, ROOT, Collection, load_collection, real_ratings, simulated_ratings, to_dataset

RESULTS = ROOT / ".demo" / "finetune_quality.jsonl"
RECIPES = {
    "auto": {},
    "CosineSimilarityLoss": {"loss_function": "CosineSimilarityLoss", "warmup_steps": 10},
    "CoSENTLoss": {"loss_function": "CoSENTLoss", "warmup_steps": 10},
    "TripletLoss": {"loss_function": "TripletLoss", "warmup_steps": 10},
    "MultipleNegativesRankingLoss": {"loss_function": "MultipleNegativesRankingLoss", "warmup_steps": 10},
}


class Setting(NamedTuple):
    """A collection and how much feedback of which kind: `size` is ratings for real, searches for
    simulated.
    """

    collection: str
    size: int
    noise: str


SETTINGS = (
    Setting("feedbackqa", 100, "real"),
    Setting("feedbackqa", 500, "real"),
    Setting("feedbackqa", 0, "real"),
    Setting("scrapy_docs", 1000, "mild"),
    Setting("peps", 1000, "mild"),
    Setting("cranfield", 1000, "mild"),
    Setting("scrapy_docs", 1000, "fbqa"),
    Setting("cranfield", 1000, "fbqa"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", default=[], help="collection[:size[:noise]] to run, default all")
    parser.add_argument("--recipes", nargs="*", default=["auto"], choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--stsb", action="store_true", help="also the STS-B test correlation of base and tuned"
    )
    arguments = parser.parse_args()
    if arguments.command == "table":
        print_tables(read_results(arguments.results))
        return
    done = {
        (r["collection"], r["size"], r["noise"], r["recipe"], r["seed"])
        for r in read_results(arguments.results)
    }
    for setting in SETTINGS:
        name = ":".join(map(str, setting))
        if arguments.only and not any(name == only or name.startswith(f"{only}:") for only in arguments.only):
            continue
        for seed in arguments.seeds:
            for recipe in arguments.recipes:
                if (*setting, recipe, seed) not in done:
                    record(arguments.results, run(setting, recipe, seed, arguments))


def run(setting: Setting, recipe: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One fine-tuning run and what it gained."""
    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.finetune.config import FineTuningConfig
    from ragtune_mcp.core.finetune.finetuner import fine_tune

    collection = load_collection(setting.collection, arguments.data)
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, allow_downloads=False)
    if setting.noise == "real":
        ratings = real_ratings(collection, setting.size, seed)
    else:
        ratings = simulated_ratings(
            collection, base_run(collection, base.path), setting.size, setting.noise, seed, arguments.data
        )
    dataset = to_dataset(collection, ratings, 0.1, seed)
    folder = Path(tempfile.mkdtemp(prefix="ragtune-quality-"))
    started, cpu = time.monotonic(), time.process_time()
    try:
        result = fine_tune(
            dataset,
            collection.corpus,
            base,
            FineTuningConfig(random_seed=seed, **RECIPES[recipe]),
            folder / "model",
            report=lambda *_: None,
            cancelled=lambda: None,
            checkpoints=None,
        )
        wall, cpu = time.monotonic() - started, time.process_time() - cpu
        sts = (
            stsb(result.model_path, arguments.data) - stsb(base.path, arguments.data)
            if arguments.stsb
            else None
        )
    finally:
        shutil.rmtree(folder)
    gain = result.evaluation["gain"]["ndcg@10"]
    return {
        **setting._asdict(),
        "recipe": recipe,
        "seed": seed,
        "ratings": len(ratings),
        "base": result.evaluation["base"]["ndcg@10"],
        "gain": gain["mean"],
        "low": gain["low"],
        "high": gain["high"],
        "n": gain["n"],
        "p_worse": result.gate.details["p_worse"],
        "seen": result.evaluation["seen"]["mean"],
        "unseen": result.evaluation["unseen"]["mean"],
        "probe_drop": result.gate.details["probe_base"] - result.gate.details["probe_tuned"],
        "agreement": result.gate.details["neighbour_agreement"],
        "stsb": sts,
        "verdict": result.gate.verdict,
        "alpha": result.gate.details["alpha"],
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
    }


def base_run(collection: Collection, folder: Path) -> dict[str, list[str]]:
    """What the base model shows for the training queries."""
    from ragtune_mcp.core.finetune.backbone import open_backbone
    from ragtune_mcp.core.finetune.evaluation import rank_corpus

    backbone = open_backbone(folder, 512, low_precision=True)
    queries = {query: collection.queries[query] for query in collection.train}
    return rank_corpus(backbone.encode, queries, collection.corpus, 10)


def stsb(folder: Path, data: Path) -> float:
    """Spearman correlation on the STS-B test part."""
    from ragtune_mcp.core.finetune.backbone import open_backbone
    from ragtune_mcp.core.finetune.similarity import correlations

    lines = (data / "stsb" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    left, right, score = (key for key in rows[0] if key in ("sentence1", "sentence2", "score"))
    backbone = open_backbone(folder, 512, low_precision=True)
    vectors = [backbone.encode([row[key] for row in rows]) for key in (left, right)]
    _, spearman = correlations(np.einsum("nd,nd->n", *vectors), np.array([float(row[score]) for row in rows]))
    return spearman or 0.0


def read_results(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if path.exists()
        else []
    )


def record(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def print_tables(results: list[dict[str, Any]]) -> None:
    """One row per setting and recipe: means over seeds, with the spread of the seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[(*(result[key] for key in Setting._fields), result["recipe"])].append(result)
    print(
        "| collection | feedback | recipe | seeds | base | gain (min .. max) | rated | unseen | probes | kept "
        "| verdicts | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for (collection, size, noise, recipe), rows in sorted(groups.items(), key=lambda item: str(item[0])):
        print("| " + " | ".join(_cells(collection, size, noise, recipe, rows)) + " |")
    promoted = [
        r for r in results if r["verdict"] == "pass" and r["p_worse"] is not None and r["p_worse"] < 0.05
    ]
    useful = [r for r in results if (r["low"] or 0) > 0]
    blocked = sum(r["verdict"] == "block" for r in useful)
    print(
        f"\n{len(results)} runs; passed though worse: {len(promoted)}; useful: {len(useful)}, "
        f"of them blocked: {blocked}."
    )


def _cells(collection: str, size: int, noise: str, recipe: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    gains = [row["gain"] for row in rows]
    verdicts = [row["verdict"] for row in rows]
    yield collection
    yield f"{np.mean([row['ratings'] for row in rows]):.0f} {noise}"
    yield recipe
    yield str(len(rows))
    yield f"{rows[0]['base']:.4f}"
    yield f"{np.mean(gains):+.4f} ({min(gains):+.3f} .. {max(gains):+.3f})"
    for key in ("seen", "unseen"):
        known = [row[key] for row in rows if row[key] is not None]
        yield f"{np.mean(known):+.4f}" if known else ""
    yield f"{-np.mean([row['probe_drop'] for row in rows]):+.4f}"
    yield f"{np.mean([row['agreement'] for row in rows]):.2f}"
    yield ", ".join(f"{verdicts.count(v)} {v}" for v in ("pass", "warn", "block") if v in verdicts)
    yield f"{np.mean([row['wall_s'] for row in rows]):.0f}"


if __name__ == "__main__":
    main()
