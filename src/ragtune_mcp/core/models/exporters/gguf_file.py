"""Writing a BERT sentence encoder as a GGUF file, and reading it back.

The keys are those llama.cpp and Ollama read for the architecture `bert`. `bert.pooling_type` is how Ollama
knows an embedding model; without the two normalizer keys cased models were lower-cased.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ragtune_mcp.core.errors import ExportMismatch
from ragtune_mcp.core.models.exporters.bert import BertSource, TokenKind, read_tensors, unsupported

Quantization = Literal["f16", "q8_0", "f32"]
Tensors = dict[str, npt.NDArray[np.float32]]

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7}
_POOLING_TYPES = {"mean": 1, "cls": 2}
_TOKEN_TYPES: dict[TokenKind, int] = {"normal": 1, "control": 3, "user_defined": 4, "unused": 5}
_QUANTIZATION_VERSION = 2
# Positions and token types are added to every token; they stay exact.
_EXACT = ("position_embd.weight", "token_types.weight")
_BLOCK = 32
_LARGEST_F16 = 65504.0
# Three embeddings and a norm; each layer's 4 projections, 2 dense layers and 2 norms, all with a bias.
_TENSORS_OUTSIDE = 5
_TENSORS_PER_LAYER = 16


def write_gguf(source: BertSource, folder: Path, path: Path, name: str, quantization: Quantization) -> None:
    """Write a model as one GGUF file; the same model gives the same bytes.

    Args:
        source: the model, as `read_bert` found it.
        folder: its folder.
        path: the file to write.
        name: the model's name in the file.
        quantization: of the weight matrices: f32, f16, or q8_0 (blocks of 32 with one scale).

    Raises:
        InvalidInput: a tensor is missing, unknown, or too large for f16 (code "unsupported_model").
    """
    import gguf

    tensors = _mapped(source, folder)
    writer = gguf.GGUFWriter(path, "bert")
    _add_model_keys(writer, source, name, quantization)
    _add_tokenizer_keys(writer, source)
    for tensor_name, values in tensors.items():
        kind = _kind(tensor_name, values, quantization)
        if kind == "f16" and np.abs(values).max() > _LARGEST_F16:
            raise unsupported(
                folder, f"{tensor_name} holds values above {_LARGEST_F16:.0f}", "Export it as f32."
            )
        type_ = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor(tensor_name, gguf.quants.quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The keys of a GGUF file, and its tensors as float32 under their names in the file."""
    import gguf

    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # A copy: the reader's arrays are views of the file.
        tensors[str(tensor.name)] = np.array(values, dtype=np.float32).reshape(shape)
    return keys, tensors


