"""Training checkpoints: one safetensors file, written whole and renamed into place.

`TrainerCheckpoints` lets such a file decide over what the library's Trainer writes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
        The checkpoint; None when there is none, or none that can be read, or it belongs to other data or
        another recipe.
    """
    from safetensors import SafetensorError

    for path in sorted(folder.glob(_PATTERN), reverse=True):
        try:
            found = _read(path, fingerprint)
        except SafetensorError as error:
            # A file cut short by the machine, not by us: ours are renamed into place when they are whole.
            logger.warning("%s is damaged and is not resumed: %s", path.name, error)
            continue
        if found is not None:
            return found
        logger.warning("%s belongs to another run and is not resumed", path.name)
    return None


def _read(path: Path, fingerprint: str) -> Checkpoint | None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
        if metadata["fingerprint"] != fingerprint:
            return None
        tensors: dict[str, dict[str, Tensor]] = {}
        for key in handle.keys():  # noqa: SIM118 -- not a mapping
            part, name = key.split("/", 1)
            tensors.setdefault(part, {})[name] = handle.get_tensor(key)
    return Checkpoint(tensors, json.loads(metadata["state"]))


class Resumable(NamedTuple):
    """A folder for the Trainer to resume from, and what was noted beside it."""

    folder: Path
    checkpoint: Checkpoint


class TrainerCheckpoints:
    """`checkpoint-STEP` folders written by the library's Trainer, each completed by a file of ours.

    That file comes last and is renamed into place. It names the run and the size of every other file: a
    folder that a kill left half written or half deleted does not count.

    Args:
        root: holds the folders.
        fingerprint: identifies data and recipe; a checkpoint of another run is never resumed.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self._root = root
        self._fingerprint = fingerprint

    def newest(self) -> Resumable | None:
        """The newest whole checkpoint of this run."""
        steps = [int(folder.name.rpartition("-")[2]) for folder in self._root.glob("checkpoint-*")]
        for step in sorted(steps, reverse=True):
            folder = self._folder(step)
            found = load_checkpoint(folder, self._fingerprint)
            if found is None:
                continue
            state = dict(found.state)
            if state.pop("files") == _sizes(folder):
                logger.info("resumed at step %d", step)
                return Resumable(folder, Checkpoint(found.tensors, state))
            logger.warning("%s is damaged and is not resumed", folder.name)
        return None

    def clear(self, step: int) -> None:
        """Make room: the Trainer would write over what another run left there, file by file."""
        if self._folder(step).exists():
            shutil.rmtree(self._folder(step))

    def complete(self, step: int, checkpoint: Checkpoint) -> None:
        """Make what the Trainer wrote count, and drop older checkpoints.

        Args:
            step: the step of the Trainer's folder.
            checkpoint: what the Trainer does not know.
        """
        folder = self._folder(step)
        state = {**checkpoint.state, "files": _sizes(folder)}
        save_checkpoint(folder, step, self._fingerprint, Checkpoint(checkpoint.tensors, state))
        for old in self._root.glob("checkpoint-*"):
            if old != folder:
                shutil.rmtree(old)

    def _folder(self, step: int) -> Path:
        return self._root / f"checkpoint-{step}"


def _sizes(folder: Path) -> dict[str, int]:
    """File -> bytes, of all but our own."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.match("step-*")
    }
