"""The store's owner process: started on demand, one only, ends when unused. Uses real Chroma servers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ragtune_mcp.core.errors import ChromaUnavailable, InvalidInput
from ragtune_mcp.core.retrieval import store as store_module
from ragtune_mcp.core.retrieval.keeper import Owner, heartbeat
from ragtune_mcp.core.retrieval.store import ChromaStore, parse_url, start_keeper, stop_store
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace


@pytest.fixture
def local(workspace):
    """A workspace with its own server, ended after the test."""
    yield workspace
    stop_store(workspace)


def names(store):
    return sorted(c.name for c in store.attempt(lambda client: client.list_collections()))


def make(store, name):
    return store.attempt(lambda client: client.get_or_create_collection(name, embedding_function=None))


def test_the_server_starts_at_the_first_use_and_is_shared(local):
    assert Owner.read(local.chroma_owner) is None
    one, two = ChromaStore(local), ChromaStore(local)
    make(one, "shared")
    owner = Owner.read(local.chroma_owner)
    assert owner.is_alive
    assert heartbeat(owner.port)
    assert names(two) == ["shared"]
    assert Owner.read(local.chroma_owner) == owner


def test_starters_at_the_same_time_end_with_one_server(local):
    stores = [ChromaStore(local) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: make(pair[1], f"name-{pair[0]}"), enumerate(stores)))
    assert names(stores[0]) == sorted(f"name-{i}" for i in range(6))


def test_a_second_keeper_gives_way_to_the_first(local):
    store = ChromaStore(local)
    make(store, "kept")
    owner = Owner.read(local.chroma_owner)
    assert start_keeper(local).wait(30) == 0
    assert Owner.read(local.chroma_owner) == owner
    assert names(store) == ["kept"]


def test_a_killed_server_is_replaced_and_its_data_is_there(local):
    store = ChromaStore(local)
    make(store, "kept").upsert(ids=["a"], embeddings=[[1.0, 0.0]])
    first = Owner.read(local.chroma_owner)
    os.kill(first.pid, signal.SIGKILL)
    assert store.attempt(lambda client: client.get_collection("kept", embedding_function=None).count()) == 1
    second = Owner.read(local.chroma_owner)
    assert second.pid != first.pid
    assert second.is_alive


def killed_at_once(times):
    """A way to start keepers of which the first ones are killed while they start."""
    started = []

    def start(workspace):
        child = start_keeper(workspace)
        started.append(child)
        if len(started) <= times:
            child.kill()
            child.wait()
        return child

    return start, started


def test_a_server_killed_while_it_starts_is_started_again(local, monkeypatch):
    start, started = killed_at_once(2)
    monkeypatch.setattr(store_module, "start_keeper", start)
    assert names(ChromaStore(local)) == []
    assert len(started) == 3


def test_a_server_that_is_killed_again_and_again_is_an_error(local, monkeypatch):
    start, started = killed_at_once(100)
    monkeypatch.setattr(store_module, "start_keeper", start)
    with pytest.raises(ChromaUnavailable, match="exit status -9"):
        names(ChromaStore(local))
    assert 1 < len(started) < 10


def test_a_server_killed_three_times_within_one_request_is_replaced_each_time(local):
    store = ChromaStore(local)
    make(store, "kept")
    kills = []

    def unlucky(client):
        if len(kills) < 3:
            kills.append(Owner.read(local.chroma_owner).pid)
            os.kill(kills[-1], signal.SIGKILL)
        return sorted(c.name for c in client.list_collections())

    assert store.attempt(unlucky) == ["kept"]
    assert len(set(kills)) == 3


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"place": "x", "pid": 1, "started": "1", "port": 1}', "nonsense"]
)
def test_a_stale_owner_file_is_recovered(local, content):
    local.chroma_owner.write_text(content)
    assert names(ChromaStore(local)) == []
    assert Owner.read(local.chroma_owner).is_alive


def test_stopping_ends_the_server_and_the_next_use_starts_another(local):
    store = ChromaStore(local)
    make(store, "kept")
    first = Owner.read(local.chroma_owner)
    assert stop_store(local)
    assert not first.is_alive
    assert not local.chroma_owner.exists()
    assert not stop_store(local)
    assert names(store) == ["kept"]


def test_a_copy_of_a_workspace_gets_a_server_of_its_own(local, tmp_path_factory):
    store = ChromaStore(local)
    make(store, "kept")
    owner = Owner.read(local.chroma_owner)
    root = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(local.root, root)
    copy = Workspace(root, Settings.load(root))
    assert not stop_store(copy)
    try:
        make(ChromaStore(copy), "of-the-copy")
        assert Owner.read(copy.chroma_owner).port != owner.port
        assert names(store) == ["kept"]
    finally:
        stop_store(copy)
    assert owner.is_alive


def test_a_workspace_that_is_moved_keeps_its_server(local, tmp_path_factory):
    make(ChromaStore(local), "kept")
    owner = Owner.read(local.chroma_owner)
    root = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(local.root, root)
    moved = Workspace(root, Settings.load(root))
    assert Owner.of(moved) == owner
    stop_store(moved)


def test_an_unused_server_ends_by_itself(local):
    (local.root / ".env").write_text("RAGTUNE_CHROMA_IDLE_S=5\n")
    keeper = start_keeper(local)
    assert keeper.wait(60) == 0
    assert not local.chroma_owner.exists()


def test_a_server_whose_workspace_is_deleted_ends(local):
    (local.root / ".env").write_text("RAGTUNE_CHROMA_IDLE_S=5\n")
    keeper = start_keeper(local)
    names(ChromaStore(local))
    local.chroma_owner.unlink()
    assert keeper.wait(60) == 0


def test_the_server_outlives_the_process_that_started_it(local):
    code = (
        "import sys; from pathlib import Path\n"
        "from ragtune_mcp.core.settings import Settings\n"
        "from ragtune_mcp.core.workspace import Workspace\n"
        "from ragtune_mcp.core.retrieval.store import ChromaStore\n"
        "root = Path(sys.argv[1]); store = ChromaStore(Workspace(root, Settings.load(root)))\n"
        "store.attempt(lambda c: c.get_or_create_collection('from-child', embedding_function=None))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(local.root)], check=True)
    assert Owner.read(local.chroma_owner).is_alive
    assert names(ChromaStore(local)) == ["from-child"]


def test_a_client_that_is_connected_keeps_working_after_another_restarted_the_server(local):
    one, two = ChromaStore(local), ChromaStore(local)
    make(one, "aaa")
    names(two)
    stop_store(local)
    make(two, "bbb")
    assert names(one) == ["aaa", "bbb"]


def test_many_threads_share_one_connection(local):
    store = ChromaStore(local)
    handle = make(store, "rows")
    barrier = threading.Barrier(8)

    def work(n):
        barrier.wait()
        for i in range(10):
            handle.upsert(ids=[f"{n}-{i}"], embeddings=[[1.0, float(i)]])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert handle.count() == 80


def test_a_proxy_in_the_environment_does_not_catch_the_local_server(local, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert names(ChromaStore(local)) == []
    assert "NO_PROXY" not in os.environ


def test_a_remote_server_that_does_not_answer_is_named(workspace):
    workspace.settings.ragtune_chroma_url = "http://127.0.0.1:9"
    with pytest.raises(ChromaUnavailable, match="127.0.0.1:9"):
        names(ChromaStore(workspace))
    assert not workspace.chroma_owner.exists()


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://x", "http://x/path", "nonsense"])
def test_a_url_that_names_no_server_is_refused(url):
    with pytest.raises(InvalidInput, match="RAGTUNE_CHROMA_URL"):
        parse_url(url, "RAGTUNE_CHROMA_URL")


def test_ports_follow_the_scheme():
    assert parse_url("http://h", "X") == ("h", 8000, False)
    assert parse_url("https://h", "X") == ("h", 443, True)
    assert parse_url("http://h:81/", "X") == ("h", 81, False)
