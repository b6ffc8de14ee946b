"""What is asked of Chroma, collection by collection; nothing else in the project touches our vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ragtune_mcp.core.errors import ChromaUnavailable, IntegrityError, NotReady, WrongEmbedder
from ragtune_mcp.core.models.encoder import Vectors
from ragtune_mcp.core.retrieval.catalog import Collection
from ragtune_mcp.core.retrieval.store import ChromaStore

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.Collection import Collection as ChromaCollection

REBUILD = "Call index_documents to build the collection of this version anew."
# With these, the approximate search over 10,000 documents returns what exact search does
# (tests/real/test_chroma.py).
_HNSW: CreateCollectionConfiguration = {
    "hnsw": {"space": "cosine", "ef_construction": 200, "max_neighbors": 32, "ef_search": 500}
}
_PAGE = 5000
_QUERY_BATCH = 256
_ZERO = 1e-6


class VectorsGone(NotReady):
    """A collection that was recorded is not in Chroma."""


class Neighbour(NamedTuple):
    """One hit: an id and its cosine with the query, in [-1, 1]."""

    doc_id: str
    score: float


class ChromaVectors:
    """Collections of vectors in one Chroma. All methods raise ChromaUnavailable when it does not answer."""

    def __init__(self, store: ChromaStore, is_listed: Callable[[str], bool] = lambda name: True) -> None:
        """Use one Chroma.

        Args:
            store: the connection.
            is_listed: whether a collection, by name, is still meant to exist.
        """
        self._store = store
        self._is_listed = is_listed

    def create(self, name: str, metadata: Mapping[str, str | int | bool]) -> None:
        """Make an empty collection; one that exists is left as it is."""
        self._store.attempt(
            lambda client: client.get_or_create_collection(
                name, embedding_function=None, metadata=dict(metadata), configuration=_HNSW
            )
        )

    def exists(self, name: str) -> bool:
        """True when Chroma has the collection now."""
        from chromadb.errors import NotFoundError

        self._store.drop_handle(name)
        try:
            self._store.attempt(lambda client: self._store.handle(client, name))
        except NotFoundError:
            return False
        return True

    def drop(self, name: str) -> None:
        """Delete a collection; nothing happens when there is none."""
        from chromadb.errors import NotFoundError

        self._store.drop_handle(name)
        try:
            self._store.attempt(lambda client: client.delete_collection(name))
        except NotFoundError:
            return

    def names(self) -> list[str]:
        """All collections of the server, also those that are not ours."""
        return self._store.attempt(_names)

    def upsert(self, collection: Collection, ids: Sequence[str], vectors: Vectors) -> None:
        """Store vectors: (n, dimension) float32, one an id."""
        self._on(collection, lambda handle: handle.upsert(ids=list(ids), embeddings=vectors))

    def delete(self, collection: Collection, ids: Iterable[str]) -> None:
        """Forget vectors; unknown ids are nothing."""
        everything = list(ids)
        for start in range(0, len(everything), _PAGE):
            page = everything[start : start + _PAGE]
            self._on(collection, lambda handle, page=page: handle.delete(ids=page))

    def count(self, collection: Collection) -> int:
        """How many vectors it holds."""
        return int(self._on(collection, lambda handle: handle.count()))

    def ids(self, collection: Collection) -> set[str]:
        """The ids it holds."""
        found: set[str] = self._on(collection, _ids)
        return found

    def get(self, collection: Collection, ids: Sequence[str]) -> dict[str, Vectors]:
        """Id -> (dimension,) float32, for the ids it holds."""
        got = self._on(collection, lambda handle: handle.get(ids=list(ids), include=["embeddings"]))
        return dict(zip(got["ids"], np.asarray(got["embeddings"], dtype=np.float32), strict=True))

    def query(self, collection: Collection, vectors: Vectors, k: int) -> list[list[Neighbour]]:
        """The nearest documents of each vector.

        Args:
            collection: where to look.
            vectors: (n, dimension), unit rows.
            k: how many at most.

        Returns:
            For each row up to k neighbours, best first, ties by id.

        Raises:
            VectorsGone: Chroma does not have the collection.
            WrongEmbedder: what Chroma has under this name belongs to another model.
        """
        ranked: list[list[Neighbour]] = []
        for start in range(0, len(vectors), _QUERY_BATCH):
            page = vectors[start : start + _QUERY_BATCH]
            answer = self._on(
                collection,
                lambda handle, page=page: handle.query(
                    query_embeddings=page, n_results=k, include=["distances"]
                ),
            )
            for ids, distances in zip(answer["ids"], answer["distances"], strict=True):
                # Rounded to what float32 carries, so that equal texts tie exactly and their ids decide.
                hits = [Neighbour(i, round(1.0 - float(d), 6)) for i, d in zip(ids, distances, strict=True)]
                ranked.append(sorted(hits, key=lambda hit: (-hit.score, hit.doc_id)))
        return ranked

    def _on(self, collection: Collection, action: Any) -> Any:
        from chromadb.errors import NotFoundError

        try:
            return self._store.attempt(lambda client: action(self._open(client, collection)))
        except (NotFoundError, ChromaUnavailable) as error:
            # While a collection is being deleted Chroma may answer with a fault instead of "not found".
            if isinstance(error, ChromaUnavailable) and self._is_listed(collection.name):
                raise
            self._store.drop_handle(collection.name)
            raise VectorsGone(
                f"The vectors of {collection.version} are gone from the store.", hint=REBUILD
            ) from error

    def _open(self, client: ClientAPI, collection: Collection) -> ChromaCollection:
        handle = self._store.handle(client, collection.name)
        found = (handle.metadata or {}).get("digest")
        if found != collection.digest:
            raise WrongEmbedder(
                f"Chroma's collection {collection.name} holds vectors of model {str(found)[:12]}, "
                f"expected {collection.digest[:12]}.",
                hint=REBUILD,
            )
        return handle


def require_own(collection: Collection, digest: str, vectors: Vectors) -> None:
    """Refuse vectors that are not of the collection's model.

    Args:
        collection: where they are to be stored or asked for.
        digest: of the model that made them.
        vectors: (n, dimension) float32.

    Raises:
        WrongEmbedder: another model made them.
        IntegrityError: one is not finite or has no direction.
    """
    if digest != collection.digest:
        raise WrongEmbedder(
            f"The index of {collection.version} holds vectors of model {collection.digest[:12]}, "
            f"but these come from model {digest[:12]}.",
            hint=REBUILD,
        )
    if vectors.ndim != 2 or vectors.shape[1] != collection.dimension:
        raise WrongEmbedder(
            f"The index of {collection.version} holds vectors of {collection.dimension} numbers, "
            f"but these have the shape {vectors.shape}.",
            hint=REBUILD,
        )
    norms = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(norms).all() or (norms < _ZERO).any():
        raise IntegrityError(
            f"Model {digest[:12]} gave a vector that is not finite or has no direction.",
            hint="Check the model version's files; see list_models.",
        )


def _ids(handle: ChromaCollection) -> set[str]:
    ids: list[str] = []
    while page := handle.get(limit=_PAGE, offset=len(ids), include=[])["ids"]:
        ids += page
    return set(ids)


def _names(client: ClientAPI) -> list[str]:
    names: list[str] = []
    while page := client.list_collections(limit=_PAGE, offset=len(names)):
        names += [collection.name for collection in page]
    return names
