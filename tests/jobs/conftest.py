from __future__ import annotations

import pytest
from tests.jobs.support import Recorder

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


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
def executor():
    return Recorder()


@pytest.fixture
def store(db, workspace, executor):
    return JobStore(db, workspace, executor)
