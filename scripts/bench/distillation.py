"""What a student of fewer layers loses and what it saves.

    python scripts/bench/distillation.py [--data DIR] [--only COLLECTION ...] [--layers 3 ...]

Per collection: the base model is tuned on ratings by `fine_tune` (500 real ones of feedbackqa, those of 1,000
simulated searches elsewhere), students of that teacher are trained on the corpus and the rated queries by
`train_student`, and all are scored on test queries that neither has seen, each against the whole corpus.
Encoding is timed in CPU seconds over the corpus on one thread, tokenising left out. Prints one row per model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_data import DATA, ROOT, Collection, load_collection, real_ratings, simulated_ratings, to_dataset

from ragtune_mcp.core.finetune.backbone import FastBackbone, open_backbone
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.distillation import plan_student, texts_to_match, train_student
from ragtune_mcp.core.finetune.evaluation import Vectors, compare
from ragtune_mcp.core.finetune.gate import neighbour_agreement, probe_correlation
from ragtune_mcp.core.finetune.student import write_student
from ragtune_mcp.core.finetune.tuning import fine_tune

COLLECTIONS = ("feedbackqa", "scrapy_docs")
RATINGS, SEARCHES = 500, 1000


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", choices=COLLECTIONS, default=list(COLLECTIONS))
    parser.add_argument("--layers", nargs="+", type=int, default=[3])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "| collection | model | layers | test queries | nDCG@10 | over teacher | over base | probes "
        "| neighbours of the teacher kept | MB | encoding, s (CPU) | training, s (CPU) |"
    )
    print("|" + "---|" * 12)
    for name in arguments.only:
        for row in measure(name, arguments):
            print("| " + " | ".join(row) + " |", flush=True)


def measure(name: str, arguments: argparse.Namespace) -> Any:
    collection = load_collection(name, arguments.data)
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, False)
    model, first, took = seen_by(base.path, collection)
    ratings = (
        real_ratings(collection, RATINGS, arguments.seed)
        if collection.feedback
        else simulated_ratings(
            collection, shown(model, collection, first), SEARCHES, "mild", arguments.seed, arguments.data
        )
    )
    dataset = to_dataset(name, ratings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cpu = time.process_time()
        fine_tune(
            dataset,
            collection.corpus,
            base,
            FineTuningConfig(random_seed=arguments.seed),
            folder / "teacher",
            report=lambda *_: None,
            cancelled=lambda: None,
            checkpoints=None,
        )
        cpu = time.process_time() - cpu
        teacher, target, teaching = seen_by(folder / "teacher", collection)
        compared = {"teacher": target, "base": first}
        yield row(name, "base", model, first, compared, collection, took, 0.0)
        yield row(name, "teacher", teacher, target, compared, collection, teaching, cpu)
        for layers in arguments.layers:
            path = write_student(folder / "teacher", layers, folder / f"student-{layers}")
            student = opened(path)
            cpu = time.process_time()
            texts = texts_to_match(dataset, collection.corpus, arguments.seed)
            trained = train_student(
                teacher,
                student,
                texts,
                seed=arguments.seed,
                memory=plan_student(student, texts),
                on_step=lambda step: None,
                checkpoints=None,
            )
            cpu = time.process_time() - cpu
            student.save(trained.weights, folder / f"saved-{layers}")
            small, found, took = seen_by(folder / f"saved-{layers}", collection)
            yield row(name, "student", small, found, compared, collection, took, cpu)


def opened(folder: Path) -> FastBackbone:
    backbone = open_backbone(folder, 512, low_precision=True)
    assert isinstance(backbone, FastBackbone)
    return backbone


def seen_by(folder: Path, collection: Collection) -> tuple[FastBackbone, Vectors, float]:
    """The model, its view of corpus and test queries, and the CPU seconds that encoding the corpus took."""
    backbone = opened(folder)
    texts = list(collection.corpus.values())
    backbone.table.rows(texts)
    cpu = time.process_time()
    documents = backbone.encode(texts)
    cpu = time.process_time() - cpu
    queries = backbone.encode([collection.queries[query] for query in collection.test])
    return (
        backbone,
        Vectors(dict(zip(collection.test, queries, strict=True)), documents, list(collection.corpus)),
        cpu,
    )


def shown(model: FastBackbone, collection: Collection, first: Vectors) -> dict[str, list[str]]:
    """What the base model shows for the training queries."""
    queries = model.encode([collection.queries[query] for query in collection.train])
    return Vectors(
        dict(zip(collection.train, queries, strict=True)), first.documents, list(collection.corpus)
    ).rank(10)


def row(
    name: str,
    what: str,
    model: FastBackbone,
    found: Vectors,
    compared: Mapping[str, Vectors],
    collection: Collection,
    encoding: float,
    training: float,
) -> list[str]:
    qrels = {query: collection.qrels[query] for query in collection.test}
    runs = {arm: compare(vectors.rank(10), found.rank(10), qrels) for arm, vectors in compared.items()}
    gains = {arm: run.gain() for arm, run in runs.items()}
    agreement = neighbour_agreement(compared["teacher"].documents, found.documents)
    return [
        name,
        what,
        str(model.layers),
        str(len(qrels)),
        f"{runs['base'].summary()['tuned']['ndcg@10']:.4f}",
        *(
            f"{gains[arm].mean:+.3f} ({gains[arm].low:+.3f} .. {gains[arm].high:+.3f})" if arm != what else ""
            for arm in ("teacher", "base")
        ),
        f"{probe_correlation(model.encode):.3f}",
        "" if what == "teacher" else f"{agreement:.2f}",
        f"{sum(weight.nbytes for weight in model.base_weights.values()) / 1e6:.0f}",
        f"{encoding:.1f}",
        f"{training:.0f}" if training else "",
    ]


if __name__ == "__main__":
    main()
