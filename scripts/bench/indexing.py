"""Indexing and searching beside a plain script that does the same work.

    python scripts/bench/indexing.py [--chunks 10000] [--queries 200] [--data DIR] [--only-searches]

The plain script is what most people write: `SentenceTransformer.encode` over all texts and one Chroma
client. Each measurement runs in a process of its own, one after the other, on the same texts: passages of
80 words cut from the corpora under DIR (default ../shared/data). Times are wall times from the start of the
work to its end, after imports and loading; CPU time and peak memory are those of the process, for ours with
those of the store. With --only-searches nothing is encoded but the queries: searching takes as long over
random vectors.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORDS, STRIDE = 80, 50
BASE, TUNED = "base", "tuned"


def passages(data: Path, n: int) -> list[str]:
    """The first n distinct passages of the corpora, taken from each in turn."""
    queues = []
    for corpus in sorted(data.glob("*/corpus.jsonl")):
        words = []
        for line in corpus.read_text(encoding="utf-8").split("\n"):
            if line:
                words += json.loads(line)["text"].split()
        queues.append([" ".join(words[i : i + WORDS]) for i in range(0, len(words), STRIDE)])
    found: dict[str, None] = {}
    for round_ in range(max(map(len, queues))):
        found |= dict.fromkeys(queue[round_] for queue in queues if round_ < len(queue))
    if len(found) < n:
        raise SystemExit(f"{data} holds {len(found)} passages; {n} are asked for.")
    return list(found)[:n]


def write_corpus(path: Path, texts: list[str]) -> None:
    rows = (json.dumps({"_id": f"p{i:05}", "title": "", "text": text}) for i, text in enumerate(texts))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def read_corpus(path: Path) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [row["_id"] for row in rows], [row["text"] for row in rows]


class Ours:
    """The project's own parts over one workspace."""

    def __init__(self, root: Path) -> None:
        from ragtune_mcp.core.database import Database
        from ragtune_mcp.core.models.pool import EncoderPool
        from ragtune_mcp.core.models.registry import Registry
        from ragtune_mcp.core.retrieval.documents import DocumentStore
        from ragtune_mcp.core.retrieval.index import VectorIndex
        from ragtune_mcp.core.retrieval.search import Searcher
        from ragtune_mcp.core.settings import Settings
        from ragtune_mcp.core.workspace import Workspace

        self.workspace = Workspace(root, Settings.load(root))
        self.workspace.prepare()
        db = Database(self.workspace.database)
        self.registry = Registry(db, self.workspace)
        self.pool = EncoderPool(self.workspace, self.registry)
        self.documents = DocumentStore(db)
        self.index = VectorIndex(self.workspace, db)
        self.searcher = Searcher(self.index, self.documents, self.pool)

    def update(self, version: str) -> dict[str, Any]:
        from ragtune_mcp.core.retrieval.reindex import plan_index, storing, update_collections

        self.pool.get(version, wait_s=120)
        started, cpu = time.perf_counter(), time.process_time() + self.store()["cpu"]
        with storing(self.workspace):
            self.documents.apply(plan_index(self.workspace, self.documents, paths=["corpus.jsonl"]))
        (report,) = update_collections(self.documents, self.index, self.pool, [version])
        return {
            "seconds": time.perf_counter() - started,
            "cpu": time.process_time() + self.store()["cpu"] - cpu,
            "encoded": report.encoded,
            "memory": peak() + self.store()["memory"],
        }

    def store(self) -> dict[str, float]:
        """CPU seconds and memory of the store's process; zeros while it does not run."""
        import psutil

        from ragtune_mcp.core.retrieval.keeper import Owner

        owner = Owner.read(self.workspace.chroma_owner)
        if owner is None or not owner.is_alive:
            return {"cpu": 0.0, "memory": 0.0}
        process = psutil.Process(owner.pid)
        times = process.cpu_times()
        return {"cpu": times.user + times.system, "memory": process.memory_info().rss / 2**20}


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(root: Path) -> dict[str, Any]:
    """Register the base model and a second version of other weights, and export both for serving."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from ragtune_mcp.core.finetune.base import resolve_base_model
    from ragtune_mcp.core.models.exporters.onnx import export_onnx

    ours = Ours(root)
    base = resolve_base_model("all-MiniLM-L6-v2", root, allow_downloads=True)
    other = root / "fine_tuned_models" / TUNED
    shutil.copytree(base.path, other)
    for weights in other.rglob("*.safetensors"):
        tensors = load_file(weights)
        noise = np.random.default_rng(0)
        save_file(
            {k: v + (noise.standard_normal(v.shape) * 1e-3).astype(v.dtype) for k, v in tensors.items()},
            weights,
            metadata={"format": "pt"},
        )
    ours.registry.register_base(BASE, base.path)
    ours.registry.register_base(TUNED, other)
    for version in (BASE, TUNED):
        export_onnx(ours.registry.get(version).path, ours.pool.folder(version))
    return {"base": str(base.path), "tuned": str(other)}


def plant(root: Path) -> dict[str, Any]:
    """Store random vectors for the corpus, in our index and in the plain script's collection."""
    import chromadb
    import numpy as np

    from ragtune_mcp.core.retrieval.reindex import plan_index

    ours = Ours(root)
    ours.documents.apply(plan_index(ours.workspace, ours.documents, paths=["corpus.jsonl"]))
    encoder = ours.pool.get(BASE, wait_s=120)
    documents = list(ours.documents.documents(ours.documents.all_texts()).values())
    vectors = np.random.default_rng(0).standard_normal((len(documents), encoder.dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    collection = ours.index.begin(BASE, encoder)
    plain = chromadb.PersistentClient(str(root / "plain")).get_or_create_collection(
        "base", embedding_function=None, metadata={"hnsw:space": "cosine"}
    )
    for start in range(0, len(documents), 1000):
        rows = slice(start, start + 1000)
        ours.index.add(collection, encoder.digest, documents[rows], vectors[rows], encoded=0, seconds=0.0)
        plain.upsert(
            ids=[d.doc_id for d in documents[rows]],
            embeddings=vectors[rows],
            documents=[d.text for d in documents[rows]],
        )
    assert ours.index.publish(collection)
    return {"documents": len(documents)}


def plain_index(root: Path, model_folder: str, name: str) -> dict[str, Any]:
    import chromadb
    from chromadb.config import Settings
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_folder, device="cpu")
    client = chromadb.PersistentClient(str(root / "plain"), settings=Settings(anonymized_telemetry=False))
    ids, texts = read_corpus(root / "corpus.jsonl")
    started, cpu = time.perf_counter(), time.process_time()
    vectors = model.encode(texts)
    collection = client.get_or_create_collection(
        name, embedding_function=None, metadata={"hnsw:space": "cosine"}
    )
    for start in range(0, len(ids), 1000):
        rows = slice(start, start + 1000)
        collection.upsert(ids=ids[rows], embeddings=vectors[rows], documents=texts[rows])
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu,
        "encoded": len(texts),
        "memory": peak(),
    }


