from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.models.support import expected, make_encoder

from ragtune_mcp.core.errors import DigestMismatch, ExportMismatch, NotReady, UnknownId
from ragtune_mcp.core.models import pool as pool_module
from ragtune_mcp.core.models.encoder import OnnxEncoder
from ragtune_mcp.core.models.pool import EncoderPool

WAIT_S = 30


@pytest.fixture
def pool(workspace, registry):
    return EncoderPool(workspace, registry)


@pytest.fixture
def served(tuned, workspace):
    """Register a version and give it a serving encoder of its own."""

    def serve(version, seed=0, **options):
        model = tuned(version)
        make_encoder(
            workspace.encoder(model.digest).folder, options.pop("digest", model.digest), seed=seed, **options
        )
        return model

    return serve


@pytest.fixture
def loads(monkeypatch):
    """Loading waits for `go`; `names` are the folders loaded so far."""

    class Loads:
        go = threading.Event()
        names: list[str] = []

    class Slow(OnnxEncoder):
        def __init__(self, folder):
            Loads.names.append(folder.name)
            assert Loads.go.wait(WAIT_S)
            super().__init__(folder)

    Loads.go, Loads.names = threading.Event(), []
    monkeypatch.setattr(pool_module, "OnnxEncoder", Slow)
    yield Loads
    Loads.go.set()


def test_an_encoder_is_loaded_once_and_kept(pool, served, loads):
    model = served("v1")
    loads.go.set()
    first = pool.get("v1", wait_s=WAIT_S)
    assert first.digest == model.digest
    assert pool.get("v1", wait_s=0) is first
    assert len(loads.names) == 1


def test_while_it_loads_the_caller_is_told_so(pool, served, loads):
    served("v1")
    for _ in range(2):
        with pytest.raises(NotReady, match="v1 is warming up") as caught:
            pool.get("v1", wait_s=0)
        assert "Repeat the call" in caught.value.hint
    assert not pool.is_ready("v1")
    loads.go.set()
    pool.get("v1", wait_s=WAIT_S)
    assert pool.is_ready("v1")
    assert len(loads.names) == 1


def test_many_callers_at_once_load_it_once(pool, served, loads):
    served("v1")
    loads.go.set()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: pool.get("v1", wait_s=WAIT_S), range(8)))
    assert len(set(map(id, found))) == len(loads.names) == 1


def test_a_version_that_was_not_exported_is_not_ready(pool, tuned):
    tuned("v1")
    with pytest.raises(NotReady, match="has not been exported yet") as caught:
        pool.get("v1", wait_s=WAIT_S)
    assert "index_documents" in caught.value.hint
    assert not pool.is_ready("v1")


def test_an_encoder_exported_later_is_found(pool, tuned, workspace):
    model = tuned("v1")
    with pytest.raises(NotReady):
        pool.get("v1")
    make_encoder(workspace.encoder(model.digest).folder, model.digest)
    assert pool.get("v1", wait_s=WAIT_S).digest == model.digest


def test_an_unknown_version_is_an_error(pool):
    for ask in (pool.get, pool.is_ready, pool.folder, pool.check):
        with pytest.raises(UnknownId):
            ask("nope")


def test_a_damaged_encoder_is_refused_and_found_once_it_is_mended(pool, served, workspace):
    model = served("v1")
    path = workspace.encoder(model.digest).model
    good = path.read_bytes()
    path.write_bytes(good + b" ")
    for _ in range(2):
        with pytest.raises(DigestMismatch):
            pool.get("v1", wait_s=WAIT_S)
    path.write_bytes(good)
    pool.get("v1", wait_s=WAIT_S)


def test_another_models_encoder_in_its_folder_is_refused(pool, served):
    served("v1", digest="f" * 64)
    with pytest.raises(DigestMismatch, match="another model"):
        pool.get("v1", wait_s=WAIT_S)


def test_the_encoder_used_longest_ago_is_let_go(pool, served, loads):
    loads.go.set()
    models = {version: served(version) for version in ("v1", "v2", "v3", "v4")}
    for version in ("v1", "v2", "v3", "v1", "v4"):
        pool.get(version, wait_s=WAIT_S)
    assert [pool.is_ready(version) for version in models] == [True, False, True, True]


