"""The ONNX graph of a tuned model from that of its base: the same graph, other weights.

Tracing a graph takes some twenty seconds on two cores, exchanging weights takes one. Fine-tuning changes
weights only, and the export keeps each of them as a constant, as it is or transposed. So the constants that equal
the base model's weights, byte by byte, are exchanged; where that is not certain the graph is traced anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ragtune_mcp.core.models.layout import ModelLayout, read_layout

# Of no influence on vectors, so the export leaves them out.
_UNUSED = ("pooler.", "embeddings.position_ids")
_BOOKKEEPING = (
    "_name_or_path",
    "dtype",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


def graft_weights(base: Path, base_graph: Path, model: Path, target: Path) -> bool:
    """Write `target`: `base_graph` with the weights of `model`.

    Args:
        base: the model folder that `base_graph` was exported from.
        base_graph: its ONNX file.
        model: a model folder of the same architecture.
        target: the ONNX file to write.

    Returns:
        False, with nothing written, where the two models differ in more than weights, or a weight's place in
        the graph cannot be told.
    """
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import load_file

    left, right = read_layout(base), read_layout(model)
    weights = [layout.transformer / "model.safetensors" for layout in (left, right)]
    if _shape(left) != _shape(right) or not all(path.is_file() for path in weights):
        return False  # of another shape, or with its weights in several files
    old, new = (
        {
            name: tensor.float().numpy()
            for name, tensor in load_file(path).items()
            if not name.startswith(_UNUSED)
        }
        for path in weights
    )
    if {name: tensor.shape for name, tensor in old.items()} != {name: t.shape for name, t in new.items()}:
        return False
    names: dict[tuple[tuple[int, ...], bytes], list[tuple[str, bool]]] = {}
    for name, tensor in old.items():
        forms = [(tensor, False), (tensor.T, True)] if tensor.ndim == 2 else [(tensor, False)]
        for form, transposed in forms:
            names.setdefault((form.shape, form.tobytes()), []).append((name, transposed))
    graph = onnx.load(str(base_graph))
    placed: set[str] = set()
    for constant in graph.graph.initializer:
        value = numpy_helper.to_array(constant)
        found = names.get((value.shape, value.tobytes()), [])
        values = {(new[name].T if transposed else new[name]).tobytes() for name, transposed in found}
        if len(values) > 1:
            return False  # weights that were equal in the base model and no longer are
        placed.update(name for name, _ in found)
        if values:
            constant.CopyFrom(
                numpy_helper.from_array(
                    np.frombuffer(values.pop(), dtype=np.float32).reshape(value.shape), constant.name
                )
            )
    if placed != set(old):
        return False
    onnx.save(graph, str(target))
    return True


def _shape(layout: ModelLayout) -> tuple[Any, ...]:
    config = json.loads((layout.transformer / "config.json").read_text(encoding="utf-8"))
    # A field that is off and one that an older transformers did not write yet mean the same.
    decisive = {name: value for name, value in config.items() if name not in _BOOKKEEPING and value}
    return decisive, layout.pooling, layout.normalize, layout.max_tokens, layout.prompt
