"""Keeping the index up to date: plan, store, and build collections blue/green.

A source is read and its documents are stored under one lock (`storing`), so that nobody stores what they read
before somebody else's later reading.

A version's collection is built beside the one that serves, in batches that are each recorded once Chroma has
confirmed them; a killed build goes on where it stopped. Documents that change meanwhile are caught up
before one database transaction makes the new collection serve. Afterwards the same code keeps it up to
date: whatever differs by the hash of its text is encoded again, whatever has gone is forgotten, nothing
else is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.models.encoder import Encoder, Vectors
from ragtune_mcp.core.retrieval.catalog import Collection
from ragtune_mcp.core.retrieval.chroma import VectorsGone
from ragtune_mcp.core.retrieval.conport_items import ItemSource
from ragtune_mcp.core.retrieval.documents import DocumentStore, IndexPlan
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.sources import read_source
from ragtune_mcp.core.workspace import Workspace

Progress = Callable[[float, str], None]
Cancelled = Callable[[], None]

# One batch is encoded, written and recorded at a time: what a kill can cost, and how often progress is told.
_BATCH = 256
_TRIES = 5
_LOCK_POLL_S = 0.5


class EncoderPool(Protocol):
    """Loaded encoders by version."""

    def get(self, version: str) -> Encoder:
        """The encoder of a version; raises NotReady while it loads."""
        ...


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What bringing one collection up to date took.

    Attributes:
        created: the collection is new, rather than brought up to date.
        encoded: texts the model encoded.
        copied: documents whose text the model had encoded before.
        removed: vectors forgotten.
        total: vectors now.
    """

    version: str
    created: bool
    encoded: int
    copied: int
    removed: int
    total: int
    seconds: float


@contextmanager
def storing(
    workspace: Workspace, *, wait_s: float = float("inf"), cancelled: Cancelled = lambda: None
) -> Iterator[None]:
    """Be the only process that reads a source and stores its documents; waits for another one to finish or die.

    Load encoders before: others wait meanwhile.

    Args:
        workspace: whose documents.
        wait_s: how long to wait.
        cancelled: raises when the wait should stop.

    Raises:
        NotReady: another process still reads.
    """
    from filelock import FileLock, Timeout

    lock, deadline = FileLock(workspace.documents_lock), time.monotonic() + wait_s
    while not lock.is_locked:
        cancelled()
        try:
            lock.acquire(timeout=min(_LOCK_POLL_S, max(0.0, deadline - time.monotonic())))
        except Timeout as error:
            if time.monotonic() >= deadline:
                raise NotReady(
                    f"Another process has been reading documents for {wait_s:.0f} s.",
                    hint="Repeat the call when it has finished; job_status tells where an index job stands.",
                ) from error
    try:
        yield
    finally:
        lock.release()


def plan_index(
    workspace: Workspace,
    documents: DocumentStore,
    *,
    paths: Sequence[str] = (),
    source: str = "files",
    conport: Callable[[], ItemSource] | None = None,
) -> IndexPlan:
    """Read a source and say what indexing it would change; changes nothing.

    Args:
        workspace: whose files.
        documents: what is indexed now.
        paths: for files: globs, folders or files inside the workspace; empty for the whole workspace.
        source: "files", "conport", or "chroma:<collection>".
        conport: gives the ConPort client; called only for that source.

    Returns:
        The plan.

    Raises:
        InvalidInput: an unknown source, or a path that matches nothing.
        PathOutsideWorkspace: a path leaves the workspace.
        ConPortUnavailable: ConPort does not answer.
        ChromaUnavailable: the user's Chroma does not answer.
    """
    return documents.plan(read_source(workspace, source, paths, documents.origins, conport))


def update_collections(
    documents: DocumentStore,
    index: VectorIndex,
    encoders: EncoderPool,
    versions: Sequence[str],
    *,
    progress: Progress = lambda share, message: None,
    cancelled: Cancelled = lambda: None,
) -> list[BuildReport]:
    """Bring the collections of the serving versions up to date with the stored documents.

    Args:
        documents: what to index.
        index: where vectors are stored.
        encoders: gives each version's encoder.
        versions: champion and, while a test runs, the other variant; a version without a collection gets one.
        progress: told (share 0..1, message).
        cancelled: raises when the work should stop; what is done stays valid.

    Returns:
        One report a version.

    Raises:
        NotReady: an encoder is still loading; the next call encodes the documents.
    """
    reports = []
    for n, version in enumerate(versions):
        report = build_collection(
            index,
            documents,
            version,
            encoders.get(version),
            progress=lambda share, message, n=n: progress((n + share) / len(versions), message),  # type: ignore[misc]
            cancelled=cancelled,
        )
        reports.append(report)
    return reports


