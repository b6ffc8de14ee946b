"""Encoding with sentence-transformers, where no serving encoder has been exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class LibraryEncoder:
    """A sentence-transformers folder; loaded at the first text, so that making one costs nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model: Any = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) float32 rows of unit length."""
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(
                str(self._folder), local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        vectors: NDArray[np.float32] = self._model.encode(list(texts), normalize_embeddings=True)
        return vectors
