"""How much memory a run takes, and what gives way when there is less.

Two things can shrink without changing the result beyond rounding: outputs of frozen layers that are kept (they
are recomputed instead), and the tokens embedded with gradients at once (a batch then goes in parts that add up
to the same gradient).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from ragtune_mcp.core.errors import NotEnoughMemory

if TYPE_CHECKING:
    from ragtune_mcp.core.finetune.backbone import FastBackbone

_GIB = 1 << 30
# Interpreter, torch, sentence-transformers and their code, measured.
_PROCESS_BYTES = 700 << 20
_MIN_PART_TOKENS = 1024
_COMFORT_PART_BYTES = _GIB
_COMFORT_KEPT_BYTES = _GIB
# Limit, use and droppable file cache of a control group, in both versions of the kernel's interface
# (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
_GROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What memory depends on: layers that train, their width, feed-forward width and heads, all weights in
    bytes.
    """

    trained_layers: int
    width: int
    feed_forward: int
    heads: int
    weight_bytes: int
    trained_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bounds for one run, in bytes and tokens.

    Attributes:
        kept_bytes: bound on kept outputs of frozen layers.
        part_tokens: tokens embedded with gradients at once.
        peak_bytes: expected peak of the whole process.
    """

    kept_bytes: int
    part_tokens: int
    peak_bytes: int

    @property
    def gib(self) -> float:
        """The peak in GiB, to show."""
        return round(self.peak_bytes / _GIB, 2)

    def to_dict(self) -> dict[str, int]:
        """JSON-ready fields."""
        return asdict(self)


def free_memory(own: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes this process may still take: what the machine has free, or less where a container bounds it.

    Args:
        own: names the control groups of this process, where the system has them.
        mount: their folder.

    Returns:
        Bytes; 0 when a container is full.
    """
    return min([int(psutil.virtual_memory().available), *_room_in_groups(own, mount)])


def _room_in_groups(own: Path, mount: Path) -> Iterator[int]:
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for _, controller, path in (line.split(":", 2) for line in lines):
        for name, limit, use, cache in _GROUP_FILES:
            if name not in controller.split(","):
                continue
            top = mount / name
            group = top / path.lstrip("/")
            # A group is bound by those above it; inside a container its own may be the only one to be seen.
            for folder in (group, *group.parents):
                room = _room(folder / limit, folder / use, folder / "memory.stat", cache)
                if room is not None:
                    yield room
                if folder == top:
                    break


def _room(limit: Path, use: Path, stat: Path, cache: str) -> int | None:
    """None where there is no bound, or no such group any more."""
    try:
        most, used = limit.read_text(encoding="utf-8").strip(), use.read_text(encoding="utf-8")
    except OSError:
        return None
    if most == "max":
        return None
    # Sandboxes that imitate the interface have no such statistics.
    lines = stat.read_text(encoding="utf-8").splitlines() if stat.is_file() else []
    droppable = int(dict(line.split() for line in lines).get(cache, 0))
    return max(0, int(most) - int(used) + droppable)


def activation_bytes(size: ModelSize, tokens: int, item_bytes: int) -> int:
    """Bytes that the backward pass needs per token, for texts of this many tokens.

    Args:
        size: of the model.
        tokens: tokens per text; attention keeps a probability for each pair of tokens and head.
        item_bytes: 2 in bfloat16, 4 in float32.

    Returns:
        Bytes per token over all trained layers.
    """
    per_layer = 12 * size.width + 2 * size.feed_forward + 2 * size.heads * tokens
    return size.trained_layers * per_layer * item_bytes


def plan_run(
    backbone: FastBackbone,
    frozen_layers: int,
    batch_size: int,
    tasks: Sequence[Sequence[Sequence[str]]],
    corpus: Sequence[str],
) -> MemoryPlan:
    """The plan of a training run.

    Args:
        backbone: the model.
        frozen_layers: lowest layers that stay as they are.
        batch_size: examples of a step, of each task.
        tasks: the texts of each example that a step embeds with gradients, by task.
        corpus: every document of the index.

    Returns:
        The plan.

    Raises:
        NotEnoughMemory: not even the smallest plan fits.
    """
    tokens = backbone.token_count(corpus)
    training = backbone.token_count([text for rows in tasks for row in rows for text in row])
    width, item_bytes = backbone.shape.width, backbone.dtype.itemsize
    return plan_memory(
        backbone.size(frozen_layers),
        text_tokens=backbone.max_tokens,
        batch_tokens=sum(_large_batch(backbone, rows, batch_size) for rows in tasks),
        kept_bytes=(tokens + training) * width * item_bytes if frozen_layers else 0,
        # Of both models, each once by text and once in the order of the corpus; and the token ids.
        vector_bytes=4 * len(corpus) * width * 4 + 8 * tokens,
        item_bytes=item_bytes,
        available=free_memory(),
    )


def _large_batch(backbone: FastBackbone, rows: Sequence[Sequence[str]], size: int) -> int:
    """Tokens that hardly a random batch exceeds: three standard deviations above the mean."""
    lengths = np.array([backbone.table.lengths(backbone.table.rows(row)).sum() for row in rows])
    size = min(size, len(lengths))
    return round(size * float(lengths.mean()) + 3 * float(np.sqrt(size) * lengths.std()))


def plan_memory(
    size: ModelSize,
    *,
    text_tokens: int,
    batch_tokens: int,
    kept_bytes: int,
    vector_bytes: int,
    item_bytes: int,
    available: int,
) -> MemoryPlan:
    """Decide the bounds of a run before it starts.

    Args:
        size: of the model.
        text_tokens: tokens of the longest text.
        batch_tokens: tokens of a large batch.
        kept_bytes: what keeping every output of the frozen layers would take.
        vector_bytes: vectors of the corpus under both models.
        item_bytes: 2 in bfloat16, 4 in float32.
        available: free memory in bytes.

    Returns:
        The plan.

    Raises:
        NotEnoughMemory: not even the smallest plan fits.
    """
    # Weights once in float32 and once in the compute type; for trained ones gradient, two moments and the
    # best copy.
    fixed = _PROCESS_BYTES + 2 * size.weight_bytes + 5 * size.trained_bytes + vector_bytes
    per_token = activation_bytes(size, text_tokens, item_bytes)
    part = max(_MIN_PART_TOKENS, min(batch_tokens, _COMFORT_PART_BYTES // per_token))
    kept = min(kept_bytes, _COMFORT_KEPT_BYTES)
    while fixed + part * per_token + kept > available and part > _MIN_PART_TOKENS:
        part = max(_MIN_PART_TOKENS, part // 2)
    kept = max(0, min(kept, available - fixed - part * per_token))
    peak = fixed + part * per_token + kept
    if peak > available:
        raise NotEnoughMemory(
            f"Training needs about {peak / _GIB:.1f} GiB of memory; {available / _GIB:.1f} GiB are free.",
            hint="Close other programs and start the same again; a fine-tuning also takes less with a lower "
            "max_seq_length.",
        )
    return MemoryPlan(kept, part, peak)
