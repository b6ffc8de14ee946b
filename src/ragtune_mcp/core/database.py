"""`ragtune.db`: one SQLite file in WAL mode, shared by servers, workers and the command line.

The tables of each stage stand in `schema/<stage>.sql`. A connection belongs to one thread. Every change of
several statements runs inside `transaction()`, which takes the write lock at once (BEGIN IMMEDIATE), so that
two processes never interleave a read-then-write.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.errors import IntegrityError

_INITIAL = ("feedback", "jobs", "models", "retrieval", "experiment")
# Migrations run in order, each once and in one transaction; a released one is never edited.
MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("001_initial", _INITIAL),
    ("002_told", ("experiment_told",)),
    ("003_identity", ("identity",)),
)
_BUSY_TIMEOUT_S = 30.0


class _Held:
    """The connection of one thread, closed with it: servers start and end threads as long as they run."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class Database:
    """Opens, migrates and hands out connections.

    Args:
        path: the file; made, with its folder, where there is none.

    Raises:
        IntegrityError: the file was written by a newer version of the project.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._migrate()

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection; autocommit unless inside `transaction()`. Rows are `sqlite3.Row`."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is None:
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            held = _Held(connection)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")
            self._local.held = held
            with self._lock:
                self._held.add(held)
        return held.connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction; joins the one already open on this thread."""
        connection = self.connection
        if connection.in_transaction:
            yield connection
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connections of all threads; the object must not be used afterwards."""
        with self._lock:
            for held in list(self._held):
                held.connection.close()
            self._held.clear()
        self._local = threading.local()

    def _migrate(self) -> None:
        connection = self.connection
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)"
        )
        with self.transaction():
            applied = {row["name"] for row in connection.execute("SELECT name FROM migrations")}
            unknown = applied - {name for name, _ in MIGRATIONS}
            if unknown:
                raise IntegrityError(
                    f"{self.path} was written by a newer ragtune-mcp (migrations {sorted(unknown)}).",
                    hint="Upgrade ragtune-mcp.",
                )
            for name, scripts in MIGRATIONS:
                if name not in applied:
                    for script in scripts:
                        self._execute_script(script)
                    connection.execute("INSERT INTO migrations VALUES (?, ?)", (name, to_iso(utc_now())))

    def _execute_script(self, script: str) -> None:
        # Not executescript(): it commits the open transaction first.
        text = (
            resources.files("ragtune_mcp.core")
            .joinpath("schema", f"{script}.sql")
            .read_text(encoding="utf-8")
        )
        statement = ""
        for line in text.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                self.connection.execute(statement)
                statement = ""
