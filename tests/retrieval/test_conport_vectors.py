"""Who uses ConPort's folder, that nothing is changed in it meanwhile, and how vectors are exchanged."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.retrieval import conport_vectors
from ragtune_mcp.core.retrieval.conport_vectors import ConPortVectors, Item

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


# Exchanging vectors


def made_by(workspace):
    """Which vectors lie where ConPort reads them; None without any."""
    file = workspace.conport_vectors / "made_by"
    return file.read_text() if file.exists() else None


@pytest.fixture
def exchange(workspace, store, monkeypatch):
    """Vectors and model of a version, as `conport_reindex` lays them."""
    workspace.conport_vectors.parent.mkdir(exist_ok=True)

    def write(folder, items, vectors):
        folder.mkdir()
        (folder / "made_by").write_text(items)

    monkeypatch.setattr(conport_vectors, "_write", write)

    def exchange(version):
        store.replace(version, None)
        model = workspace.root / version
        model.mkdir()
        store.provide_model(model)

    return exchange


def test_where_conport_had_no_vectors_none_of_ours_become_its_backup(workspace, store, exchange):
    exchange("v1")
    exchange("v2")
    store.restore()
    assert workspace.conport_vectors.is_dir()
    assert made_by(workspace) is None
    with pytest.raises(Conflict, match="no backup"):
        store.restore()
    exchange("v3")
    assert made_by(workspace) == "v3"


def test_what_conport_had_made_stays_the_backup(workspace, store, exchange):
    workspace.conport_vectors.mkdir()
    (workspace.conport_vectors / "made_by").write_text("conport")
    exchange("v1")
    exchange("v2")
    store.restore()
    assert made_by(workspace) == "conport"
    assert not workspace.conport_model_cache.exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("act", ["replace", "restore"])
def test_killed_between_vectors_and_model_no_model_of_other_vectors_is_left(
    workspace, store, exchange, monkeypatch, act
):
    exchange("v1")

    def killed(*_):
        raise Killed

    monkeypatch.setattr(conport_vectors.Path, "rename", killed)
    with pytest.raises(Killed):
        exchange("v2") if act == "replace" else store.restore()
    assert not workspace.conport_model_cache.exists()


def test_killed_before_the_model_is_laid_conport_finds_none(workspace, store, exchange, monkeypatch):
    exchange("v1")
    monkeypatch.setattr(conport_vectors.shutil, "copytree", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        exchange("v2")
    assert made_by(workspace) == "v2"
    assert not list(workspace.conport_model_cache.rglob("main"))


def test_a_conport_that_runs_keeps_its_model(workspace, store, exchange, start):
    exchange("v1")
    start("conport-mcp")
    with pytest.raises(Conflict, match="running"):
        exchange("v2")
    assert list(workspace.conport_model_cache.rglob("main"))
    assert made_by(workspace) == "v1"


def test_vectors_are_written_without_conports_model(workspace, store, monkeypatch):
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction as Named

    workspace.conport_vectors.parent.mkdir()
    loads = []
    make = Named.__init__

    def made(self, model_name, **options):
        if model_name not in Named.models:
            loads.append(model_name)
            Named.models[model_name] = None
        make(self, model_name=model_name, **options)

    monkeypatch.setattr(Named, "__init__", made)
    monkeypatch.setattr(conport_vectors, "_PAGE", 2)
    items = [Item("decision", str(i), "text", {"conport_item_id": str(i)}) for i in range(5)]
    store.replace(items, np.eye(5, dtype=np.float32))
    assert loads == []
    with closing(sqlite3.connect(workspace.conport_vectors / "chroma.sqlite3")) as written:
        assert written.execute("SELECT count(*) FROM embeddings").fetchone() == (5,)
