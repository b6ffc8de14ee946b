"""Training checkpoints: one safetensors file, written whole and renamed into place."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_PATTERN = "step-*.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after a training step.

    Attributes:
        tensors: part -> name -> tensor; parts are weights, first moments, second moments and best weights.
        state: JSON-ready counters and history.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, step: int, fingerprint: str, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and drop older ones.

    Args:
        folder: created when missing.
        step: optimizer steps done.
        fingerprint: identifies data and recipe; a checkpoint of another run is never resumed.
        checkpoint: what to keep.

    Returns:
        The file.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    flat = {
        f"{part}/{name}": tensor.contiguous()
        for part, named in checkpoint.tensors.items()
        for name, tensor in named.items()
    }
    target = folder / f"step-{step:08d}.safetensors"
    partial = target.with_suffix(".partial")
    save_file(
        flat, partial, metadata={"fingerprint": fingerprint, "state": json.dumps(dict(checkpoint.state))}
    )
    os.replace(partial, target)
    for old in folder.glob(_PATTERN):
        if old != target:
            old.unlink()
    return target


def load_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest checkpoint of this run, or None.

    Args:
        folder: where `save_checkpoint` wrote.
        fingerprint: of the present data and recipe.

    Returns:
        The checkpoint; None when there is none or it belongs to other data or another recipe.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob(_PATTERN), reverse=True):
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
            if metadata["fingerprint"] != fingerprint:
                logger.warning("%s belongs to another run and is not resumed", path.name)
                continue
            tensors: dict[str, dict[str, Tensor]] = {}
            for key in handle.keys():  # noqa: SIM118 -- not a mapping
                part, name = key.split("/", 1)
                tensors.setdefault(part, {})[name] = handle.get_tensor(key)
        return Checkpoint(tensors, json.loads(metadata["state"]))
    return None
