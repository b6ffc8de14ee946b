from __future__ import annotations

import pytest
from tests.models.support import make_model

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.models.registry import Registry
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    workspace = Workspace(root, Settings.load(root))
    workspace.prepare()
    return workspace


@pytest.fixture
def db(workspace):
    database = Database(workspace.database)
    yield database
    database.close()


@pytest.fixture
def registry(db, workspace):
    return Registry(db, workspace)


@pytest.fixture
def tuned(registry, workspace):
    """Register a tuned version of this name, with weights of its own."""

    def register(version, **lineage):
        folder = make_model(workspace.models / version, weights=version.encode())
        return registry.register(version, folder, **{"base_model": "all-MiniLM-L6-v2", **lineage})

    return register
