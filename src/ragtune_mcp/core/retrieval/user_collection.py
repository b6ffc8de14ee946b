"""A Chroma collection of the user's own RAG, as the data set stage sees it. Read only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragtune_mcp.core.dataset.pairs import Hit

_PAGE = 1000


class UserCollection:
    """Texts and neighbours of a `chromadb.Collection` that holds its documents.

    Neighbours are ranked by the cosine of vectors made here, not by the collection's own, which may come from
    another model.

    Args:
        collection: anything with chromadb's `get(ids=, limit=, offset=, include=)`.
        encode: texts -> (n, dim) float32 rows of unit length.
    """

    def __init__(self, collection: Any, encode: Callable[[Sequence[str]], NDArray[np.float32]]) -> None:
        self._collection = collection
        self._encode = encode
        self._all: dict[str, str] | None = None
        self._vectors: NDArray[np.float32] | None = None

    def all_texts(self) -> dict[str, str]:
        """Every document with a text; read once."""
        if self._all is None:
            found: dict[str, str] = {}
            for offset in range(0, self._collection.count(), _PAGE):
                page = self._collection.get(limit=_PAGE, offset=offset, include=["documents"])
                found |= {i: text for i, text in zip(page["ids"], page["documents"], strict=True) if text}
            self._all = found
        return self._all

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> text, for the ids that exist."""
        known = self.all_texts()
        return {i: known[i] for i in ids if i in known}

    def nearest(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The k documents nearest to each query, best first."""
        ids, texts = list(self.all_texts()), list(self.all_texts().values())
        if self._vectors is None:
            self._vectors = self._encode(texts)
        scores = self._encode(list(queries)) @ self._vectors.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [
            [Hit(ids[i], texts[i], float(row[i])) for i in order]
            for row, order in zip(scores, best, strict=True)
        ]
