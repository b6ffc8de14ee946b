"""A smaller student of a model: some of its layers, trained to give its vectors on the workspace's own texts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.finetune.bert import BertShape
from ragtune_mcp.core.finetune.objectives import Batch, NothingFixed

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"^encoder\.layer\.(\d+)\.")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_SENTENCE_WORDS = (4, 40)


def write_student(teacher: Path, layers: int, folder: Path) -> Path:
    """A model folder with evenly spaced layers of another, the first and the last among them.

    Args:
        teacher: a sentence-transformers folder of a BERT that the fast path knows.
        layers: how many to keep; at least 2, fewer than the teacher has.
        folder: created.

    Returns:
        The folder.

    Raises:
        InvalidInput: no such architecture, or no such number of layers.
    """
    from safetensors.torch import load_file, save_file

    kept = layers_to_keep(teacher, layers)
    shutil.copytree(teacher, folder, ignore=shutil.ignore_patterns("*.safetensors", "onnx", "ragtune.json"))
    weights: dict[str, Tensor] = {}
    for name, tensor in load_file(teacher / "model.safetensors").items():
        found = _LAYER.match(name)
        if found is None:
            weights[name] = tensor
        elif int(found[1]) in kept:
            weights[f"encoder.layer.{kept.index(int(found[1]))}.{name[found.end() :]}"] = tensor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def layers_to_keep(teacher: Path, layers: int) -> list[int]:
    """Evenly spaced layers of a model, the first and the last among them.

    Args:
        teacher: as in `write_student`.
        layers: how many.

    Returns:
        Their indices, ascending.

    Raises:
        InvalidInput: no such architecture, or no such number of layers.
    """
    shape = BertShape.of(teacher)
    if shape is None:
        raise InvalidInput(f"{teacher.name} is not a plain BERT: its layers cannot be taken apart.")
    if not 2 <= layers < shape.layers:
        raise InvalidInput(f"layers={layers} must be from 2 to {shape.layers - 1}.")
    return [int(index) for index in np.linspace(0, shape.layers - 1, layers).round()]


def sentences(documents: Iterable[str], per_document: int, seed: int) -> list[str]:
    """Up to so many sentences of each document: short texts, as queries are."""
    rng = np.random.default_rng(seed)
    low, high = _SENTENCE_WORDS
    found: list[str] = []
    for document in documents:
        own = [text for text in _SENTENCE.split(document) if low <= len(text.split()) <= high]
        picked = rng.permutation(len(own))[:per_document]
        found.extend(own[index] for index in sorted(picked.tolist()))
    return list(dict.fromkeys(found))


class Matching(NothingFixed):
    """Mean of 1 - cosine between the student's vector of a text and the teacher's.

    Args:
        texts: what to match on.
        targets: (n, dim) unit vectors of the teacher.
    """

    def __init__(self, texts: Sequence[str], targets: np.ndarray) -> None:
        self.texts = texts
        self.targets = targets

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The batch of the texts with these indices."""
        return Batch([self.texts[index] for index in indices], self.targets[list(indices)])

    def loss(self, vectors: Tensor, layout: np.ndarray) -> Tensor:
        """From the student's vectors (n, dim) and the teacher's."""
        import torch
        from torch.nn.functional import cosine_similarity

        return (1 - cosine_similarity(vectors, torch.from_numpy(layout))).mean()