def build_collection(
    index: VectorIndex,
    documents: DocumentStore,
    version: str,
    encoder: Encoder,
    *,
    progress: Progress = lambda share, message: None,
    cancelled: Cancelled = lambda: None,
) -> BuildReport:
    """Make the version's collection complete: build it where there is none, else encode only what changed.

    Searches see the former collection, or none, until the new one is complete. Safe to run in several
    processes at once, to kill at any point and to repeat.

    Args:
        index: where vectors are stored.
        documents: what to index.
        version: whose collection.
        encoder: that version's document encoder.
        progress: told (share 0..1, message).
        cancelled: raises when the work should stop; what is done is kept and taken up by the next call.

    Returns:
        What was done.
    """
    started = time.perf_counter()
    work = _Work(index, documents, encoder, progress, cancelled)
    for attempt in range(1, _TRIES + 1):
        try:
            collection, created = _build(index, work, version, encoder, cancelled)
            return work.report(collection, created=created, seconds=time.perf_counter() - started)
        except VectorsGone:
            # Another process deleted the collection meanwhile; the next round begins another.
            if attempt == _TRIES:
                raise
    raise AssertionError("unreachable")


def _build(
    index: VectorIndex, work: _Work, version: str, encoder: Encoder, cancelled: Cancelled
) -> tuple[Collection, bool]:
    ready = _usable(index, version, encoder)
    if ready is not None:
        work.catch_up(ready)
        return ready, False
    with index.builder(encoder.digest, cancelled):
        ready = _usable(index, version, encoder)
        collection = ready or index.begin(version, encoder)
        work.catch_up(collection)
        while ready is None and not index.publish(collection):
            work.catch_up(collection)
    return collection, ready is None


def _usable(index: VectorIndex, version: str, encoder: Encoder) -> Collection | None:
    ready = index.usable(version, encoder.digest)
    # A worn one is built anew beside itself, of copies.
    return None if ready is None or index.is_worn(ready) else ready


class _Work:
    """One run of encoding into one collection, with its counters."""

    def __init__(
        self,
        index: VectorIndex,
        documents: DocumentStore,
        encoder: Encoder,
        progress: Progress,
        cancelled: Cancelled,
    ) -> None:
        self._index = index
        self._documents = documents
        self._encoder = encoder
        self._progress = progress
        self._cancelled = cancelled
        self._encoded = self._copied = self._removed = 0

    def catch_up(self, collection: Collection) -> None:
        """Encode what the collection lacks until nothing is left, and forget what has gone."""
        self._cancelled()
        self._index.repair(collection)
        while pending := self._index.pending(collection):
            for start in range(0, len(pending), _BATCH):
                self._cancelled()
                self._write(collection, pending[start : start + _BATCH])
                done = min(start + _BATCH, len(pending))
                self._progress(
                    done / len(pending),
                    f"{done} of {len(pending)} documents encoded for {collection.version}",
                )
        # Last, so that a document under a new id can copy the vector of its old one.
        self._removed += self._index.remove_orphans(collection)

    def report(self, collection: Collection, *, created: bool, seconds: float) -> BuildReport:
        """The counters so far."""
        total = self._index.count(collection.version)
        return BuildReport(
            collection.version, created, self._encoded, self._copied, self._removed, total, round(seconds, 3)
        )

    def _write(self, collection: Collection, ids: Sequence[str]) -> None:
        batch = list(self._documents.documents(ids).values())
        hashes = [document.sha256 for document in batch]
        known = self._index.copies(self._encoder.digest, list(dict.fromkeys(hashes)))
        fresh = {h: d.text for h, d in zip(hashes, batch, strict=True) if h not in known}
        started = time.perf_counter()
        if fresh:
            known |= dict(zip(fresh, self._encoder.encode(list(fresh.values())), strict=True))
        seconds = time.perf_counter() - started
        if not batch:
            return
        vectors: Vectors = np.stack([known[h] for h in hashes])
        self._index.add(collection, self._encoder.digest, batch, vectors, encoded=len(fresh), seconds=seconds)
        self._encoded += len(fresh)
        self._copied += len(batch) - len(fresh)
