"""A workspace whose jobs are done in this process, and a model small enough for that."""

from __future__ import annotations

from functools import partial

from tests.finetune.tiny import make_corpus, make_dataset, write_model
from tests.jobs.support import GONE, Recorder
from tests.models.support import make_encoder, make_model

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.dataset.export import export_pairs
from ragtune_mcp.core.jobs.worker import run
from ragtune_mcp.core.pipeline import HANDLERS

BASE = "all-MiniLM-L6-v2"


def opened(root):
    """A workspace that starts no worker: jobs wait for `work`."""
    app = RagTune.open(root)
    app.jobs.executor = Recorder()
    return app


def with_training_data(root):
    """A workspace with a tiny model in `./base` and a data set; returns it and the data set's path."""
    app = opened(root)
    write_model(root / "base")
    path = root / "training_data" / "training_1.csv"
    path.parent.mkdir(exist_ok=True)
    export_pairs(make_dataset(make_corpus(), test=4).pairs, path, "csv", dataset_id="training_1")
    return app, "./training_data/training_1.csv"


def work(app, job_id):
    """Do a job here, as its worker would."""
    return run(job_id, app.jobs, {kind: partial(handler, app) for kind, handler in HANDLERS.items()})


def lose_worker(app, job_id):
    """Make it look as if the worker that holds the job was killed."""
    with app.db.transaction() as connection:
        connection.execute("UPDATE jobs SET worker=? WHERE job_id=?", (GONE, job_id))


def in_conport(app, category):
    """Key -> value of what waits for ConPort."""
    return {row["key"]: row["value"] for row in app.outbox.pending_custom_data(category)}


def serve(app, version, *, kind="tuned", gate=None, seed=0):
    """Register a version with a tiny encoder; searches can use it once it is indexed."""
    folder = make_model(app.workspace.models / version, weights=version.encode())
    if kind == "base":
        model = app.registry.register_base(version, folder)
    else:
        model = app.registry.register(version, folder, base_model=BASE, gate=gate)
    make_encoder(app.encoders.folder(version), model.digest, seed=seed)
    return version


def indexed(app, **arguments):
    """Index, whether at once or by a job, and return the answer."""
    answer = app.index_documents(**arguments)
    if answer.job_id:
        assert work(app, answer.job_id).status == "completed"
    return answer
