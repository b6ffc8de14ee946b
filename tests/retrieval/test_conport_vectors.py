"""Who uses ConPort's folder, and that nothing is changed in it meanwhile."""

import subprocess
import sys

import numpy as np
import pytest

from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.retrieval import conport_vectors
from ragtune_mcp.core.retrieval.conport_vectors import ConPortVectors

WAIT = "print(1, flush=True); input()"


@pytest.fixture
def start(workspace):
    """Start a process that waits, and return its id."""
    running = []

    def start(*arguments, program=WAIT, cwd=workspace.root):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(process)
        process.stdout.readline()
        return process.pid

    yield start
    for process in running:
        process.communicate(b"\n")


@pytest.fixture
def store(workspace):
    return ConPortVectors(workspace)


def test_a_conport_that_was_started_in_the_folder_is_seen(workspace, store, start, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (workspace.root / "sub").mkdir()
    expected = {
        start("conport-mcp"),
        start("conport-mcp", cwd=workspace.root / "sub"),
        start("conport-mcp", "--workspace_id", ".", cwd=workspace.root),
        start("conport-mcp", f"--workspace_id={workspace.id}", cwd=elsewhere),
    }
    start("conport-mcp", cwd=elsewhere)
    start("conport-mcp", "--workspace_id", str(elsewhere))
    start("something-else")
    assert set(store.users()) == expected


def test_whoever_has_conports_database_open_is_seen(workspace, store, start, tmp_path_factory):
    workspace.conport_database.parent.mkdir()
    workspace.conport_database.write_bytes(b"")
    program = f"f = open({str(workspace.conport_database)!r}); {WAIT}"
    assert store.users() == []
    user = start(program=program, cwd=tmp_path_factory.mktemp("elsewhere"))
    assert store.users() == [user]


def test_a_conport_started_while_vectors_are_written_keeps_its_own(workspace, store, start, monkeypatch):
    workspace.conport_vectors.mkdir(parents=True)
    (workspace.conport_vectors / "own").write_text("x")

    def write(folder, items, vectors):
        folder.mkdir()
        start("conport-mcp")

    monkeypatch.setattr(conport_vectors, "_write", write)
    with pytest.raises(Conflict, match="running"):
        store.replace([], np.zeros((0, 8), np.float32))
    assert [path.name for path in workspace.conport_vectors.parent.iterdir()] == [
        workspace.conport_vectors.name
    ]
    assert (workspace.conport_vectors / "own").read_text() == "x"
