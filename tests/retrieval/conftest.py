"""One real Chroma for the whole session, shared as a remote server; each test has its own workspace."""

from __future__ import annotations

import pytest

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.retrieval.documents import DocumentStore
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.keeper import Owner
from ragtune_mcp.core.retrieval.store import ChromaStore, stop_store
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


@pytest.fixture(scope="session")
def chroma_url(tmp_path_factory):
    root = tmp_path_factory.mktemp("chroma")
    (root / ".env").write_text("RAGTUNE_CHROMA_IDLE_S=7200\n")
    workspace = Workspace(root, Settings.load(root))
    ChromaStore(workspace).attempt(lambda client: client.heartbeat())
    yield f"http://127.0.0.1:{Owner.read(workspace.chroma_owner).port}"
    stop_store(workspace)


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path, Settings.load(tmp_path))
    workspace.prepare()
    return workspace


@pytest.fixture
def db(workspace):
    database = Database(workspace.database)
    yield database
    database.close()


@pytest.fixture
def documents(db):
    return DocumentStore(db)


@pytest.fixture
def index(workspace, db, chroma_url):
    workspace.settings.ragtune_chroma_url = chroma_url
    return VectorIndex(workspace, db)


@pytest.fixture
def write(tmp_path):
    """Write files of the workspace: {relative path: text or bytes}."""

    def write(files):
        for path, content in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write
