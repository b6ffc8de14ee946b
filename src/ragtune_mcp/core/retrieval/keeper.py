"""The one process that owns a workspace's vector store: a Chroma server on loopback that ends when unused.

Started as `python -m ragtune_mcp.core.retrieval.keeper <workspace>`. It holds a file lock for as long as it
lives, so the kernel allows one owner and frees the store at once when that owner dies, however it dies.
Once Chroma answers, it writes who it is and its port to `Workspace.chroma_owner`; users of the store touch
that file. It ends when the file is gone or has not been touched for RAGTUNE_CHROMA_IDLE_S.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ragtune_mcp.core.jobs.processes import process_name, start_time, this_place
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

LOOPBACK = "127.0.0.1"
_PORT_TRIES = 5
_START_LIMIT_S = 60.0
_GRACE_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns the store: a process, named for good, its port, and the lock file it holds."""

    place: str
    pid: int
    started: str
    port: int
    lock: str

    @property
    def is_alive(self) -> bool:
        """True when the process still runs on this machine."""
        return self.place == this_place() and bool(self.started) and start_time(self.pid) == self.started

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """The owner a file names; None when there is no such file or it does not hold one."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    @classmethod
    def of(cls, workspace: Workspace) -> Owner | None:
        """The owner of this workspace's store; None also where the file was copied with another workspace's."""
        owner = cls.read(workspace.chroma_owner)
        return owner if owner is not None and owner.lock == _identity(workspace.chroma_lock) else None

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        draft = path.with_suffix(f".{self.pid}.tmp")
        draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(draft, path)


def _identity(lock: Path) -> str:
    # A workspace that is moved keeps the file, and with it the owner; one that is copied gets a file of its own.
    try:
        found = lock.stat()
    except FileNotFoundError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def heartbeat(port: int, timeout_s: float = 2.0) -> bool:
    """True when a Chroma answers on this loopback port."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request("GET", "/api/v2/heartbeat")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def main() -> int:
    """Own the store until nobody needs it.

    Returns:
        0 when it ended on request or another process owns the store; 1 when Chroma did not start.
    """
    from filelock import FileLock, Timeout

    root = Path(sys.argv[1])
    workspace = Workspace(root, Settings.load(root))
    lock = FileLock(workspace.chroma_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return 0
    _start_log(workspace.chroma_log)
    for _ in range(_PORT_TRIES):
        watch = _Watch(workspace, _free_port())
        watch.start()
        _serve(workspace, watch.port)
        watch.stop()
        if watch.served:
            return 0
    return 1


class _Watch(threading.Thread):
    """Publishes the owner once Chroma answers, then ends the process when the store is not used any more."""

    def __init__(self, workspace: Workspace, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.served = False
        self._workspace = workspace
        self._idle_s = workspace.settings.ragtune_chroma_idle_s
        self._ended = threading.Event()

    def run(self) -> None:
        owner = self._owner()
        deadline = time.monotonic() + _START_LIMIT_S
        while not (heartbeat(self.port) and self._is_ours()):
            if time.monotonic() > deadline:
                log.error("Chroma did not answer on port %d within %.0f s", self.port, _START_LIMIT_S)
                self._end_process()
            if self._ended.wait(0.02):
                return
        self.served = True
        owner.write(self._workspace.chroma_owner)
        while not self._ended.wait(min(5.0, self._idle_s / 4)):
            if not self._is_wanted(owner):
                self._end_process()

    def stop(self) -> None:
        """Called when the server has returned."""
        self._ended.set()

    def _owner(self) -> Owner:
        me = process_name()
        return Owner(me.place, me.pid, me.started, self.port, _identity(self._workspace.chroma_lock))

    def _is_ours(self) -> bool:
        # Another program may have taken the port between the choice and Chroma's bind; its answer is not
        # ours.
        import psutil

        connections = psutil.Process().net_connections(kind="tcp")
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == self.port for c in connections)

    def _is_wanted(self, owner: Owner) -> bool:
        path = self._workspace.chroma_owner
        if Owner.read(path) != owner:
            return False
        if time.time() - path.stat().st_mtime <= self._idle_s:
            return True
        path.unlink()
        return False

    def _end_process(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._ended.wait(_GRACE_S):
            os._exit(0)


def _serve(workspace: Workspace, port: int) -> None:
    # The call behind the `chroma` command, without that command's import of the whole client (half a second).
    import chromadb_rust_bindings

    arguments = ["chroma", "run", "--path", str(workspace.index), "--host", LOOPBACK, "--port", str(port)]
    chromadb_rust_bindings.cli(arguments)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _start_log(path: Path) -> None:
    """Begin the log anew; the starter has opened it for appending as this process's output."""
    path.write_bytes(b"")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
