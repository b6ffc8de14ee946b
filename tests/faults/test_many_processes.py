"""Several processes search, index, rebuild and prune one workspace at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.retrieval.support import HashBag, vector_ids

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.documents import DocumentStore
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.reindex import build_collection
from ragtune_mcp.core.retrieval.store import ChromaStore, stop_store
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
ACTORS = ("server-one", "server-two", "worker", "command")


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path, Settings.load(tmp_path))
    workspace.prepare()
    yield workspace
    stop_store(workspace)


@pytest.mark.parametrize("operations", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_no_answer_of_another_model_and_no_lost_document(workspace, operations):
    command = [sys.executable, "-m", "tests.faults.stress", str(workspace.root)]
    running = [subprocess.Popen([*command, name, str(operations)], cwd=ROOT) for name in ACTORS]
    assert [process.wait(900) for process in running] == [0, 0, 0, 0]
    outcomes = [json.loads((workspace.root / f"{name}.outcome.json").read_text()) for name in ACTORS]
    assert sum(outcome["searched"] for outcome in outcomes) > operations

    db = Database(workspace.database)
    documents, index = DocumentStore(db), VectorIndex(workspace, db)
    expected = {i: t for outcome in outcomes for i, t in outcome["mine"].items()}
    assert documents.all_texts() == expected
    for version in ("base", "tuned"):
        encoder = HashBag(version)
        build_collection(index, documents, version, encoder)
        assert index.is_ready(version)
        stored = ChromaVectors(ChromaStore(workspace)).ids(index.usable(version, encoder.digest))
        assert stored == vector_ids(expected)
    db.close()
