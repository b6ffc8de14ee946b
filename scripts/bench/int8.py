"""The serving encoder in 8-bit integers beside the shipped one in 32-bit floats: speed, cosine, nDCG@10.

    python scripts/bench/int8.py [--collections scrapy_docs cranfield] [--data DIR] [--rounds 5]

8-bit is onnxruntime's dynamic quantization of the same exported graph, once of one scale a tensor and once of
one scale a channel. Both run in one process and take turns, text by text and batch by batch; wall times are
medians over these turns, and the ratio is that of pairs.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_data import DATA, Collection, load_collection

from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.evaluation import rank_vectors
from ragtune_mcp.core.finetune.intervals import paired_interval
from ragtune_mcp.core.finetune.metrics import ndcg
from ragtune_mcp.core.models.encoder import OnnxEncoder
from ragtune_mcp.core.models.exporters.onnx import export_onnx
from ragtune_mcp.core.workspace import EncoderPaths, sha256_file

_BATCH = 64


def quantized(source: Path, target: Path, *, per_channel: bool) -> OnnxEncoder:
    """A copy of an export with its matrices in 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    shutil.copytree(source, target)
    paths = EncoderPaths(target)
    paths.model.unlink()
    quantize_dynamic(
        EncoderPaths(source).model,
        paths.model,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        extra_options={"DefaultTensorType": 1},
    )
    spec = json.loads(paths.config.read_text(encoding="utf-8"))
    spec["files"][paths.model.name] = sha256_file(paths.model)
    paths.config.write_text(json.dumps(spec), encoding="utf-8")
    return OnnxEncoder(target)


def timed(encoder: OnnxEncoder, texts: list[str]) -> float:
    started = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - started


def turns(encoders: dict[str, OnnxEncoder], batches: list[list[str]]) -> dict[str, list[float]]:
    """Milliseconds of each batch by each encoder, which take turns in going first."""
    found: dict[str, list[float]] = {name: [] for name in encoders}
    names = list(encoders)
    for turn, batch in enumerate(batches):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(1000 * timed(encoders[name], batch))
    return found


def qualities(data: Collection, queries: np.ndarray, documents: np.ndarray) -> list[float]:
    """nDCG@10 of each judged query."""
    ids = list(data.corpus)
    ranked = rank_vectors(queries, documents, 10)
    return [
        ndcg([ids[i] for i in order], data.qrels[query])
        for query, order in zip(data.qrels, ranked, strict=True)
    ]


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def measure_speed(
    encoders: dict[str, OnnxEncoder], sizes: dict[str, int], data: Collection, rounds: int
) -> None:
    queries = [[data.queries[query]] for query in data.qrels]
    texts = list(data.corpus.values())
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts) - _BATCH + 1, _BATCH)]
    single, many = turns(encoders, queries * rounds), turns(encoders, batches)
    line(
        "encoder",
        "file, MiB",
        "one query, ms",
        f"{_BATCH} documents, ms",
        "f32 / it, query",
        "f32 / it, documents",
    )
    line(*["---"] * 6)
    for name in encoders:
        ratios = [
            statistics.median(a / b for a, b in zip(times["f32"], times[name], strict=True))
            for times in (single, many)
        ]
        size = sizes[name] / 2**20
        line(name, f"{size:.0f}", *(f"{statistics.median(t[name]):.1f}" for t in (single, many)),
             *(f"{ratio:.2f}" for ratio in ratios))  # fmt: skip
    print(
        f"\n{len(queries) * rounds} turns of one query, {len(batches)} of {_BATCH} documents of {data.name}.\n"
    )


def measure_quality(encoders: dict[str, OnnxEncoder], data: Collection) -> None:
    texts, asked = list(data.corpus.values()), [data.queries[query] for query in data.qrels]
    documents = {name: encoder.encode(texts) for name, encoder in encoders.items()}
    queries = {name: encoder.encode(asked) for name, encoder in encoders.items()}
    base = np.array(qualities(data, queries["f32"], documents["f32"]))
    for name in encoders:
        if name == "f32":
            line(data.name, name, "1", "1", f"{base.mean():.4f}", "")
            continue
        cosines = np.sum(documents["f32"] * documents[name], axis=1)
        found = np.array(qualities(data, queries[name], documents[name]))
        gain = paired_interval(found - base)
        line(data.name, name, f"{cosines.min():.4f}", f"{cosines.mean():.4f}", f"{found.mean():.4f}",
             f"{(found - base).mean():+.4f} ({gain.low:+.4f} .. {gain.high:+.4f})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collections", nargs="+", default=["scrapy_docs", "cranfield"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    collections = [load_collection(name, options.data) for name in options.collections]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        export_onnx(resolve_base_model("all-MiniLM-L6-v2", root, allow_downloads=True).path, root / "f32")
        encoders = {
            "f32": OnnxEncoder(root / "f32"),
            "int8": quantized(root / "f32", root / "int8", per_channel=False),
            "int8 by channel": quantized(root / "f32", root / "channel", per_channel=True),
        }
        sizes = {
            name: EncoderPaths(root / place).model.stat().st_size
            for name, place in zip(encoders, ("f32", "int8", "channel"), strict=True)
        }
        measure_speed(encoders, sizes, collections[0], options.rounds)
        line("collection", "encoder", "cosine, least", "cosine, mean", "nDCG@10", "difference (95 %)")
        line(*["---"] * 6)
        for data in collections:
            measure_quality(encoders, data)
    print(f"\n{platform.machine()}, {platform.processor() or platform.system()}")


if __name__ == "__main__":
    main()
