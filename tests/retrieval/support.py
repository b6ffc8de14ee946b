"""A small deterministic encoder and a workspace for the tests of this stage."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from ragtune_mcp.core.retrieval.catalog import VectorId
from ragtune_mcp.core.retrieval.documents import Document
from ragtune_mcp.core.retrieval.reindex import update_collections
from ragtune_mcp.core.workspace import sha256_text


class HashBag:
    """Bag of hashed words: texts with common words are near, and another salt is another model."""

    def __init__(self, salt: str = "a", dimension: int = 64) -> None:
        self.salt = salt
        self.digest = hashlib.sha256(f"{salt}{dimension}".encode()).hexdigest()
        self.dimension = dimension
        self.max_tokens = 256
        self.encoded: list[str] = []

    def encode(self, texts):
        self.encoded += texts
        rows = np.stack([self._row(text) for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _row(self, text):
        row = np.full(self.dimension, 1e-3)
        for word in re.findall(r"\w+", text.lower()):
            seed = int.from_bytes(hashlib.sha256(f"{self.salt}{word}".encode()).digest()[:8], "big")
            row += np.random.default_rng(seed).standard_normal(self.dimension)
        return row


class Pool:
    """Encoders by version."""

    def __init__(self, **encoders) -> None:
        self.encoders = encoders

    def get(self, version):
        return self.encoders[version]

    def embed_query(self, version, query):
        return self.encoders[version].encode([query])[0]


def vector_ids(texts):
    """What Chroma calls the vectors of these documents: {id: text} -> ids."""
    return {str(VectorId(i, sha256_text(text))) for i, text in texts.items()}


def apply_plan(plan, documents, index, pool, versions, **options):
    """Store a plan's documents and index them for the versions."""
    documents.apply(plan)
    return update_collections(documents, index, pool, versions, **options)


def document(doc_id: str, text: str, *, source: str = "files", origin: str = "") -> Document:
    return Document(doc_id, source, origin or doc_id, doc_id, text)
