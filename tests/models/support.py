"""Model folders and encoders small enough to be made in every test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ragtune_mcp.core.models.files import write_json
from ragtune_mcp.core.workspace import EncoderPaths, sha256_file

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"how do i roll back a deployment index search rating model".split(),
)
DIMENSION = 8


def make_model(folder: Path, weights: bytes = b"weights", **files: str) -> Path:
    """A folder that looks like a saved sentence-transformers model; `files` are added or replaced."""
    texts = {
        "config.json": json.dumps({"max_position_embeddings": 512}),
        "modules.json": json.dumps(chain()),
        "1_Pooling/config.json": json.dumps({"embedding_dimension": DIMENSION, "pooling_mode": "mean"}),
        "tokenizer_config.json": json.dumps({"model_max_length": 256}),
        "tokenizer.json": "{}",
        **files,
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def chain(*types: str, old: bool = False) -> list[dict[str, object]]:
    """The contents of modules.json, in the spelling of either generation."""
    types = types or ("Transformer", "Pooling", "Normalize")
    home = "sentence_transformers.models" if old else "sentence_transformers.base.modules.x"
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"{home}.{kind}"}
        for i, kind in enumerate(types)
    ]


def make_encoder(
    folder: Path, digest: str, *, normalize: bool = True, max_tokens: int = 16, seed: int = 0
) -> EncoderPaths:
    """A serving encoder: the mean of one random vector per word."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    paths = EncoderPaths(folder)
    folder.mkdir(parents=True)
    table = np.random.default_rng(seed).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["flat"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flat", "last"], ["mask"]),
        helper.make_node("Mul", ["tokens", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("LpNormalization", ["mean"], ["vector"], axis=1)
        if normalize
        else helper.make_node("Identity", ["mean"], ["vector"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", DIMENSION])
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "middle"),
    ]
    graph = helper.make_graph(nodes, "words", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, str(paths.model))
    _write_tokenizer(paths.tokenizer)
    probe = "how do i roll back a deployment"
    write_json(
        paths.config,
        {
            "digest": digest,
            "dimension": DIMENSION,
            "max_tokens": max_tokens,
            "pooling": "mean",
            "normalize": normalize,
            "files": {path.name: sha256_file(path) for path in (paths.model, paths.tokenizer)},
            "parity": {},
            "probes": [{"text": probe, "vector": [float(x) for x in expected(probe, seed)]}],
        },
    )
    return paths


def expected(text: str, seed: int = 0, max_tokens: int = 16) -> np.ndarray:
    """The unit vector `make_encoder`'s encoder gives to a text, computed another way."""
    table = np.random.default_rng(seed).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)
    ids = [WORDS.index(w) if w in WORDS else 1 for w in re.findall(r"\w+|[^\w\s]+", text)][: max_tokens - 2]
    mean = table[[2, *ids, 3]].mean(axis=0)
    return mean / np.linalg.norm(mean)


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As in the packaged MiniLM: the file's own settings are not the model's.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(path))
