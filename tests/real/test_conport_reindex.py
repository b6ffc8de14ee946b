"""ConPort's own semantic search with a version of ours, asked through ConPort's own code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.finetune.tiny import write_model

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.models.exporters.onnx import export_onnx
from ragtune_mcp.core.retrieval.conport_vectors import ConPortVectors

# Five ConPorts and three models are loaded.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BASE = "all-MiniLM-L6-v2"
QUERY = "w1 w2 w3"
TEXTS = {
    "decision_1": "Decision Summary: w1 w2\nRationale: w3\nImplementation Details: w4",
    "decision_2": "Decision Summary: w5",
    "progress_entry_1": "Progress: TODO - w6 w7",
    "system_pattern_1": "System Pattern: w8\nDescription: w9 w10",
    "custom_data_2": 'Category: c\nKey: k\nValue: {"a": "w12"}',
    "custom_data_3": "Category: c\nKey: other\nValue: w13 w14",
}
CONPORT = """
import json, sys
from context_portal_mcp.db import models
from context_portal_mcp.handlers import mcp_handlers as conport
workspace, query, write = sys.argv[1:]
given = {"workspace_id": workspace}
if write:
    conport.handle_log_decision(models.LogDecisionArgs(
        summary="w1 w2", rationale="w3", implementation_details="w4", tags=["x", "y"], **given))
    conport.handle_log_decision(models.LogDecisionArgs(summary="w5", **given))
    conport.handle_log_progress(models.LogProgressArgs(status="TODO", description="w6 w7", **given))
    conport.handle_log_system_pattern(models.LogSystemPatternArgs(name="w8", description="w9 w10", **given))
    for key, value in (("k", "w11 old"), ("k", {"a": "w12"}), ("other", "w13 w14"), ("number", 3)):
        conport.handle_log_custom_data(models.LogCustomDataArgs(category="c", key=key, value=value, **given))
found = conport.vector_store_service.query_vector_store(
    workspace, conport.embedding_service.get_embedding(query), top_k=20)
print(json.dumps({row["chroma_doc_id"]: [row["distance"], row["metadata"]] for row in found}))
"""


@pytest.fixture
def app(tmp_path):
    pytest.importorskip("context_portal_mcp")
    root = tmp_path / "project"
    root.mkdir()
    app = RagTune.open(root)
    for version, name in ((BASE, "base"), ("tuned", "fine_tuned_models/tuned")):
        folder = write_model(root / name)
        model = (
            app.registry.register_base(version, folder)
            if version == BASE
            else app.registry.register(version, folder, base_model=BASE)
        )
        export_onnx(folder, app.encoders.folder(model.version))
    yield app
    app.close()


def conport(app, environment, *, write=""):
    """What ConPort finds for QUERY: vector id -> (distance, metadata)."""
    done = subprocess.run(
        [sys.executable, "-c", CONPORT, app.workspace.id, QUERY, write],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=app.workspace.state,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def check_distances(app, found, version):
    encoder = app.encoders.get(version, wait_s=60)
    (query,), vectors = encoder.encode([QUERY]), encoder.encode(list(TEXTS.values()))
    expected = dict(zip(TEXTS, 1 - vectors @ query, strict=True))
    for vector_id, distance in expected.items():
        assert found[vector_id][0] == pytest.approx(float(distance), abs=2e-4), vector_id


def test_conports_search_uses_the_version_until_it_is_restored(app):
    base = ConPortVectors(app.workspace).provide_model(app.registry.get(BASE).path)
    before = conport(app, base, write="yes")
    check_distances(app, before, BASE)
    assert "custom_data_1" in before  # overwritten since, and still found

    plan = app.conport_reindex("tuned")
    assert plan["items"] == {"custom_data": 2, "decision": 2, "progress_entry": 1, "system_pattern": 1}
    assert not plan["changed"]
    assert conport(app, base) == before

    done = app.conport_reindex("tuned", confirm=True)
    after = conport(app, done["environment"])
    assert set(after) == set(TEXTS)
    check_distances(app, after, "tuned")
    for vector_id, (_, metadata) in after.items():
        stamps = [np.datetime64(m["timestamp_created"][:19]) for m in (metadata, before[vector_id][1])]
        assert stamps[0] == stamps[1]
        assert {**metadata, "timestamp_created": ""} == {**before[vector_id][1], "timestamp_created": ""}

    app.conport_reindex("tuned", confirm=True)  # again: the backup stays what ConPort had made
    app.conport_restore()
    base = ConPortVectors(app.workspace).provide_model(app.registry.get(BASE).path)
    assert conport(app, base) == before
    with pytest.raises(Conflict, match="no backup"):
        app.conport_restore()


def test_nothing_is_touched_while_a_conport_runs(app):
    base = ConPortVectors(app.workspace).provide_model(app.registry.get(BASE).path)
    before = conport(app, base, write="yes")
    other = subprocess.Popen(
        [sys.executable, "-c", "input()", "conport-mcp", app.workspace.id], stdin=subprocess.PIPE
    )
    try:
        assert app.conport_reindex("tuned")["running_conports"] == [other.pid]
        for act in (lambda: app.conport_reindex("tuned", confirm=True), app.conport_restore):
            with pytest.raises(Conflict, match=f"running for this workspace .processes {other.pid}"):
                act()
    finally:
        other.communicate(b"\n")
    assert conport(app, base) == before
