"""Queries to ranked documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ragtune_mcp.core.dataset.pairs import Hit
from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.models.encoder import Encoder, Vectors
from ragtune_mcp.core.retrieval.chroma import Neighbour
from ragtune_mcp.core.retrieval.documents import DocumentStore
from ragtune_mcp.core.retrieval.index import VectorIndex

# Asked for beyond k: documents deleted since the last sync still have a vector, and ties at rank k need
# their ids.
_MARGIN = 8
# How many times as much is asked for when that was not enough.
_WIDER = 8


class SearchHit(NamedTuple):
    """One result: rank from 1, score the cosine in [-1, 1], source the file or item it comes from."""

    id: str
    text: str
    source: str
    rank: int
    score: float


class QueryEncoders(Protocol):
    """Loaded encoders by version; implemented by `models.pool.EncoderPool`."""

    def get(self, version: str) -> Encoder:
        """The encoder of a version; NotReady while it loads."""
        ...

    def embed_query(self, version: str, query: str) -> Vectors:
        """(dimension,) float32 of one query, remembered; NotReady while the encoder loads."""
        ...


class Searcher:
    """Searches the collection of a version with that version's encoder. Thread-safe."""

    def __init__(self, index: VectorIndex, documents: DocumentStore, encoders: QueryEncoders) -> None:
        self._index = index
        self._documents = documents
        self._encoders = encoders

    def search(self, version: str, query: str, k: int) -> list[SearchHit]:
        """The k documents nearest to a query.

        Args:
            version: the model version that ranks.
            query: text.
            k: how many, at least 1.

        Returns:
            Up to k hits, best first, ties by id, with their full present texts.

        Raises:
            NotReady: the encoder is loading, or the version has no index yet.
            WrongEmbedder: the index was made by another model.
        """
        return self.search_all(version, [query], k)[0]

    def search_all(self, version: str, queries: Sequence[str], k: int) -> list[list[SearchHit]]:
        """`search` for many queries at once, in their order."""
        if not queries:
            return []
        if self._documents.is_empty():
            raise NotReady("No documents are indexed yet.", hint="Call index_documents first.")
        encoder = self._encoders.get(version)
        vectors = self._encode(version, queries)
        found = self._resolve(self._index.query(version, encoder.digest, vectors, k + _MARGIN), k)
        short = [i for i, hits in enumerate(found) if len(hits) < k]
        if short:
            self._widen(version, encoder.digest, vectors, k, found, short)
        return found

    def _widen(
        self,
        version: str,
        digest: str,
        vectors: Vectors,
        k: int,
        found: list[list[SearchHit]],
        short: list[int],
    ) -> None:
        """Ask for more, up to everything, where what is stored but no longer exists stood in the way."""
        # By the rows, not by what was answered: vectors without a row are left out of that already.
        there, stored, asked = min(k, self._index.count(version)), self._index.stored(version), k + _MARGIN
        while asked < stored and (short := [i for i in short if len(found[i]) < there]):
            asked = min(asked * _WIDER, stored)
            wider = self._index.query(version, digest, vectors[short], asked)
            for i, hits in zip(short, self._resolve(wider, k), strict=True):
                found[i] = hits

    def corpus(self, version: str) -> IndexedCorpus:
        """The documents as one version ranks them, for mining negatives."""
        return IndexedCorpus(self, self._documents, version)

    def _encode(self, version: str, queries: Sequence[str]) -> Vectors:
        if len(queries) == 1:
            return self._encoders.embed_query(version, queries[0])[np.newaxis]
        return self._encoders.get(version).encode(queries)

    def _resolve(self, neighbours: Sequence[Sequence[Neighbour]], k: int) -> list[list[SearchHit]]:
        documents = self._documents.documents(n.doc_id for row in neighbours for n in row)
        found = []
        for row in neighbours:
            present = [(documents[n.doc_id], n.score) for n in row if n.doc_id in documents][:k]
            found.append(
                [SearchHit(d.doc_id, d.text, d.origin, r, score) for r, (d, score) in enumerate(present, 1)]
            )
        return found


class IndexedCorpus:
    """The live index as the data set stage sees it (`dataset.pairs.Corpus`)."""

    def __init__(self, searcher: Searcher, documents: DocumentStore, version: str) -> None:
        self._searcher = searcher
        self._documents = documents
        self.version = version

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> current text, for the ids that exist."""
        return self._documents.texts(ids)

    def nearest(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """The k documents nearest to each query, best first."""
        found = self._searcher.search_all(self.version, queries, k)
        return [[Hit(hit.id, hit.text, hit.score) for hit in hits] for hits in found]
