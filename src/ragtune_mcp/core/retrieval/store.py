"""Chroma as a shared service: found, started when needed, and reconnected to.

The embedded client is not safe for several processes, and a workspace is shared by servers, workers and the
command line. So exactly one process opens the folder (see `keeper`), or a remote server does
(RAGTUNE_CHROMA_URL); everybody else is a client over HTTP.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from ragtune_mcp.core.errors import ChromaUnavailable, InvalidInput
from ragtune_mcp.core.retrieval.keeper import LOOPBACK, Owner, heartbeat
from ragtune_mcp.core.workspace import Workspace

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.models.Collection import Collection as ChromaCollection

T = TypeVar("T")

_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 15.0
_POLL_S = 0.03
# A store of our own that was killed may be killed again while it comes back; a remote one is asked once more.
_TRIES, _REMOTE_TRIES = 4, 2
_PROXY_VARIABLES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")

log = logging.getLogger(__name__)


class ChromaStore:
    """A connection to the workspace's Chroma. Thread-safe; nothing starts before the first use."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.RLock()
        self._client: ClientAPI | None = None
        self._handles: dict[str, ChromaCollection] = {}
        self._touched = float("-inf")

    @property
    def is_remote(self) -> bool:
        """True when the store is a server the user runs."""
        return bool(self._workspace.settings.ragtune_chroma_url)

    def attempt(self, action: Callable[[ClientAPI], T]) -> T:
        """Run one idempotent action, again on a fresh connection when the server went away.

        Args:
            action: gets the client; must be safe to repeat.

        Returns:
            What the action returned.

        Raises:
            ChromaUnavailable: no server answers, or it reported a fault of its own.
        """
        import httpx
        from chromadb.errors import ChromaError, NotFoundError

        for left in reversed(range(_REMOTE_TRIES if self.is_remote else _TRIES)):
            client = self._connected()
            try:
                return action(client)
            except NotFoundError:
                raise
            except httpx.TransportError as error:
                self._forget(client)
                if not left:
                    raise ChromaUnavailable(
                        f"The vector store stopped answering: {error}.", hint=self._hint()
                    ) from error
            except ChromaError as error:
                raise ChromaUnavailable(f"The vector store failed: {error}.", hint=self._hint()) from error
        raise AssertionError("unreachable")

    def handle(self, client: ClientAPI, name: str) -> ChromaCollection:
        """A collection by name, looked up once per connection; raises Chroma's NotFoundError without one."""
        with self._lock:
            found = self._handles.get(name)
        if found is None:
            found = client.get_collection(name, embedding_function=None)
            with self._lock:
                self._handles[name] = found
        return found

    def drop_handle(self, name: str) -> None:
        """Forget a looked-up collection."""
        with self._lock:
            self._handles.pop(name, None)

    def _connected(self) -> ClientAPI:
        with self._lock:
            if self._client is None:
                self._client = self._connect_remote() if self.is_remote else self._connect_local()
            self._touch()
            return self._client

    def _forget(self, client: ClientAPI) -> None:
        with self._lock:
            if self._client is client:
                self._client = None
                self._handles.clear()

    def _connect_remote(self) -> ClientAPI:
        host, port, ssl = parse_url(self._workspace.settings.ragtune_chroma_url, "RAGTUNE_CHROMA_URL")
        return connect(host, port, ssl)

    def _connect_local(self) -> ClientAPI:
        with _without_proxy():
            for left in reversed(range(_TRIES)):
                port = self._ensure_server()
                try:
                    return connect(LOOPBACK, port, ssl=False)
                except ChromaUnavailable:
                    if not left:
                        raise
        raise AssertionError("unreachable")

    def _ensure_server(self) -> int:
        deadline = time.monotonic() + _START_LIMIT_S
        child: subprocess.Popen[bytes] | None = None
        killed = 0
        while time.monotonic() < deadline:
            owner = Owner.of(self._workspace)
            if owner is not None and owner.is_alive:
                if heartbeat(owner.port):
                    return owner.port
            elif child is None or child.poll() == 0:
                # A keeper that ends with 0 met another owner, which is starting or about to go.
                child = start_keeper(self._workspace)
            elif child.returncode is not None and child.returncode < 0 and killed < _TRIES:
                killed += 1
                child = start_keeper(self._workspace)
            elif child.returncode is not None:
                raise ChromaUnavailable(
                    f"Chroma did not start (exit status {child.returncode}).", hint=self._hint()
                )
            time.sleep(_POLL_S)
        raise ChromaUnavailable(
            f"The vector store of {self._workspace.root} did not answer within {_START_LIMIT_S:.0f} s.",
            hint=self._hint(),
        )

    def _touch(self) -> None:
        now = time.monotonic()
        if self.is_remote or now - self._touched < self._workspace.settings.ragtune_chroma_idle_s / 8:
            return
        self._touched = now
        try:
            os.utime(self._workspace.chroma_owner)
        except FileNotFoundError:
            log.debug("the vector store's owner file is gone; the next request starts a new server")

    def _hint(self) -> str:
        if self.is_remote:
            url = self._workspace.settings.ragtune_chroma_url
            return f"Check RAGTUNE_CHROMA_URL={url!r} and that server's log."
        return f"See {self._workspace.relative(self._workspace.chroma_log)}."