def warm_search(root: Path, queries: list[str]) -> dict[str, Any]:
    """One query after another; bare encoding plus bare Chroma query beside `Searcher.search`, in turn."""
    from ragtune_mcp.core.retrieval.catalog import Catalog
    from ragtune_mcp.core.retrieval.keeper import Owner
    from ragtune_mcp.core.retrieval.store import connect

    ours = Ours(root)
    encoder = ours.pool.get(BASE, wait_s=120)
    owner = Owner.read(ours.workspace.chroma_owner)
    assert owner is not None
    name = Catalog(ours.index._catalog._db).find(BASE, "ready").name
    handle = connect("127.0.0.1", owner.port, ssl=False).get_collection(name, embedding_function=None)
    clock, cpu = dict[str, list[float]](bare=[], full=[]), dict[str, list[float]](bare=[], full=[])
    actions = {
        "bare": lambda query: handle.query(
            query_embeddings=encoder.encode([query]), n_results=5, include=["distances"]
        ),
        "full": lambda query: ours.searcher.search(BASE, query, 5),
    }
    for n, query in enumerate(queries):
        for name in ("bare", "full") if n % 2 else ("full", "bare"):
            started, used = time.perf_counter(), time.process_time()
            actions[name](f"{query} {name}")
            if n >= 10:
                clock[name].append(1000 * (time.perf_counter() - started))
                cpu[name].append(1000 * (time.process_time() - used))
    return {name: quantiles(values) for name, values in clock.items()} | {
        "added": statistics.median(full - bare for bare, full in zip(*clock.values(), strict=True)),
        "added_cpu": statistics.median(full - bare for bare, full in zip(*cpu.values(), strict=True)),
    }


def cold_search(root: Path) -> dict[str, Any]:
    ours = Ours(root)
    ours.pool.get(BASE, wait_s=120)
    return {"first": ours.searcher.search(BASE, "how are items stored", 5)[0].id}


