"""Connections of the workspace's database."""

import os
import threading
from pathlib import Path

from ragtune_mcp.core.database import Database


def _open_files(path: Path) -> int:
    folder = Path("/proc/self/fd")
    return sum(os.readlink(each).startswith(str(path)) for each in folder.iterdir() if each.is_symlink())


def test_a_thread_that_ends_takes_its_connection_with_it(tmp_path):
    db = Database(tmp_path / "state.db")
    before = _open_files(db.path)
    for _ in range(20):
        thread = threading.Thread(target=lambda: db.connection.execute("SELECT 1").fetchone())
        thread.start()
        thread.join()
    # SQLite keeps one more file open: closing it would drop the locks of the other connections.
    assert _open_files(db.path) <= before + 1
    db.close()


def test_closing_ends_the_connections_of_all_threads(tmp_path):
    db = Database(tmp_path / "state.db")
    connected, end = threading.Event(), threading.Event()

    def hold():
        db.connection.execute("SELECT 1").fetchone()
        connected.set()
        end.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    connected.wait(30)
    db.close()
    assert _open_files(db.path) == 0
    end.set()
    thread.join()
