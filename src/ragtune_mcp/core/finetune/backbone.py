"""The seam between the recipe and a model: encode texts, embed a batch for training, save.

`FastBackbone` runs BERT folders through `bert.py`; `LibraryBackbone` runs anything else through
sentence-transformers. Weights travel as a mapping from name to float32 tensor, so that interpolation,
checkpoints and evaluation are the same for both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ragtune_mcp.core.finetune.bert import BertShape, Layers, embed_tokens, pool, trainable_names
from ragtune_mcp.core.finetune.memory import ModelSize
from ragtune_mcp.core.finetune.tokens import TokenTable, length_groups

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Tick = Callable[[int], None]
# Measured on AVX-512 cores: groups this small stay in cache and are the fastest.
_ENCODE_TOKENS = 2048
_EMBED_TOKENS = 2048
_ALWAYS_UNUSED = ("pooler.", "embeddings.position_ids")


class Backbone(Protocol):
    """What the recipe, the evaluation and the gate need of a model."""

    base_weights: Mapping[str, Tensor]

    @property
    def max_tokens(self) -> int:
        """Tokens per text after which texts are cut."""
        ...

    @property
    def limit(self) -> int:
        """Tokens per text that the model was set up for."""
        ...

    @property
    def layers(self) -> int:
        """Number of encoder layers; 0 when unknown."""
        ...

    def token_count(self, texts: Sequence[str]) -> int:
        """Tokens of the distinct texts after cutting."""
        ...

    def encode(
        self, texts: Sequence[str], weights: Mapping[str, Tensor] | None = None, tick: Tick | None = None
    ) -> np.ndarray:
        """Unit vectors, (n, dim) float32, with the given weights over the base ones; `tick(tokens)` after
        each group.
        """
        ...

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write a sentence-transformers folder with the given weights over the base ones."""
        ...


def open_backbone(
    folder: Path, max_seq_length: int, *, low_precision: bool
) -> FastBackbone | LibraryBackbone:
    """The fast backbone where the model's architecture is known, else sentence-transformers' own.

    Args:
        folder: a sentence-transformers model folder.
        max_seq_length: upper bound on tokens per text; the model's own limit holds too.
        low_precision: bfloat16 products where the processor has them.

    Returns:
        The backbone.
    """
    shape = BertShape.of(folder)
    if shape is None:
        logger.info(
            "%s is not a plain BERT: using sentence-transformers' own forward pass and Trainer", folder.name
        )
        return LibraryBackbone(folder, max_seq_length, low_precision=low_precision)
    return FastBackbone(folder, shape, max_seq_length, low_precision=low_precision)


def bf16_supported() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # noqa: SLF001


