"""A forward pass over BERT weights that wastes nothing: no padding to the batch maximum, one fused projection
for query, key and value, bfloat16 products with float32 gradients of the weights, lower layers optionally
skipped.

The arithmetic is that of transformers' `BertModel` without dropout followed by pooling; tests compare vectors
and gradients with sentence-transformers. At head size 32 a plain batched product is faster on CPU than fused
attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Weights = Mapping[str, Tensor]

_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_TYPES = "embeddings.token_type_embeddings.weight"
_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class BertShape:
    """What the forward pass must know of a BERT model folder.

    Attributes:
        pooling: "mean" over tokens or "cls".
        normalize: whether vectors are scaled to unit length.
        max_tokens: token limit the model was set up for.
    """

    layers: int
    heads: int
    width: int
    feed_forward: int
    epsilon: float
    pooling: str
    normalize: bool
    max_tokens: int

    @classmethod
    def of(cls, folder: Path) -> BertShape | None:
        """Read a sentence-transformers folder; None when it is not a plain BERT with mean or CLS pooling."""
        modules = _json(folder / "modules.json")
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            return None
        if modules[0]["path"] or not (folder / "tokenizer.json").is_file():
            return None
        config = _json(folder / "config.json")
        supported = (
            config.get("model_type") == "bert"
            and config.get("hidden_act") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder", False)
        )
        pooling = _pooling(_json(folder / modules[1]["path"] / "config.json"))
        general = _json(folder / "config_sentence_transformers.json")
        module = _json(folder / "sentence_bert_config.json")
        if (
            not supported
            or pooling is None
            or general.get("default_prompt_name")
            or module.get("do_lower_case")
        ):
            return None
        limits = [
            module.get("max_seq_length"),
            _json(folder / "tokenizer_config.json").get("model_max_length")
            if "max_seq_length" not in module
            else None,
            config["max_position_embeddings"],
        ]
        return cls(
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            width=config["hidden_size"],
            feed_forward=config["intermediate_size"],
            epsilon=config["layer_norm_eps"],
            pooling=pooling,
            normalize=len(kinds) == 3,
            max_tokens=int(min(limit for limit in limits if limit)),
        )


def trainable_names(shape: BertShape, frozen_layers: int, names: list[str]) -> list[str]:
    """Weights that training changes: all layers above the frozen ones; embeddings only when nothing is
    frozen.
    """
    layers = tuple(f"encoder.layer.{index}." for index in range(frozen_layers, shape.layers))
    return [
        name
        for name in names
        if name.startswith(layers) or (frozen_layers == 0 and name.startswith("embeddings."))
    ]


class Layers:
    """The encoder layers of one set of weights, cast once; `start` layers at the bottom are left out."""

    def __init__(self, shape: BertShape, weights: Weights, dtype: torch.dtype, start: int = 0) -> None:
        self.shape = shape
        self.start = start
        self._layers = [_Layer(shape, weights, index, dtype) for index in range(start, shape.layers)]

    def __call__(self, hidden: Tensor, padding: Tensor | None, until: int | None = None) -> Tensor:
        """Apply the layers from `start` up to but without `until`.

        Args:
            hidden: (batch, tokens, width).
            padding: (batch, tokens) bool, True where there is no token; None when every row is full.
            until: index of the first layer not applied; None for all.

        Returns:
            (batch, tokens, width).
        """
        import torch

        bias = None
        if padding is not None:
            bias = torch.zeros(padding.shape, dtype=hidden.dtype).masked_fill_(
                padding, torch.finfo(hidden.dtype).min
            )
            bias = bias[:, None, None, :]
        stop = None if until is None else until - self.start
        for layer in self._layers[:stop]:
            hidden = layer(hidden, bias)
        return hidden


def embed_tokens(shape: BertShape, weights: Weights, ids: Tensor) -> Tensor:
    """Input embeddings, (batch, tokens, width) float32, for token ids (batch, tokens)."""
    from torch.nn.functional import embedding, layer_norm

    summed = embedding(ids, weights[_WORDS]) + weights[_POSITIONS][: ids.shape[1]] + weights[_TYPES][0]
    return layer_norm(
        summed,
        (shape.width,),
        weights["embeddings.LayerNorm.weight"],
        weights["embeddings.LayerNorm.bias"],
        shape.epsilon,
    )


def pool(shape: BertShape, hidden: Tensor, padding: Tensor | None) -> Tensor:
    """Sentence vectors, (batch, width) float32; of unit length when the model normalises."""
    from torch.nn.functional import normalize

    hidden = hidden.float()
    if shape.pooling == "cls":
        vectors = hidden[:, 0]
    elif padding is None:
        vectors = hidden.mean(1)
    else:
        kept = (~padding).to(hidden.dtype)
        vectors = (hidden * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
    return normalize(vectors, dim=-1) if shape.normalize else vectors


class _Layer:
    def __init__(self, shape: BertShape, weights: Weights, index: int, dtype: torch.dtype) -> None:
        import torch

        prefix = f"encoder.layer.{index}."
        attention = f"{prefix}attention.self."
        self._shape = shape
        self._project = _Linear(
            torch.cat([weights[f"{attention}{name}.weight"] for name in _PROJECTIONS]),
            torch.cat([weights[f"{attention}{name}.bias"] for name in _PROJECTIONS]),
            dtype,
        )
        self._attended = _Linear.of(weights, f"{prefix}attention.output.dense", dtype)
        self._rise = _Linear.of(weights, f"{prefix}intermediate.dense", dtype)
        self._fall = _Linear.of(weights, f"{prefix}output.dense", dtype)
        self._norms = [
            (weights[f"{prefix}{name}.LayerNorm.weight"], weights[f"{prefix}{name}.LayerNorm.bias"])
            for name in ("attention.output", "output")
        ]

    def __call__(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        from torch.nn.functional import gelu, layer_norm

        shape = self._shape
        batch, tokens, width = hidden.shape
        size = width // shape.heads
        query, key, value = (
            self._project(hidden).view(batch, tokens, 3, shape.heads, size).permute(2, 0, 3, 1, 4)
        )
        scores = (query * size**-0.5) @ key.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        hidden = layer_norm(hidden + self._attended(attended), (width,), *self._norms[0], shape.epsilon)
        return layer_norm(
            hidden + self._fall(gelu(self._rise(hidden))), (width,), *self._norms[1], shape.epsilon
        )


class _Linear:
    """x W^T + b with low-precision products and float32 gradients of W and b."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._weight = weight
        self._bias = bias
        self._low = weight.detach().to(dtype)
        self._low_bias = bias.detach().to(dtype)

    @classmethod
    def of(cls, weights: Weights, name: str, dtype: torch.dtype) -> _Linear:
        return cls(weights[f"{name}.weight"], weights[f"{name}.bias"], dtype)

    def __call__(self, inputs: Tensor) -> Tensor:
        from torch.nn.functional import linear

        if not (self._weight.requires_grad or inputs.requires_grad):
            return linear(inputs, self._low, self._low_bias)
        found: Tensor = _product()(inputs, self._weight, self._bias, self._low, self._low_bias)
        return found


@cache
def _product() -> Any:
    """The autograd function behind `_Linear`; defined on first use because torch is imported late."""
    import torch
    from torch.nn.functional import linear

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, low: Tensor, low_bias: Tensor
        ) -> Tensor:
            ctx.save_for_backward(inputs, low)
            return linear(inputs, low, low_bias)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            inputs, low = ctx.saved_tensors
            flat = gradient.reshape(-1, gradient.shape[-1])
            to_inputs = gradient @ low if ctx.needs_input_grad[0] else None
            to_weight = to_bias = None
            if ctx.needs_input_grad[1]:
                to_weight = (flat.t() @ inputs.reshape(-1, inputs.shape[-1])).float()
                to_bias = flat.sum(0, dtype=torch.float32)
            return to_inputs, to_weight, to_bias, None, None

    return Product.apply


def _pooling(config: Mapping[str, Any]) -> str | None:
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
        return mode if mode in ("mean", "cls") else None
    modes = {name for name, value in config.items() if name.startswith("pooling_mode_") and value is True}
    return (
        {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}.get(next(iter(modes)))
        if len(modes) == 1
        else None
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
