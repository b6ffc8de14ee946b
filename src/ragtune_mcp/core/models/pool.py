"""The encoders a process has loaded, and the query vectors it remembers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from ragtune_mcp.core.errors import DigestMismatch, ExportMismatch, NotReady
from ragtune_mcp.core.models.encoder import OnnxEncoder, Vectors, read_spec
from ragtune_mcp.core.models.registry import Registry
from ragtune_mcp.core.workspace import EncoderPaths, Workspace

# Champion and challenger of a running test, and one more while they change.
_ENCODERS_KEPT = 3
_QUERIES_KEPT = 2048
# Loading takes about a second; only where it takes much longer is the caller told to come back.
LOAD_WAIT_S = 10.0
MIN_COSINE = 0.9999


class EncoderPool:
    """Encoders by version; the first use of one starts loading it in the background.

    Thread-safe. Keeps the last few used, and the vectors of the last queries by model digest and text.
    """

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self._workspace = workspace
        self._registry = registry
        self._lock = threading.Lock()
        self._encoders: OrderedDict[str, Future[OnnxEncoder]] = OrderedDict()
        self._queries: OrderedDict[tuple[str, str], Vectors] = OrderedDict()
        # Digest -> the state in which its files were last found to be those of the export.
        self._intact: dict[str, tuple[tuple[int, ...], ...]] = {}

    def folder(self, version: str) -> Path:
        """Where the serving encoder of a version lies, or will once it is exported."""
        return self._workspace.encoder(self._registry.get(version).digest).folder

    def is_ready(self, version: str) -> bool:
        """True when the version's encoder is loaded, so that `get` answers at once."""
        future = self._encoders.get(self._registry.get(version).digest)
        return future is not None and future.done() and future.exception() is None

    def is_exported(self, version: str) -> bool:
        """True when the encoder's files are those of its export; hashed again only once they were touched."""
        digest = self._registry.get(version).digest
        paths = self._workspace.encoder(digest)
        try:
            stats = [path.stat() for path in (paths.config, paths.model, paths.tokenizer)]
            state = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)
            if self._intact.get(digest) != state:
                if read_spec(paths).digest != digest:
                    return False
                self._intact[digest] = state
        except (OSError, DigestMismatch):
            return False
        return True

    def get(self, version: str, wait_s: float = LOAD_WAIT_S) -> OnnxEncoder:
        """The encoder of a version.

        Args:
            version: a registered version.
            wait_s: how long to wait while it loads.

        Returns:
            The encoder.

        Raises:
            NotReady: it is loading, or was not exported yet.
            DigestMismatch: its files are not those of the version.
            UnknownId: no such version.
        """
        future = self._future(self._registry.get(version).digest, version)
        try:
            return future.result(timeout=wait_s)
        except TimeoutError as error:
            raise NotReady(
                f"The query encoder of {version} is warming up.", hint="Repeat the call in a few seconds."
            ) from error

    def embed_query(self, version: str, query: str, wait_s: float = LOAD_WAIT_S) -> Vectors:
        """The vector of one query, remembered; same errors as `get`.

        Args:
            version: a registered version.
            query: the text.
            wait_s: how long to wait while the encoder loads.

        Returns:
            (dim,) float32 of unit length, read-only.
        """
        key = (self._registry.get(version).digest, query)
        with self._lock:
            known = self._queries.get(key)
            if known is not None:
                self._queries.move_to_end(key)
                return known
        vector: Vectors = self.get(version, wait_s).encode([query])[0]
        vector.setflags(write=False)
        with self._lock:
            self._queries[key] = vector
            while len(self._queries) > _QUERIES_KEPT:
                self._queries.popitem(last=False)
        return vector

    def check(self, version: str) -> None:
        """Load a version's encoder anew and compare its vectors of the probe texts with those of the source model.

        What counts is what other processes will load, not the copy in memory, which may be older than damage.

        Args:
            version: a registered version.

        Raises:
            ExportMismatch: a vector differs.
            DigestMismatch: its files are not those of the version.
            NotReady: it was not exported yet.
        """
        digest = self._registry.get(version).digest
        # A changed file may look untouched.
        self._intact.pop(digest, None)
        encoder = _load(self._exported(digest, version), digest)
        probes = encoder.spec.probes
        vectors = encoder.encode([probe["text"] for probe in probes])
        recorded = np.array([probe["vector"] for probe in probes], dtype=np.float32)
        cosines = np.sum(vectors * recorded, axis=1) / np.linalg.norm(recorded, axis=1)
        if cosines.min() < MIN_COSINE:
            text = probes[int(cosines.argmin())]["text"]
            raise ExportMismatch(
                f"The encoder of {version} gives another vector than the model for {text!r}"
                f" (cosine {cosines.min():.6f}).",
                hint=f"Delete {self.folder(version)} and call index_documents, which exports it again.",
            )
        with self._lock:
            self._keep(digest, Future()).set_result(encoder)

    def _future(self, digest: str, version: str) -> Future[OnnxEncoder]:
        with self._lock:
            future = self._encoders.get(digest)
            if future is None or (future.done() and future.exception() is not None):
                paths = self._exported(digest, version)
                future = Future()
                threading.Thread(
                    target=_load_into, args=(future, paths, digest), name="load-encoder", daemon=True
                ).start()
            return self._keep(digest, future)

    def _exported(self, digest: str, version: str) -> EncoderPaths:
        paths = self._workspace.encoder(digest)
        if not paths.config.exists():
            raise NotReady(
                f"The query encoder of {version} has not been exported yet.",
                hint="Call index_documents; its job exports it.",
            )
        return paths

    def _keep(self, digest: str, future: Future[OnnxEncoder]) -> Future[OnnxEncoder]:
        """Called with the lock held; the one used longest ago is let go."""
        self._encoders[digest] = future
        self._encoders.move_to_end(digest)
        while len(self._encoders) > _ENCODERS_KEPT:
            self._encoders.popitem(last=False)
        return future


def _load_into(future: Future[OnnxEncoder], paths: EncoderPaths, digest: str) -> None:
    try:
        encoder = _load(paths, digest)
    except BaseException as error:
        # Raised again in every thread that asks for the encoder.
        future.set_exception(error)
    else:
        future.set_result(encoder)


def _load(paths: EncoderPaths, digest: str) -> OnnxEncoder:
    encoder = OnnxEncoder(paths.folder)
    if encoder.digest != digest:
        raise DigestMismatch(
            f"{paths.folder} holds the encoder of another model ({encoder.digest[:12]}).",
            hint="Call index_documents, which exports it again.",
        )
    # The first run allocates; better here than in the first search.
    encoder.encode(["warm up"])
    return encoder