def start_keeper(workspace: Workspace) -> subprocess.Popen[bytes]:
    """Start a process that becomes the owner of the store unless there is one; it outlives the caller."""
    workspace.prepare()
    # Chroma reads its own settings from CHROMA_* variables; the store must not depend on who starts it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CHROMA_")}
    environment |= {"ANONYMIZED_TELEMETRY": "False", "RUST_LOG": "error"}
    detached: dict[str, int | bool] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    with workspace.chroma_log.open("ab") as output:
        child: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-P", "-m", "ragtune_mcp.core.retrieval.keeper", str(workspace.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=workspace.state,
            env=environment,
            **detached,  # type: ignore[call-overload]
        )
    return child


def stop_store(workspace: Workspace) -> bool:
    """End the workspace's own Chroma server and wait until it is gone; the next use starts a new one.

    Args:
        workspace: whose store.

    Returns:
        True when a server was running.

    Raises:
        ChromaUnavailable: it did not end within 15 seconds.
    """
    owner = Owner.of(workspace)
    if owner is None or not owner.is_alive:
        return False
    workspace.chroma_owner.unlink(missing_ok=True)
    os.kill(owner.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_LIMIT_S
    while owner.is_alive:
        if time.monotonic() > deadline:
            raise ChromaUnavailable(
                f"The vector store (process {owner.pid}) does not end.", hint=f"End process {owner.pid}."
            )
        time.sleep(_POLL_S)
    return True


def connect(host: str, port: int, ssl: bool) -> ClientAPI:
    """A client of one Chroma server, telemetry off; raises ChromaUnavailable when nothing answers there."""
    import chromadb
    import httpx
    from chromadb.config import Settings as ChromaSettings

    try:
        return chromadb.HttpClient(
            host=host, port=port, ssl=ssl, settings=ChromaSettings(anonymized_telemetry=False)
        )
    except (ValueError, httpx.HTTPError) as error:
        raise ChromaUnavailable(f"No Chroma answers at {host}:{port}: {error}.") from error


def parse_url(url: str, variable: str) -> tuple[str, int, bool]:
    """Take a URL apart.

    Args:
        url: `http://host:8000` or the like.
        variable: where it came from, named in the error.

    Returns:
        Host, port and whether TLS is used.

    Raises:
        InvalidInput: not an http(s) URL with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise InvalidInput(
            f"{variable}={url!r} is not a URL like http://host:8000.", hint=f"Correct {variable}."
        )
    secure = parts.scheme == "https"
    return parts.hostname, parts.port or (443 if secure else 8000), secure


@contextmanager
def _without_proxy() -> Iterator[None]:
    # The HTTP client reads proxy variables when it is made; loopback traffic must never take a proxy.
    if not any(os.environ.get(name) for name in _PROXY_VARIABLES):
        yield
        return
    before = os.environ.get("NO_PROXY")
    os.environ["NO_PROXY"] = f"{before},{LOOPBACK}" if before else LOOPBACK
    try:
        yield
    finally:
        if before is None:
            del os.environ["NO_PROXY"]
        else:
            os.environ["NO_PROXY"] = before