def cold_plain(root: Path, model_folder: str) -> dict[str, Any]:
    import chromadb
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_folder, device="cpu")
    collection = chromadb.PersistentClient(str(root / "plain")).get_collection(
        "base", embedding_function=None
    )
    found = collection.query(query_embeddings=model.encode(["how are items stored"]), n_results=5)
    return {"first": found["ids"][0][0]}


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p95": ordered[int(0.95 * len(ordered))]}


CHILDREN = {
    "prepare": lambda root, args: prepare(root),
    "plant": lambda root, args: plant(root),
    "plain_index": lambda root, args: plain_index(root, args[0], args[1]),
    "ours": lambda root, args: Ours(root).update(args[0]),
    "warm_search": lambda root, args: warm_search(root, json.loads(Path(args[0]).read_text())),
    "cold_search": lambda root, args: cold_search(root),
    "cold_plain": lambda root, args: cold_plain(root, args[0]),
}


def child(root: Path, task: str, *args: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", task, str(root), *args]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return {"whole": time.perf_counter() - started, **answer}


def measure(root: Path, texts: list[str], queries: list[str], *, only_searches: bool) -> None:
    n = len(texts)
    models = child(root, "prepare")
    write_corpus(root / "corpus.jsonl", texts)
    if only_searches:
        child(root, "plant")
        measure_searches(root, queries, models["base"])
        return
    table("first index", n, child(root, "plain_index", models["base"], "base"), child(root, "ours", BASE))
    changed = [f"changed {text}" if i % 100 == 0 else text for i, text in enumerate(texts)]
    write_corpus(root / "corpus.jsonl", changed)
    table("1 % changed", n, child(root, "plain_index", models["base"], "base"), child(root, "ours", BASE))
    table("other model", n, child(root, "plain_index", models["tuned"], "tuned"), child(root, "ours", TUNED))
    back = child(root, "ours", BASE)
    print(f"{'switch back':<12} ours {back['seconds']:8.2f} s, {back['encoded']} encoded")
    measure_searches(root, queries, models["base"])


def measure_searches(root: Path, queries: list[str], base: str) -> None:
    from ragtune_mcp.core.retrieval.store import stop_store

    (root / "queries.json").write_text(json.dumps(queries))
    warm = child(root, "warm_search", str(root / "queries.json"))
    print(
        f"warm search  bare encode + Chroma {warm['bare']['p50']:.1f} ms (p95 {warm['bare']['p95']:.1f}), "
        f"ours {warm['full']['p50']:.1f} ms (p95 {warm['full']['p95']:.1f}), added {warm['added']:.1f} ms "
        f"(median of {len(queries) - 10} pairs; CPU time of the process {warm['added_cpu']:.1f} ms)",
        flush=True,
    )
    running = child(root, "cold_search")["whole"]
    stop_store(Ours(root).workspace)
    stopped = child(root, "cold_search")["whole"]
    plain = child(root, "cold_plain", base)["whole"]
    print(
        f"cold search  process start to first result: {running:.2f} s with the store running, "
        f"{stopped:.2f} s without, {plain:.2f} s through sentence-transformers"
    )


def table(task: str, n: int, plain: dict[str, Any], ours: dict[str, Any]) -> None:
    for name, row in (("plain", plain), ("ours", ours)):
        print(
            f"{task:<12} {name:<5} {row['seconds']:8.2f} s {n / row['seconds']:9.1f} documents/s "
            f"CPU {row['cpu']:8.2f} s {row['memory']:6.0f} MiB, {row['encoded']} encoded",
            flush=True,
        )
    wall, cpu = plain["seconds"] / ours["seconds"], plain["cpu"] / ours["cpu"]
    print(f"{task:<12} plain / ours: {wall:.1f} in wall time, {cpu:.1f} in CPU time", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _, _, task, root, *args = sys.argv
        print(json.dumps(CHILDREN[task](Path(root), args)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only-searches", action="store_true")
    options = parser.parse_args()
    from ragtune_mcp.core.retrieval.store import stop_store
    from ragtune_mcp.core.settings import Settings
    from ragtune_mcp.core.workspace import Workspace

    texts = passages(options.data, options.chunks)
    queries = [text[:70] for text in texts[: options.queries]]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        try:
            measure(root, texts, queries, only_searches=options.only_searches)
        finally:
            stop_store(Workspace(root, Settings.load(root)))


if __name__ == "__main__":
    main()
