"""Run as a program: build the collection of version v1, and die by SIGKILL at a chosen call.

Arguments: workspace, salt of the encoder; then class, method, n, "before" or "after", else it lives.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.retrieval.support import HashBag

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.retrieval import reindex
from ragtune_mcp.core.retrieval.catalog import Catalog
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.documents import DocumentStore
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


def die_at(owner: type, method: str, n: int, when: str) -> None:
    """Replace a method so that its n-th call ends the process."""
    original = getattr(owner, method)
    calls = 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == n and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, dying)


def main() -> None:
    root, salt, *point = sys.argv[1:]
    if point:
        owner = {"chroma": ChromaVectors, "catalog": Catalog}[point[0]]
        die_at(owner, point[1], int(point[2]), point[3])
    reindex._BATCH = 16
    workspace = Workspace(Path(root), Settings.load(Path(root)))
    db = Database(workspace.database)
    reindex.build_collection(VectorIndex(workspace, db), DocumentStore(db), "v1", HashBag(salt))


if __name__ == "__main__":
    main()
