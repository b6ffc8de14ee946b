"""What static embeddings distilled by model2vec lose against the model they are made of.

    pip install --no-deps model2vec "skeletoken<0.7"
    python scripts/bench/static_embeddings.py [--data DIR] [--only COLLECTION ...]

Test queries of each collection against its whole corpus; encoding in CPU seconds over the corpus on one thread,
tokenising included. model2vec is no dependency of the project, which is why this needs it installed by hand.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_data import DATA, ROOT, Collection, load_collection

from ragtune_mcp.core.finetune.backbone import open_backbone
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.evaluation import Vectors, compare

COLLECTIONS = ("scrapy_docs", "peps", "cranfield")
DIMENSIONS = 256


def main() -> None:
    import torch
    from model2vec.distill import distill

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", choices=COLLECTIONS, default=list(COLLECTIONS))
    arguments = parser.parse_args()
    base = resolve_base_model("all-MiniLM-L6-v2", ROOT, False)
    static = distill(str(base.path), pca_dims=DIMENSIONS)

    def by_table(texts: list[str]) -> np.ndarray:
        vectors = np.asarray(static.encode(texts), dtype=np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    print("| collection | test queries | base nDCG@10 | static | difference | encoding, s (CPU) | static |")
    print("|" + "---|" * 7)
    for name in arguments.only:
        collection = load_collection(name, arguments.data)
        model = open_backbone(base.path, 512, low_precision=True)
        before, first = seen_by(model.encode, collection)
        after, second = seen_by(by_table, collection)
        qrels = {query: collection.qrels[query] for query in collection.test}
        compared = compare(before.rank(10), after.rank(10), qrels)
        found, gain = compared.summary(), compared.gain()
        print(
            f"| {name} | {len(qrels)} | {found['base']['ndcg@10']:.4f} | {found['tuned']['ndcg@10']:.4f} "
            f"| {gain.mean:+.3f} ({gain.low:+.3f} .. {gain.high:+.3f}) | {first:.1f} | {second:.1f} |",
            flush=True,
        )


def seen_by(encode: Callable[[list[str]], np.ndarray], collection: Collection) -> tuple[Vectors, float]:
    """A model's view of corpus and test queries, and the CPU seconds that it took."""
    cpu = time.process_time()
    documents = encode(list(collection.corpus.values()))
    queries = encode([collection.queries[query] for query in collection.test])
    cpu = time.process_time() - cpu
    return Vectors(dict(zip(collection.test, queries, strict=True)), documents, list(collection.corpus)), cpu


if __name__ == "__main__":
    main()
