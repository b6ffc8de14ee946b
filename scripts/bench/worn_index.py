"""What many edits do to a Chroma collection: recall, CPU time of a query and size beside a fresh copy.

    python scripts/bench/worn_index.py [--vectors 2000] [--replacements 6]

Every vector is replaced again and again as the index does it, the new one added under another id and the old one
deleted; then the worn collection and a fresh one of the same vectors answer the same queries in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ragtune_mcp.core.retrieval.chroma import _HNSW

_DIMENSION, _CLUSTERS, _BATCH, _QUERIES, _K = 384, 50, 500, 150, 13


class Source:
    """Unit vectors around a few centres, as those of texts are."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._centres = self._random.standard_normal((_CLUSTERS, _DIMENSION)).astype(np.float32)

    def draw(self, n: int) -> np.ndarray:
        found = self._random.standard_normal((n, _DIMENSION)).astype(np.float32)
        found += 2 * self._centres[self._random.integers(0, _CLUSTERS, n)]
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def mebibytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def client_of(folder: Path) -> Any:
    import chromadb
    from chromadb.config import Settings

    return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))


def collection_in(folder: Path) -> Any:
    return client_of(folder).create_collection("vectors", embedding_function=None, configuration=_HNSW)


def compare(
    worn: Any, fresh: Any, queries: np.ndarray, ids: list[str], vectors: np.ndarray
) -> tuple[float, float]:
    """Recall@10 of the worn collection, and the median of worn / fresh in CPU time."""
    ratios, found = [], []
    for turn, query in enumerate(queries):
        times = {}
        for collection in (worn, fresh) if turn % 2 else (fresh, worn):
            started = time.process_time()
            answer = collection.query(query_embeddings=query[None], n_results=_K, include=["distances"])
            times[id(collection)] = time.process_time() - started
            if collection is worn:
                best = {ids[i] for i in np.argsort(-(vectors @ query))[:10]}
                found.append(len(best & set(answer["ids"][0][:10])) / 10)
        ratios.append(times[id(worn)] / times[id(fresh)])
    return float(np.mean(found)), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=2000)
    parser.add_argument("--replacements", type=int, default=6)
    options = parser.parse_args()
    source, n = Source(), options.vectors
    with tempfile.TemporaryDirectory() as root:
        worn = collection_in(Path(root) / "worn")
        vectors, ids = source.draw(n), [f"{i}@0" for i in range(n)]
        worn.add(ids=ids, embeddings=vectors)
        print(
            "| replaced | recall@10 | CPU time of a query, worn / fresh | MiB, worn | MiB, fresh |\n|---|---|---|---|---|"
        )
        for round_ in range(1, options.replacements + 1):
            for start in range(0, n, _BATCH):
                rows = slice(start, min(start + _BATCH, n))
                vectors[rows] = source.draw(rows.stop - start)
                old, ids[rows] = ids[rows], [f"{i}@{round_}" for i in range(start, rows.stop)]
                worn.add(ids=ids[rows], embeddings=vectors[rows])
                worn.delete(ids=old)
            folder = Path(root) / f"fresh{round_}"
            fresh = collection_in(folder)
            fresh.add(ids=ids, embeddings=vectors)
            recall, ratio = compare(worn, fresh, source.draw(_QUERIES), ids, vectors)
            sizes = mebibytes(Path(root) / "worn"), mebibytes(folder)
            print(
                f"| {round_} times | {recall:.3f} | {ratio:.2f} | {sizes[0]:.0f} | {sizes[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
