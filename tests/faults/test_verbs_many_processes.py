"""Two servers, the command line and workers on one workspace: no answer of a wrong model, no lost document."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.faults.planted import SEEDS, plant, write
from tests.models.support import expected
from tests.retrieval.support import vector_ids
from tests.verbs.support import indexed, opened, work

from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.reindex import build_collection
from ragtune_mcp.core.retrieval.store import ChromaStore

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
# Who does what share of the operations in which folder: two write and index the same one.
ACTORS = {"server-one": ("servers", 0.4), "server-two": ("servers", 0.4), "command": ("command", 0.2)}


@pytest.fixture
def app(tmp_path):
    app = opened(tmp_path)
    plant(app)
    write(tmp_path, "README.md", "how do i roll back")
    indexed(app, paths=["README.md"])
    with pytest.raises(NotReady):
        app.promote_model("one")
    work(app, app.jobs.list(1)[0].job_id)
    app.promote_model("one", confirm=True)
    yield app
    app.stop_store()
    app.close()


@pytest.mark.parametrize("operations", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_answer_is_of_one_model_and_shows_every_document(app, operations):
    root = app.workspace.root
    command = [sys.executable, "-m", "tests.faults.verbs_actor", str(root)]
    running = [
        subprocess.Popen([*command, name, folder, str(int(share * operations))], cwd=ROOT)
        for name, (folder, share) in ACTORS.items()
    ]
    assert [process.wait(1800) for process in running] == [0, 0, 0]
    outcomes = [json.loads((root / f"{name}.outcome.json").read_text()) for name in ACTORS]
    counts = sum((Counter(outcome["counts"]) for outcome in outcomes), Counter())
    jobs = Counter(job.status for job in app.jobs.list(10_000))
    sys.stdout.write(f"{dict(counts)}, jobs {dict(jobs)}\n")
    assert sum(counts.values()) - counts["hits being replaced"] == operations
    assert counts["searched"] > operations / 2
    assert min(counts["promoted"], counts["rolled back"]) >= max(1, operations // 200)
    assert set(jobs) <= {"completed", "running", "queued"}

    texts = app.documents.all_texts()
    texts.pop("README.md")
    assert texts == {doc_id: text for outcome in outcomes for doc_id, text in outcome["mine"].items()}
    aliased = [(entry.before, entry.after) for entry in app.registry.audit.entries("champion")]
    assert all(earlier[1] == later[0] for earlier, later in zip(aliased, aliased[1:], strict=False))
    for version in SEEDS:
        check_vectors(app, version)


def check_vectors(app, version):
    """Brought up to date, the version's collection holds its own vector of every text and nothing else."""
    encoder = app.encoders.get(version, wait_s=60)
    build_collection(app.index, app.documents, version, encoder)
    texts, chroma = app.documents.all_texts(), ChromaVectors(ChromaStore(app.workspace))
    collection = app.index.usable(version, encoder.digest)
    assert chroma.ids(collection) == vector_ids(texts)
    for doc_id, text in texts.items():
        (stored,) = chroma.get(collection, list(vector_ids({doc_id: text}))).values()
        assert np.allclose(stored, expected(text, SEEDS[version]), atol=1e-5)
