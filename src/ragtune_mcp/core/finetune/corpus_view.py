"""The corpus, the queries and every training text as the base model sees them: each text encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ragtune_mcp.core.finetune.backbone import Backbone, Tick
from ragtune_mcp.core.finetune.evaluation import Vectors, rank_vectors


class CorpusView:
    """Base vectors by text.

    Args:
        backbone: encodes with its base weights.
        corpus: document id -> text.
        queries: query texts.
        tick: told the tokens of each encoded group of documents.

    Attributes:
        ids, texts: the corpus.
        documents: (m, dim) float32 unit vectors.
    """

    def __init__(
        self, backbone: Backbone, corpus: Mapping[str, str], queries: Sequence[str], tick: Tick | None = None
    ) -> None:
        self._backbone = backbone
        self.ids = list(corpus)
        self.texts = list(corpus.values())
        self.documents = backbone.encode(self.texts, None, tick)
        self.queries = dict(zip(queries, backbone.encode(list(queries)), strict=True))
        self._known = dict(zip(self.texts, self.documents, strict=True)) | self.queries

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) unit vectors of any texts; those not seen before are encoded now."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known.update(zip(fresh, self._backbone.encode(fresh), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else self.documents[:0]

    def nearest(self, query: str, k: int) -> np.ndarray:
        """Positions of the k documents nearest to a query."""
        found: np.ndarray = rank_vectors(self.of([query]), self.documents, k)[0]
        return found

    def vectors(self) -> Vectors:
        """The base model's view for ranking."""
        return Vectors(self.queries, self.documents, self.ids)