def test_only_a_complete_export_of_the_version_counts_as_exported(pool, tuned, served, workspace):
    tuned("bare"), served("another", digest="f" * 64)
    assert not pool.is_exported("bare")
    assert not pool.is_exported("another")
    paths = workspace.encoder(served("v1").digest)
    assert pool.is_exported("v1")
    for path in (paths.config, paths.model, paths.tokenizer):
        good = path.read_bytes()
        path.unlink()
        assert not pool.is_exported("v1")
        path.write_bytes(b"")
        assert not pool.is_exported("v1")
        path.write_bytes(good)
        assert pool.is_exported("v1")


# Queries


def test_a_query_is_encoded_once(pool, served, monkeypatch):
    served("v1")
    pool.get("v1", wait_s=WAIT_S)
    calls = []
    encode = OnnxEncoder.encode
    monkeypatch.setattr(OnnxEncoder, "encode", lambda self, texts: calls.append(texts) or encode(self, texts))
    first, again = pool.embed_query("v1", "roll back"), pool.embed_query("v1", "roll back")
    np.testing.assert_allclose(first, expected("roll back"), atol=1e-6)
    assert again is first
    assert calls == [["roll back"]]


def test_two_models_never_share_a_query_vector(pool, served):
    served("v1", seed=1), served("v2", seed=2)
    for version, seed in (("v1", 1), ("v2", 2), ("v1", 1)):
        vector = pool.embed_query(version, "roll back", wait_s=WAIT_S)
        np.testing.assert_allclose(vector, expected("roll back", seed), atol=1e-6)


def test_a_remembered_vector_cannot_be_changed_by_its_reader(pool, served):
    served("v1")
    with pytest.raises(ValueError, match="read-only"):
        pool.embed_query("v1", "index", wait_s=WAIT_S)[0] = 0


def test_only_the_last_queries_are_remembered(pool, served, monkeypatch):
    monkeypatch.setattr(pool_module, "_QUERIES_KEPT", 2)
    served("v1")
    first = pool.embed_query("v1", "index", wait_s=WAIT_S)
    pool.embed_query("v1", "search")
    assert pool.embed_query("v1", "index") is first
    pool.embed_query("v1", "rating")
    assert pool.embed_query("v1", "index") is first
    assert [text for _, text in pool._queries] == ["rating", "index"]


def test_a_query_is_not_ready_while_the_encoder_loads(pool, served, loads):
    served("v1")
    with pytest.raises(NotReady):
        pool.embed_query("v1", "index", wait_s=0)


# Checking


def test_an_encoder_that_gives_the_recorded_vectors_passes(pool, served):
    served("v1")
    pool.check("v1")


def test_an_encoder_that_gives_another_vector_fails(pool, served, workspace):
    model = served("v1")
    path = workspace.encoder(model.digest).config
    config = json.loads(path.read_text())
    config["probes"][0]["vector"][0] += 0.1
    path.write_text(json.dumps(config))
    with pytest.raises(ExportMismatch, match="how do i roll back"):
        pool.check("v1")


def test_a_check_looks_at_the_files_and_not_at_the_copy_in_memory(pool, served, workspace):
    path = workspace.encoder(served("v1").digest).model
    pool.get("v1", wait_s=WAIT_S)
    assert pool.is_exported("v1")
    stat, good = path.stat(), path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DigestMismatch, match=r"model\.onnx"):
        pool.check("v1")
    assert not pool.is_exported("v1")
    assert pool.is_ready("v1")  # searches in this process go on
    path.write_bytes(good)
    pool.check("v1")


def test_a_checked_encoder_is_the_one_that_serves(pool, served):
    served("v1")
    pool.check("v1")
    assert pool.is_ready("v1")


def test_a_version_that_was_not_exported_does_not_pass(pool, tuned):
    tuned("v1")
    with pytest.raises(NotReady, match="has not been exported yet"):
        pool.check("v1")
