"""Texts to vectors without torch: the ONNX form of a registered model, for whoever answers searches."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ragtune_mcp.core.errors import DigestMismatch
from ragtune_mcp.core.models.layout import PoolingMode
from ragtune_mcp.core.workspace import EncoderPaths, sha256_file

Vectors = NDArray[np.float32]

# Measured best per core between 256 and 16,384: the intermediate results of a small batch stay in the cache.
_TOKENS_PER_BATCH = 512
# The fused kernel takes an eighth longer than addition and normalisation one after the other.
_SLOWER_FUSED = ("SkipLayerNormFusion",)
_TEXTS_PER_ROUND = 2048


class Encoder(Protocol):
    """Turns texts into vectors of one model."""

    @property
    def digest(self) -> str:
        """The digest of the model version whose vectors these are."""
        ...

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        ...

    @property
    def max_tokens(self) -> int:
        """The window: what stands beyond it does not count."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(n, dim) float32, rows of unit length, in the order of the texts."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What a serving encoder is, as `encoder.json` says; `files` holds the sha256 of the others."""

    digest: str
    dimension: int
    max_tokens: int
    pooling: PoolingMode
    normalize: bool
    files: dict[str, str]
    parity: dict[str, Any]
    probes: list[dict[str, Any]]


def read_spec(paths: EncoderPaths) -> EncoderSpec:
    """What an export is, once its files are found to be those it wrote; DigestMismatch where they are not."""
    hint = "Call index_documents, which exports it again."
    try:
        spec = EncoderSpec(**json.loads(paths.config.read_text(encoding="utf-8")))
        changed = [p.name for p in (paths.model, paths.tokenizer) if spec.files.get(p.name) != sha256_file(p)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DigestMismatch(
            f"The serving encoder in {paths.folder} is damaged or incomplete: {error}.", hint=hint
        ) from error
    if changed:
        raise DigestMismatch(
            f"{', '.join(changed)} of the serving encoder {spec.digest[:12]} was changed after its export.",
            hint=hint,
        )
    return spec


class OnnxEncoder:
    """An exported model, loaded; safe to use from several threads.

    Attributes:
        spec: what it is.
    """

    def __init__(self, folder: Path) -> None:
        """Load and verify an export.

        Args:
            folder: as `export_onnx` wrote it.

        Raises:
            DigestMismatch: a file is missing or not what the export wrote.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        paths = EncoderPaths(folder)
        self.spec = read_spec(paths)
        # The file carries a truncation and a padding of its own, which are not those of the model.
        self._tokenizer = Tokenizer.from_file(str(paths.tokenizer))
        self._tokenizer.enable_truncation(self.spec.max_tokens)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        # One thread per call and several calls at once: batches need not wait for each other's slowest part.
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(paths.model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(_SLOWER_FUSED),
        )

    @property
    def digest(self) -> str:
        """The digest of the model version whose vectors these are."""
        return self.spec.digest

    @property
    def dimension(self) -> int:
        """Of the vectors."""
        return self.spec.dimension

    @property
    def max_tokens(self) -> int:
        """The window, special tokens included."""
        return self.spec.max_tokens

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Encode texts, longest first in batches of about equal work; equal texts only once.

        Args:
            texts: any strings; what is not valid Unicode is replaced.

        Returns:
            (n, dim) float32, rows of unit length, in the order of the texts.
        """
        if len(texts) == 1:
            return self._run(self._tokenize(texts))
        position = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        distinct = list(position)
        vectors = np.empty((len(distinct), self.dimension), dtype=np.float32)
        with ThreadPoolExecutor(_cores(), thread_name_prefix="encode") as pool:
            for start in range(0, len(distinct), _TEXTS_PER_ROUND):
                rows = self._tokenize(distinct[start : start + _TEXTS_PER_ROUND])
                batches = _batches([len(row) for row in rows])
                done = pool.map(lambda batch: self._run([rows[i] for i in batch]), batches)  # noqa: B023
                for batch, result in zip(batches, done, strict=True):
                    vectors[[start + i for i in batch]] = result
        return vectors[[position[text] for text in texts]]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(clean)]

    def _run(self, rows: Sequence[Sequence[int]]) -> Vectors:
        width = max(len(row) for row in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        vectors: Vectors = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        if self.spec.normalize:
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows of similar length, longest first, at most `_TOKENS_PER_BATCH` padded tokens each."""
    batches: list[list[int]] = []
    width = 0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > _TOKENS_PER_BATCH:
            batches.append([])
            width = lengths[place]
        batches[-1].append(place)
    return batches


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