class FastBackbone:
    """BERT through `bert.py`. The lowest layers can be frozen and their outputs kept per text.

    Args:
        folder: a sentence-transformers folder.
        shape: its architecture.
        max_seq_length: tokens per text; never above what the model was set up for.
        low_precision: multiply in bfloat16 where the processor can.

    Attributes:
        base_weights: name -> float32 tensor of every weight that vectors depend on.
    """

    def __init__(self, folder: Path, shape: BertShape, max_seq_length: int, *, low_precision: bool) -> None:
        import torch
        from safetensors.torch import load_file

        self._folder = folder
        self.shape = shape
        self.table = TokenTable(folder / "tokenizer.json", min(max_seq_length, shape.max_tokens))
        self.dtype = torch.bfloat16 if low_precision and bf16_supported() else torch.float32
        self.base_weights: Mapping[str, Tensor] = {
            name: tensor.float()
            for name, tensor in load_file(folder / "model.safetensors").items()
            if not name.startswith(_ALWAYS_UNUSED)
        }
        self.frozen = 0
        self._keep_bytes = 0
        self._hidden: dict[int, Tensor] = {}
        self._lower = Layers(shape, self.base_weights, self.dtype)

    @property
    def max_tokens(self) -> int:
        """Tokens per text after which texts are cut."""
        return self.table.max_tokens

    @property
    def limit(self) -> int:
        """Tokens per text that the model was set up for."""
        return self.shape.max_tokens

    @property
    def layers(self) -> int:
        """Number of encoder layers; 0 when unknown."""
        return self.shape.layers

    @property
    def kept_bytes(self) -> int:
        """Memory taken by kept activations."""
        return sum(hidden.nbytes for hidden in self._hidden.values())

    def size(self, frozen_layers: int) -> ModelSize:
        """What the memory of a run depends on, with so many layers frozen."""
        trained = trainable_names(self.shape, frozen_layers, list(self.base_weights))
        return ModelSize(
            self.shape.layers - frozen_layers,
            self.shape.width,
            self.shape.feed_forward,
            self.shape.heads,
            sum(weight.nbytes for weight in self.base_weights.values()),
            sum(self.base_weights[name].nbytes for name in trained),
        )

    def freeze(self, layers: int, keep_bytes: int) -> None:
        """Leave the lowest layers and the embeddings as they are; keep their outputs up to a memory bound.

        Args:
            layers: how many, 0 to train everything.
            keep_bytes: bound on kept outputs (tokens x width x 2 bytes in bfloat16); beyond it they are
                recomputed.
        """
        self.frozen = layers
        self._keep_bytes = keep_bytes if layers else 0
        self._hidden.clear()

    def keep(self, texts: Sequence[str], tick: Tick | None = None) -> None:
        """Compute and keep the frozen layers' outputs of these texts, while the memory bound allows;
        `tick(tokens)` after each group.
        """
        import torch

        if not self.frozen:
            return
        rows = np.unique(self.table.rows(texts))
        with torch.no_grad():
            for group in length_groups(self.table.lengths(rows), _ENCODE_TOKENS):
                if self._keep_bytes <= 0:
                    return
                self._inputs(rows[group], *self._padding(rows[group]), None)
                if tick is not None:
                    tick(int(self.table.lengths(rows[group]).sum()))

    def trainable(self) -> list[str]:
        """Names of the weights that training changes."""
        return trainable_names(self.shape, self.frozen, list(self.base_weights))

    def token_count(self, texts: Sequence[str]) -> int:
        """Tokens of the distinct texts after cutting."""
        return int(self.table.lengths(np.unique(self.table.rows(texts))).sum())

    def encode(
        self, texts: Sequence[str], weights: Mapping[str, Tensor] | None = None, tick: Tick | None = None
    ) -> np.ndarray:
        """Unit vectors, (n, dim) float32, with the given weights over the base ones."""
        import torch

        if not len(texts):
            return np.zeros((0, self.shape.width), dtype=np.float32)
        rows, back = np.unique(self.table.rows(texts), return_inverse=True)
        vectors = np.zeros((len(rows), self.shape.width), dtype=np.float32)
        with torch.no_grad():
            upper = Layers(self.shape, {**self.base_weights, **(weights or {})}, self.dtype, self.frozen)
            for group in length_groups(self.table.lengths(rows), _ENCODE_TOKENS):
                found = self._group(rows[group], upper, weights)
                vectors[group] = torch.nn.functional.normalize(found, dim=-1).numpy()
                if tick is not None:
                    tick(int(self.table.lengths(rows[group]).sum()))
        return vectors[back]

    def embed(self, rows: np.ndarray, weights: Mapping[str, Tensor]) -> Tensor:
        """Vectors with gradients.

        Args:
            rows: (n,) distinct rows of the token table.
            weights: the trainable weights; the others are the base ones.

        Returns:
            (n, dim) float32 in the order of `rows`; of unit length when the model normalises.
        """
        import torch

        upper = Layers(self.shape, {**self.base_weights, **weights}, self.dtype, self.frozen)
        groups = length_groups(self.table.lengths(rows), _EMBED_TOKENS)
        vectors = torch.cat([self._group(rows[group], upper, weights) for group in groups])
        return vectors[torch.from_numpy(np.argsort(np.concatenate(groups)))]

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write a sentence-transformers folder with the given weights over the base ones."""
        model = _open_in_library(self._folder)
        model.max_seq_length = self.max_tokens
        report = model[0].model.load_state_dict({**self.base_weights, **weights}, strict=False)
        if report.unexpected_keys:
            raise ValueError(f"weights the model does not know: {report.unexpected_keys}")
        model.save_pretrained(str(folder), safe_serialization=True)

    def _group(self, rows: np.ndarray, upper: Layers, weights: Mapping[str, Tensor] | None) -> Tensor:
        padding, longest = self._padding(rows)
        hidden = self._inputs(rows, padding, longest, weights)
        return pool(self.shape, upper(hidden, padding), padding)

    def _padding(self, rows: np.ndarray) -> tuple[Tensor | None, int]:
        """(batch, tokens) bool, True where a row has no token, None when all are full; the longest length."""
        import torch

        lengths = torch.from_numpy(self.table.lengths(rows))
        longest = int(lengths.max())
        padding = torch.arange(longest)[None] >= lengths[:, None]
        return (padding if bool(padding.any()) else None), longest

    def _inputs(
        self, rows: np.ndarray, padding: Tensor | None, longest: int, weights: Mapping[str, Tensor] | None
    ) -> Tensor:
        """What the first trained layer reads: (batch, tokens, width) in the compute dtype."""
        import torch

        if self.frozen and all(int(row) in self._hidden for row in rows):
            return torch.nn.utils.rnn.pad_sequence([self._hidden[int(row)] for row in rows], batch_first=True)
        ids = torch.zeros((len(rows), longest), dtype=torch.long)
        for position, row in enumerate(rows):
            found = self.table.ids(int(row))
            ids[position, : len(found)] = torch.from_numpy(found)
        if not self.frozen:
            return embed_tokens(self.shape, {**self.base_weights, **(weights or {})}, ids).to(self.dtype)
        with torch.no_grad():
            hidden = embed_tokens(self.shape, self.base_weights, ids).to(self.dtype)
            hidden = self._lower(hidden, padding, until=self.frozen)
            self._keep(rows, hidden)
        return hidden

    def _keep(self, rows: np.ndarray, hidden: Tensor) -> None:
        for position, row in enumerate(rows):
            length = len(self.table.ids(int(row)))
            size = length * hidden.shape[-1] * hidden.element_size()
            if int(row) not in self._hidden and size <= self._keep_bytes:
                self._hidden[int(row)] = hidden[position, :length].clone()
                self._keep_bytes -= size


class LibraryBackbone:
    """Any sentence-transformers model, through the library's own forward pass.

    Args:
        folder: a sentence-transformers folder.
        max_seq_length: tokens per text; never above what the model was set up for.
        low_precision: multiply in bfloat16 where the processor can.

    Attributes:
        model: the loaded SentenceTransformer, with the base weights outside `encode`.
        limit: tokens per text that the model was set up for.
    """

    frozen = 0

    def __init__(self, folder: Path, max_seq_length: int, *, low_precision: bool) -> None:
        self.model: Any = _open_in_library(folder)
        self.limit = int(self.model.max_seq_length or max_seq_length)
        self.model.max_seq_length = min(max_seq_length, self.limit)
        self.low_precision = low_precision and bf16_supported()
        self.base_weights: Mapping[str, Tensor] = self.weights()

    @property
    def max_tokens(self) -> int:
        """Tokens per text after which texts are cut."""
        return int(self.model.max_seq_length)

    @property
    def layers(self) -> int:
        """Number of encoder layers; 0 when unknown."""
        return 0

    def weights(self) -> dict[str, Tensor]:
        """A copy of the model's present weights."""
        return {name: tensor.detach().clone().float() for name, tensor in self.model.named_parameters()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights into the model."""
        self.model.load_state_dict(dict(weights), strict=False)

    def token_count(self, texts: Sequence[str]) -> int:
        """Tokens of the distinct texts after cutting."""
        distinct = list(dict.fromkeys(texts))
        encoded = self.model.tokenizer(distinct, truncation=True, max_length=self.max_tokens)
        return sum(len(ids) for ids in encoded["input_ids"])

    def encode(
        self, texts: Sequence[str], weights: Mapping[str, Tensor] | None = None, tick: Tick | None = None
    ) -> np.ndarray:
        """Unit vectors, (n, dim) float32, with the given weights over the base ones."""
        import torch

        distinct = list(dict.fromkeys(texts))
        place = {text: index for index, text in enumerate(distinct)}
        self.load({**self.base_weights, **(weights or {})})
        found: list[np.ndarray] = []
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.low_precision):
                for start in range(0, len(distinct), 16):
                    part = distinct[start : start + 16]
                    found.append(
                        self.model.encode(
                            part, batch_size=16, normalize_embeddings=True, show_progress_bar=False
                        )
                    )
                    if tick is not None:
                        tick(self.token_count(part))
        finally:
            self.load(self.base_weights)
        if not found:
            return np.zeros((0, self.model.get_embedding_dimension()), dtype=np.float32)
        vectors = np.concatenate(found).astype(np.float32)
        return vectors[[place[text] for text in texts]]

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write a sentence-transformers folder with the given weights over the base ones."""
        self.load({**self.base_weights, **weights})
        try:
            self.model.save_pretrained(str(folder), safe_serialization=True)
        finally:
            self.load(self.base_weights)


def _open_in_library(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
