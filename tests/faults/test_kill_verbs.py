"""kill -9 during a re-index and a promotion by the verbs: the old or the new state, complete; asking again ends it."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.planted import FIRST, cosine, plant, some_words, write
from tests.faults.test_verbs_many_processes import check_vectors
from tests.verbs.support import indexed, opened, work

from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.jobs.executors.local import WORKER, LocalExecutor
from ragtune_mcp.core.retrieval.catalog import Catalog

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
KILLS = [2, pytest.param(10, marks=pytest.mark.slow)]
QUERY = "how do i rate a model"


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    app = opened(tmp_path)
    plant(app)
    draw = random.Random(3)
    for number in range(60):
        write(tmp_path, f"docs/{number}.md", some_words(draw))
    indexed(app, paths=["docs"])
    yield app
    app.stop_store()
    app.close()


def check_answers(app, version):
    """Every document is found, each with the score its text has by this version."""
    answer = app.search(QUERY, 100).results
    assert {hit.id: hit.text for hit in answer} == app.documents.all_texts()
    assert all(abs(hit.score - cosine(version, QUERY, hit.text)) < 2e-4 for hit in answer)


def entry(last):
    return LocalExecutor(("-m", "tests.faults.dying", str(last)))


def ask_for_index(app, version):
    """The job that builds the version's collection, after it ended."""
    with pytest.raises(NotReady):
        app.promote_model(version)
    job = app.jobs.list(1)[0]
    while not (job := app.jobs.wait(job.job_id, 60)).is_final:
        pass
    return job


def statements(app):
    return int((app.workspace.root / "statements").read_text())


@pytest.mark.parametrize("kills", KILLS)
def test_a_reindex_killed_anywhere_leaves_the_serving_index_and_is_taken_up_again(app, kills):
    draw, catalog = random.Random(kills), Catalog(app.db)
    app.jobs.executor = entry(0)
    assert ask_for_index(app, "two").status == "completed"
    whole = statements(app)
    points = draw.sample(range(1, whole), kills)
    taken_up = 0
    for round_, point in enumerate(points):
        app.jobs.executor = entry(point)
        killed = ask_for_index(app, "one")
        # At the very end it may have told that it is done.
        assert killed.status == "completed" or killed.error["code"] == "worker_disappeared", killed
        assert app.champion() == FIRST
        check_answers(app, FIRST)
        begun = catalog.find("one", "building")
        taken_up += begun is not None and begun.encoded > 0
        write(app.workspace.root, f"docs/late{round_}.md", some_words(draw))
        app.jobs.executor = LocalExecutor(WORKER)
        if catalog.find("one", "ready") is None or not app.has_index("one"):
            assert ask_for_index(app, "one").status == "completed"
        ready = catalog.find("one", "ready")
        assert begun is None or not begun.encoded or begun.name == ready.name
        assert ready.encoded == app.documents.count()
        assert not app.promote_model("one").changed
        job = app.index_documents(paths=["docs"]).job_id
        assert job is None or app.jobs.wait(job, 60).status in ("running", "completed")
        while job and not app.jobs.wait(job, 60).is_final:
            pass
        check_answers(app, FIRST)
        check_vectors(app, "one")
        app.index.prune(lambda: [FIRST])
    sys.stdout.write(
        f"killed before statements {points} of {whole}; {taken_up} builds were taken up half-done\n"
    )


@pytest.mark.parametrize("kills", KILLS)
def test_a_promotion_killed_anywhere_has_happened_wholly_or_not_at_all(app, kills):
    draw = random.Random(kills)
    with pytest.raises(NotReady):
        app.promote_model("one")
    work(app, app.jobs.list(1)[0].job_id)
    app.registry.set_alias("challenger", "one", actor="test", reason="")
    assert promote(app, 0) == 0
    whole = statements(app)
    # At least one within its transaction, which is near the end, and one right after it.
    points = [whole - draw.randint(0, 12), whole + 1, *draw.sample(range(1, whole), kills - 2)]
    happened = []
    for point in points:
        if app.champion() == "one":
            app.rollback_model(FIRST, confirm=True)
        app.registry.set_alias("challenger", "one", actor="test", reason="")
        decisions = app.outbox.pending()
        assert promote(app, point) == -signal.SIGKILL
        happened.append(app.champion() == "one")
        entries = app.registry.audit.entries("champion")
        assert app.champion() == entries[-1].after
        assert app.outbox.pending() - decisions == happened[-1]
        assert app.registry.alias("challenger") == (None if happened[-1] else "one")
        check_answers(app, app.champion())
        if not happened[-1]:
            assert app.promote_model("one", confirm=True).changed
        check_answers(app, "one")
    sys.stdout.write(f"killed before statements {points} of {whole}; the switch had happened: {happened}\n")


def promote(app, point):
    command = [
        sys.executable,
        "-m",
        "tests.faults.dying",
        str(point),
        "promote",
        str(app.workspace.root),
        "one",
    ]
    return subprocess.run(command, cwd=ROOT).returncode
