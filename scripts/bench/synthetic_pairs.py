"""Do synthetic pairs help? Train with and without them, and score queries that no rating was given for.

    .venv/bin/python scripts/bench/synthetic_pairs.py [--data DIR] [--only COLLECTION ...]

Writes the table `synthetic` of docs/training-data.md. Ratings of the train queries are simulated from the
judgements (mild noise); everything is trained by the project's own `fine_tune`. Minutes per collection; rows
of earlier runs are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training_data import (
    CACHE,
    NOW,
    OPEN,
    ROOT,
    Collection,
    encoded,
    read_collection,
    simulated_rows,
    table,
    write_tables,
)

from ragtune_mcp.core.dataset.assemble import Sources, assemble
from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.feedback.reader import parse_rows
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.evaluation import compare, rank_corpus
from ragtune_mcp.core.finetune.tuning import fine_tune
from ragtune_mcp.core.models.library_encoder import LibraryEncoder

COLLECTIONS = ("scrapy_docs", "peps", "cranfield")


def measure(data: Path, name: str) -> tuple[Any, ...]:
    """Test nDCG@10 of base, rated pairs, rated with synthetic pairs, and synthetic pairs alone."""
    collection = read_collection(data / name, separator="\n\n")
    parts = json.loads((data / name / "splits.json").read_text(encoding="utf-8"))
    corpus = encoded(data, name, collection)
    train = collection._replace(
        qrels={q: collection.qrels[q] for q in parts["train"] if q in collection.qrels}
    )
    batch = parse_rows(simulated_rows(data, train, corpus, "mild", 0), 90, NOW)
    held_out = {q: collection.queries[q] for q in parts["test"] if q in collection.qrels}
    qrels = {q: {d: float(g) for d, g in collection.qrels[q].items()} for q in held_out}
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, False)
    runs = {"base": rank_corpus(LibraryEncoder(base.path).encode, held_out, collection.documents, 10)}
    counts = []
    for arm, synthetic in (("rated", False), ("synthetic", True)):
        options = replace(OPEN, include_synthetic=synthetic)
        sources = Sources(documents=corpus)
        made = assemble(batch, options, sources, lambda share, what: None, enforce_minimum=False)
        counts.append(made.statistics()["synthetic_pairs" if synthetic else "positive_pairs"])
        runs[arm] = _tuned_run(Dataset(arm, made.pairs, {}), collection, held_out, base)
    alone = tuple(pair for pair in made.pairs if pair.kind == "synthetic")
    runs["alone"] = _tuned_run(Dataset("alone", alone, {}), collection, held_out, base)
    gains = {
        arm: compare(runs["base"], runs[arm], qrels).summary()["gain"]["ndcg@10"]
        for arm in ("rated", "synthetic", "alone")
    }
    between = compare(runs["rated"], runs["synthetic"], qrels).summary()
    return (
        name,
        len(qrels),
        *counts,
        *map(_gain, (gains["rated"], gains["synthetic"], between["gain"]["ndcg@10"], gains["alone"])),
    )


def _tuned_run(
    dataset: Dataset, collection: Collection, queries: Mapping[str, str], base: Any
) -> dict[str, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        result = fine_tune(
            dataset,
            collection.documents,
            base,
            FineTuningConfig(),
            Path(folder) / "model",
            report=lambda share, message, fields: None,
            cancelled=lambda: None,
            checkpoints=None,
        )
        return rank_corpus(LibraryEncoder(result.model_path).encode, queries, collection.documents, 10)


def _gain(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:+.3f} ({interval['low']:+.3f} .. {interval['high']:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=COLLECTIONS, default=list(COLLECTIONS))
    options = parser.parse_args()
    stored = CACHE / "synthetic.json"
    rows: dict[str, list[Any]] = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    for name in options.only:
        rows[name] = [str(cell) for cell in measure(options.data, name)]
        print(rows[name], flush=True)
        stored.write_text(json.dumps(rows), encoding="utf-8")
    head = (
        "collection", "test queries", "rated positives", "synthetic pairs",
        "nDCG@10 gain, rated", "gain, rated and synthetic", "difference", "gain, synthetic alone",
    )  # fmt: skip
    write_tables({"synthetic": table(head, [rows[name] for name in COLLECTIONS if name in rows])})


if __name__ == "__main__":
    main()
