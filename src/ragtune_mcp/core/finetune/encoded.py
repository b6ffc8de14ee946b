"""The vectors of texts under one set of weights, each text read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from ragtune_mcp.core.finetune.backbone import Backbone, Tick


class Encoded:
    """A model that remembers what it has read.

    Args:
        backbone: the model.
        weights: over the base ones; never changed. None for the base model.
        tick: called with the tokens of each group of texts that is read.
    """

    def __init__(
        self, backbone: Backbone, weights: Mapping[str, Tensor] | None = None, tick: Tick | None = None
    ) -> None:
        self._backbone = backbone
        self.weights = weights
        self._tick = tick
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, (n, dim) float32."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        vectors = self._backbone.encode(fresh, self.weights, self._tick)
        self._known.update(zip(fresh, vectors, strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else vectors