def expected_keys(source: BertSource) -> dict[str, Any]:
    """The keys that decide how texts become vectors, as they must stand in the file."""
    config = source.config
    special = source.special_ids
    return {
        "general.architecture": "bert",
        "bert.block_count": source.layers,
        "bert.context_length": int(config["max_position_embeddings"]),
        "bert.embedding_length": int(config["hidden_size"]),
        "bert.feed_forward_length": int(config["intermediate_size"]),
        "bert.attention.head_count": int(config["num_attention_heads"]),
        "bert.attention.layer_norm_epsilon": float(np.float32(config["layer_norm_eps"])),
        "bert.attention.causal": False,
        "bert.pooling_type": _POOLING_TYPES[source.layout.pooling],
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type_count": int(config["type_vocab_size"]),
        "tokenizer.ggml.tokens": [token.text for token in source.tokens],
        "tokenizer.ggml.token_type": [_TOKEN_TYPES[token.kind] for token in source.tokens],
        "tokenizer.ggml.unknown_token_id": special["unk"],
        # Spelled so in the format.
        "tokenizer.ggml.seperator_token_id": special["sep"],
        "tokenizer.ggml.padding_token_id": special["pad"],
        "tokenizer.ggml.mask_token_id": special["mask"],
        "tokenizer.ggml.cls_token_id": special["cls"],
        "tokenizer.ggml.bos_token_id": special["cls"],
        "tokenizer.ggml.eos_token_id": special["sep"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.normalizer.lowercase": source.lowercase,
        "tokenizer.ggml.normalizer.strip_accents": source.strip_accents,
    }


def require_keys(source: BertSource, found: dict[str, Any]) -> None:
    """Compare a file's keys with the model's, one by one.

    Args:
        source: the model's description.
        found: key -> value of the file.

    Raises:
        ExportMismatch: one is missing or differs; the message names it.
    """
    for key, expected in expected_keys(source).items():
        if found.get(key) != expected:
            shown = "a different list" if isinstance(expected, list) else repr(found.get(key))
            raise ExportMismatch(f"The GGUF file has {shown} for {key}; the model says otherwise.")


def tensor_names(source: BertSource) -> dict[str, str]:
    """Name in the model -> name in the file, for every tensor of the encoder."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, source.layers)
    parts = [
        "embeddings.word_embeddings",
        "embeddings.position_embeddings",
        "embeddings.token_type_embeddings",
    ]
    tensors = [f"{part}.weight" for part in parts]
    with_bias = ["embeddings.LayerNorm"]
    for layer in range(source.layers):
        block = f"encoder.layer.{layer}"
        with_bias += [f"{block}.attention.self.{part}" for part in ("query", "key", "value")]
        with_bias += [f"{block}.attention.output.{part}" for part in ("dense", "LayerNorm")]
        with_bias += [f"{block}.intermediate.dense", f"{block}.output.dense", f"{block}.output.LayerNorm"]
    tensors += [f"{part}.{kind}" for part in with_bias for kind in ("weight", "bias")]
    return {tensor: str(names.get_name(tensor, try_suffixes=(".weight", ".bias"))) for tensor in tensors}


def _mapped(source: BertSource, folder: Path) -> Tensors:
    """The model's tensors under their names in the file, in the file's order."""
    names = tensor_names(source)
    found = dict(read_tensors(source, folder))
    unknown = sorted(found.keys() - names.keys())
    missing = sorted(names.keys() - found.keys())
    if unknown or missing or len(names) != _TENSORS_OUTSIDE + _TENSORS_PER_LAYER * source.layers:
        raise unsupported(folder, f"its tensors are not BERT's: unknown {unknown[:3]}, missing {missing[:3]}")
    rows, width = found["embeddings.word_embeddings.weight"].shape
    if (rows, width) != (len(source.tokens), source.config["hidden_size"]):
        raise unsupported(folder, f"its word embeddings are {rows} x {width}, not as config.json says")
    return {names[name]: found[name] for name in names}


def _kind(name: str, values: npt.NDArray[np.float32], quantization: Quantization) -> Quantization:
    if values.ndim == 1 or name in _EXACT:
        return "f32"
    if quantization == "q8_0" and values.shape[-1] % _BLOCK:
        return "f16"
    return quantization


def _add_model_keys(writer: Any, source: BertSource, name: str, quantization: Quantization) -> None:
    expected = expected_keys(source)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[quantization])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_block_count(expected["bert.block_count"])
    writer.add_context_length(expected["bert.context_length"])
    writer.add_embedding_length(expected["bert.embedding_length"])
    writer.add_feed_forward_length(expected["bert.feed_forward_length"])
    writer.add_head_count(expected["bert.attention.head_count"])
    writer.add_layer_norm_eps(expected["bert.attention.layer_norm_epsilon"])
    writer.add_causal_attention(False)
    writer.add_uint32("bert.pooling_type", expected["bert.pooling_type"])
    writer.add_bool("bert.normalize_embeddings", source.layout.normalize)


def _add_tokenizer_keys(writer: Any, source: BertSource) -> None:
    for key, value in expected_keys(source).items():
        if not key.startswith("tokenizer."):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
