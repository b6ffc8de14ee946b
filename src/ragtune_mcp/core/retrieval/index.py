"""The vector index: one collection per model version, guarded so that two models' vectors never meet.

Every access of the project to the vectors goes through here. A base model and its tuned child have the same
dimension, so Chroma cannot notice when the query of one meets the documents of the other; each collection
therefore carries the digest of its model, in `ragtune.db` and in Chroma's own metadata, and both are
compared.

A vector is named by its document and the hash of the text it was made from, and never overwritten: the new
one is written, its row replaces the old one's once Chroma confirmed, the old one is deleted; searches trust
only what a row vouches for. So an edit takes effect at once and as a whole, a process killed in between
leaves at worst a vector without a row, which the next build removes, and Chroma is spared updates in place,
which cost it many times what additions do.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as AbstractCollection
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import Conflict, NotReady
from ragtune_mcp.core.models.encoder import Encoder, OnnxEncoder, Vectors
from ragtune_mcp.core.retrieval.catalog import Catalog, Collection, VectorId
from ragtune_mcp.core.retrieval.chroma import ChromaVectors, Neighbour, VectorsGone, require_own
from ragtune_mcp.core.retrieval.documents import Document
from ragtune_mcp.core.retrieval.store import ChromaStore
from ragtune_mcp.core.workspace import Workspace

_LOCK_LIMIT_S = 300.0
# SQLite allows 32,766 variables in one statement.
_BATCH = 10_000
# Deleted vectors keep costing space and time in Chroma (docs/log.md). What was encoded beyond what is there has been
# deleted since.
_WORN, _FEW = 5, 256

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IndexState:
    """Where the index of one version stands.

    Attributes:
        state: gone when Chroma does not have the recorded collection any more.
        indexed: vectors in the collection that serves or, without one, that is being built.
        to_encode: documents that lack the vector of their present text there.
        estimate_s: expected seconds to finish, from what encoding has cost here so far; None before the
            first.
    """

    version: str
    state: Literal["missing", "building", "ready", "gone"]
    documents: int
    indexed: int
    to_encode: int
    estimate_s: float | None


class VectorIndex:
    """The collections of one workspace. Thread-safe; Chroma starts at the first use."""

    def __init__(self, workspace: Workspace, db: Database) -> None:
        self._workspace = workspace
        self._catalog = Catalog(db)
        self._chroma = ChromaVectors(ChromaStore(workspace), self._catalog.has)
        # Several workspaces may share one remote Chroma, on several machines with the same paths.
        self._prefix = f"ragtune-{self._catalog.workspace_id()}-"

    def is_ready(self, version: str) -> bool:
        """True when the version's serving collection has a row for every document's present text."""
        ready = self._catalog.find(version, "ready")
        return ready is not None and self._catalog.is_complete(ready.name)

    def is_intact(self, version: str) -> bool:
        """`is_ready`, and Chroma itself still holds every vector; asks Chroma, and starts it where needed."""
        ready = self._catalog.find(version, "ready")
        if ready is None or not self._catalog.is_complete(ready.name):
            return False
        try:
            return self._matches_store(ready)
        except VectorsGone:
            return False

    def count(self, version: str) -> int:
        """Vectors in the version's serving collection; 0 without one."""
        ready = self._catalog.find(version, "ready")
        return 0 if ready is None else self._catalog.count(ready.name)

    def versions(self) -> list[str]:
        """Versions that have a collection, complete or being built, the one begun last at the end."""
        return [collection.version for collection in self._catalog.all() if collection.state != "retired"]

    def state(self, version: str) -> IndexState:
        """Where the index of a version stands and what completing it would cost; asks Chroma."""
        found = self._catalog.find(version, "ready") or self._catalog.find(version, "building")
        is_gone = found is not None and not self._chroma.exists(found.name)
        name = found.name if found and not is_gone else ""
        missing = self._catalog.count_pending(name)
        return IndexState(
            version=version,
            state="missing"
            if found is None
            else "gone"
            if is_gone
            else "ready"
            if found.state == "ready"
            else "building",
            documents=self._catalog.count_documents(),
            indexed=self._catalog.count(name),
            to_encode=missing,
            estimate_s=self.estimate_s(missing),
        )

    def estimate_s(self, texts: int) -> float | None:
        """Seconds that encoding so many texts would take by what it has cost here; None before the first."""
        cost = self._catalog.seconds_per_text()
        return None if cost is None else texts * cost

    def query(self, version: str, digest: str, vectors: Vectors, k: int) -> list[list[Neighbour]]:
        """The nearest documents by cosine.

        Args:
            version: whose collection to ask.
            digest: of the model that made `vectors`.
            vectors: (n, dimension) float32.
            k: how many for each row.

        Returns:
            For each row up to k neighbours, best first, ties by id.

        Raises:
            NotReady: the version has no collection that serves.
            WrongEmbedder: the collection holds another model's vectors.
        """

        def ask(collection: Collection) -> list[list[Neighbour]]:
            require_own(collection, digest, vectors)
            return self._ask(collection, vectors, k)

        return self._of_serving(version, ask)

    def stored(self, version: str) -> int:
        """Vectors that Chroma holds in the version's serving collection, those without a row included."""
        return self._of_serving(version, self._chroma.count)

    def usable(self, version: str, digest: str) -> Collection | None:
        """The version's serving collection when it belongs to this model and Chroma still has it."""
        ready = self._catalog.find(version, "ready")
        return ready if ready and ready.digest == digest and self._chroma.exists(ready.name) else None

    def is_worn(self, collection: Collection) -> bool:
        """True when far more vectors were deleted from it than it holds; they still take their space."""
        return collection.encoded > _WORN * max(self._catalog.count(collection.name), _FEW)

    @contextmanager
    def builder(self, digest: str, cancelled: Callable[[], None]) -> Iterator[None]:
        """Be the only process that builds for this model; waits for another one to finish or die."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._workspace.build_lock(digest))
        while not lock.is_locked:
            cancelled()
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                log.debug("another process builds the collection of model %s", digest[:12])
        try:
            yield
        finally:
            lock.release()

    def begin(self, version: str, encoder: Encoder) -> Collection:
        """The collection being built for a version; an interrupted build is taken up where it stopped."""
        found = self._catalog.find(version, "building")
        if found and found.digest == encoder.digest and self._chroma.exists(found.name):
            return found
        if found:
            self._drop(found.name)
        name = f"{self._prefix}{encoder.digest[:12]}-{secrets.token_hex(3)}"
        created = self._catalog.insert(name, version, encoder.digest, encoder.dimension)
        self._chroma.create(name, self._identity(version, encoder))
        return created

    def pending(self, collection: Collection) -> list[str]:
        """Ids of the documents whose present text has no vector there, longest text first."""
        return self._catalog.pending(collection.name)

    def add(
        self,
        collection: Collection,
        digest: str,
        documents: Sequence[Document],
        vectors: Vectors,
        *,
        encoded: int,
        seconds: float,
    ) -> int:
        """Write vectors; documents that changed or vanished since they were read are left out.

        Args:
            collection: where to.
            digest: of the model that made `vectors`.
            documents: what was encoded.
            vectors: (n, dimension) float32 in the same order.
            encoded: how many were encoded now rather than copied.
            seconds: what that took.

        Returns:
            How many were written.

        Raises:
            WrongEmbedder: the collection belongs to another model.
            IntegrityError: a vector is not finite or has no direction.
        """
        require_own(collection, digest, vectors)
        ids = [document.doc_id for document in documents]
        with self._writing():
            current, recorded = self._catalog.current(ids), self._catalog.recorded(collection.name, ids)
            named = [VectorId(document.doc_id, document.sha256) for document in documents]
            keep = [
                i for i, v in enumerate(named) if current.get(v.doc_id) == v.sha256 != recorded.get(v.doc_id)
            ]
            if keep:
                written = [named[i] for i in keep]
                self._chroma.upsert(collection, [str(vector) for vector in written], vectors[keep])
                self._catalog.wrote(collection.name, written, encoded, seconds)
                replaced = [VectorId(i, recorded[i]) for i, _ in written if i in recorded]
                self._chroma.delete(collection, map(str, replaced))
        return len(keep)

    def remove_orphans(self, collection: Collection) -> int:
        """Forget the vectors of documents that no longer exist; returns how many."""
        with self._writing():
            orphans = self._catalog.orphans(collection.name)
            self._catalog.forgot(collection.name, orphans)
            self._chroma.delete(collection, map(str, orphans))
        return len(orphans)

    def copies(self, digest: str, hashes: Sequence[str]) -> dict[str, Vectors]:
        """Vectors that this model has already made of these texts: hash of text -> (dimension,) float32."""
        twins = self._catalog.twins(digest, hashes)
        by_name = {collection.name: collection for collection in self._catalog.all()}
        found: dict[str, Vectors] = {}
        for name in sorted({twin.collection for twin in twins} & by_name.keys()):
            text_of = {str(twin.vector): twin.vector.sha256 for twin in twins if twin.collection == name}
            try:
                stored = self._chroma.get(by_name[name], list(text_of))
            except VectorsGone:
                log.info("%s is gone; its texts are encoded again", name)
                continue
            found |= {text_of[vector_id]: vector for vector_id, vector in stored.items()}
        return found

    def publish(self, collection: Collection) -> bool:
        """Let a complete collection serve its version.

        Args:
            collection: one that is being built.

        Returns:
            False when it is not complete: documents changed meanwhile, or Chroma lacks what was recorded.
        """
        with self._writing():
            return self._matches_store(collection) and self._catalog.flip(collection)

    def repair(self, collection: Collection) -> None:
        """Make rows and vectors agree after a crash: what one side lacks, the other forgets."""
        with self._writing():
            if self._matches_store(collection):
                return
            stored = self._chroma.ids(collection)
            recorded = {
                str(v): v for v in map(VectorId._make, self._catalog.recorded(collection.name).items())
            }
            log.warning("%s: %d vectors, %d recorded; repairing", collection.name, len(stored), len(recorded))
            self._catalog.forgot(collection.name, [recorded[i] for i in recorded.keys() - stored])
            self._chroma.delete(collection, sorted(stored - recorded.keys()))

    def prune(self, keep: Callable[[], AbstractCollection[str]]) -> list[str]:
        """Delete superseded collections, those of versions not to be kept, and strays of this workspace.

        What another process is building right now is left alone.

        Args:
            keep: gives the versions that serve, may come to serve or may be rolled back to; asked again in each
                transaction that deletes.

        Returns:
            Names of the deleted collections.
        """
        deleted = [c.name for c in self._catalog.all() if self._drop_superseded(c, keep)]
        stored = [name for name in self._chroma.names() if name.startswith(self._prefix)]
        known = {collection.name for collection in self._catalog.all()}
        strays = [name for name in stored if name not in known]
        for name in strays:
            self._chroma.drop(name)
        return deleted + [name for name in strays if name not in deleted]

    def _drop_superseded(self, collection: Collection, keep: Callable[[], AbstractCollection[str]]) -> bool:
        from filelock import FileLock, Timeout

        if collection.state != "retired" and collection.version in keep():
            return False
        try:
            with FileLock(self._workspace.build_lock(collection.digest), timeout=0), self._writing():
                if not self._catalog.delete_superseded(collection.name, keep):
                    return False
                self._chroma.drop(collection.name)
        except Timeout:
            log.info("%s is being built by another process and stays", collection.name)
            return False
        return True

    def _of_serving(self, version: str, ask: Callable[[Collection], T]) -> T:
        collection = self._serving(version)
        try:
            return ask(collection)
        except VectorsGone:
            # Another process may have switched to a new collection and dropped this one meanwhile.
            successor = self._serving(version)
            if successor.name == collection.name:
                raise
            return ask(successor)

    def _ask(self, collection: Collection, vectors: Vectors, k: int) -> list[list[Neighbour]]:
        found = self._chroma.query(collection, vectors, k)
        rows = self._recorded(collection, {hit.doc_id.rpartition("@")[0] for row in found for hit in row})
        return [_vouched(row, rows) for row in found]

    def _recorded(self, collection: Collection, ids: AbstractCollection[str]) -> dict[str, str]:
        everything, rows = sorted(ids), dict[str, str]()
        for start in range(0, len(everything), _BATCH):
            rows |= self._catalog.recorded(collection.name, everything[start : start + _BATCH])
        return rows

    def _serving(self, version: str) -> Collection:
        ready = self._catalog.find(version, "ready")
        if ready is not None:
            return ready
        building = self._catalog.find(version, "building")
        if building is None:
            raise NotReady(f"There is no index of {version} yet.", hint="Call index_documents first.")
        done, left = self._catalog.count(building.name), self._catalog.count_pending(building.name)
        raise NotReady(
            f"The index of {version} is being built: {done} of {done + left} documents.",
            hint="Wait for the index job (job_status), or call index_documents when none is running.",
        )

    def _identity(self, version: str, encoder: Encoder) -> dict[str, str | int | bool]:
        identity: dict[str, str | int | bool] = {
            "workspace": self._workspace.id,
            "version": version,
            "digest": encoder.digest,
            "dimension": encoder.dimension,
            "max_tokens": encoder.max_tokens,
        }
        if isinstance(encoder, OnnxEncoder):
            identity |= {"pooling": str(encoder.spec.pooling), "normalize": encoder.spec.normalize}
        return identity

    def _drop(self, name: str) -> None:
        # The row first: a search must never be sent to a collection that is half gone.
        self._catalog.delete(name)
        self._chroma.drop(name)

    def _matches_store(self, collection: Collection) -> bool:
        return self._chroma.count(collection) == self._catalog.count(collection.name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._workspace.index_lock, timeout=_LOCK_LIMIT_S, poll_interval=0.01):
                yield
        except Timeout as error:
            raise Conflict(
                f"Another process has been writing to the index for {_LOCK_LIMIT_S:.0f} s.",
                hint="Repeat the call.",
            ) from error


def _vouched(hits: Sequence[Neighbour], recorded: Mapping[str, str]) -> list[Neighbour]:
    """Hits by document, best first; while a text is being replaced the recorded vector counts."""
    best: dict[str, tuple[bool, float]] = {}
    for hit in hits:
        doc_id, _, tag = hit.doc_id.rpartition("@")
        if doc_id in recorded:
            verdict = (recorded[doc_id].startswith(tag), hit.score)
            best[doc_id] = max(best.get(doc_id, verdict), verdict)
    ranked = [Neighbour(doc_id, score) for doc_id, (_, score) in best.items()]
    return sorted(ranked, key=lambda hit: (-hit.score, hit.doc_id))
