"""Real detached worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.real import job_worker

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import JobFailed
from ragtune_mcp.core.jobs.executors.local import LocalExecutor
from ragtune_mcp.core.jobs.processes import ProcessName, start_time
from ragtune_mcp.core.jobs.rows import read_job
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytestmark = pytest.mark.real

_PATIENCE_S = 60
ENTRY = (str(Path(job_worker.__file__)),)


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path, Settings.load(tmp_path))
    workspace.prepare()
    return workspace


@pytest.fixture
def store(workspace):
    db = Database(workspace.database)
    store = JobStore(db, workspace, LocalExecutor(ENTRY))
    yield store
    for job in store.list(100):
        holder = ProcessName.parse(job.worker)
        if not job.is_final and holder:
            holder.kill_group()
    db.close()


def until(store, job_id, condition):
    """The job once the condition holds; fails with what it is instead."""
    for _ in range(_PATIENCE_S * 5):
        job = store.wait(job_id, 0.2)
        if condition(job):
            return job
        if job.is_final:
            break
    pytest.fail(f"{job.status}: {job.message} {job.error}")


def until_true(condition):
    for _ in range(_PATIENCE_S * 50):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen")


def is_working(job):
    return job.message == "working"


def ended(store, job_id):
    return until(store, job_id, lambda job: job.is_final)


def runs(workspace, job):
    return (workspace.job(job.job_id).folder / "runs").read_text().split()


def test_a_worker_is_detached_and_its_output_is_the_log(store, workspace):
    job = ended(store, store.submit("finetune", {"do": "nothing"}).job_id)
    assert job.status == "completed"
    pid = job.result["pid"]
    assert job.result["ppid"] != os.getpid()
    assert job.result == {
        "pid": pid,
        "ppid": job.result["ppid"],
        "is_session_leader": True,
        "is_group_leader": True,
        "cwd": str(workspace.root),
        "stdin_at_end": True,
        "omp_wait_policy": "PASSIVE",
    }
    log = workspace.job(job.job_id).log.read_text()
    assert f"job {job.job_id} completed" in log
    assert "written to stdout" in log


def test_a_worker_survives_the_end_of_the_process_group_that_started_it(store, workspace):
    code = (
        "import sys; from pathlib import Path; from ragtune_mcp.core.workspace import Workspace;"
        "from ragtune_mcp.core.settings import Settings; from ragtune_mcp.core.database import Database;"
        "from ragtune_mcp.core.jobs.store import JobStore;"
        "from ragtune_mcp.core.jobs.executors.local import LocalExecutor;"
        "root = Path(sys.argv[1]); w = Workspace(root, Settings.load(root));"
        "s = JobStore(Database(w.database), w, LocalExecutor(sys.argv[2:]));"
        "print(s.submit('finetune', {'do': 'wait'}).job_id, flush=True); input()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root), *ENTRY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    job_id = server.stdout.readline().strip()
    os.killpg(server.pid, signal.SIGKILL)
    server.communicate()
    until(store, job_id, is_working)
    (workspace.root / "go").touch()
    assert ended(store, job_id).status == "completed"


def test_a_killed_worker_is_reported_and_the_next_job_starts(store, workspace):
    first = store.submit("finetune", {"do": "wait"})
    second = store.submit("finetune", {"do": "nothing"})
    pid = until(store, first.job_id, is_working).events[-1].fields["pid"]
    assert store.get(second.job_id).status == "queued"
    os.kill(pid, signal.SIGKILL)
    failed = ended(store, first.job_id)
    assert (failed.status, failed.error["code"]) == ("failed", "worker_disappeared")
    assert "disappeared while: working" in failed.error["message"]
    assert ended(store, second.job_id).status == "completed"


def test_a_worker_that_ends_starts_the_next_without_any_server(store, workspace):
    jobs = [store.submit("finetune", {"do": "nothing"}) for _ in range(3)]
    # Only the rows are read: `get` of a waiting job would start it.
    until_true(lambda: all(read_job(store.db, job.job_id).is_final for job in jobs))
    assert [store.get(job.job_id).status for job in jobs] == ["completed"] * 3
    assert [len(runs(workspace, job)) for job in jobs] == [1, 1, 1]


def test_a_running_worker_is_cancelled_through_the_database(store):
    job = store.submit("index", {"do": "wait"})
    until(store, job.job_id, is_working)
    store.request_cancel(job.job_id)
    assert ended(store, job.job_id).status == "cancelled"


def test_sigterm_cancels_a_running_worker(store):
    job = store.submit("index", {"do": "wait"})
    pid = until(store, job.job_id, is_working).events[-1].fields["pid"]
    os.kill(pid, signal.SIGTERM)
    assert ended(store, job.job_id).status == "cancelled"


def test_a_worker_that_ignores_its_cancellation_is_killed(store):
    job = store.submit("index", {"do": "ignore"})
    pid = until(store, job.job_id, is_working).events[-1].fields["pid"]
    store.request_cancel(job.job_id)
    store.db.connection.execute("UPDATE jobs SET cancel_requested_at='2026-01-08T14:30:22Z'")
    assert store.request_cancel(job.job_id).status == "cancelled"
    until_true(lambda: start_time(pid) is None)


def test_a_crashed_job_is_restarted_from_its_checkpoint(store, workspace):
    job_id = store.submit("finetune", {"do": "resume"}).job_id
    failed = ended(store, job_id)
    assert failed.error["code"] == "worker_disappeared"
    store.restart(job_id)
    done = ended(store, job_id)
    assert (done.result, done.attempt) == ({"resumed_at": 1}, 2)


def test_many_submissions_from_two_stores_run_each_job_once(store, workspace):
    other = Database(workspace.database)
    stores = [store, JobStore(other, workspace, LocalExecutor(ENTRY))]
    jobs = [stores[n % 2].submit("finetune" if n < 4 else "export", {"do": "nothing"}) for n in range(8)]
    assert [ended(store, job.job_id).status for job in jobs] == ["completed"] * 8
    assert [len(runs(workspace, job)) for job in jobs] == [1] * 8
    other.close()


def test_a_worker_whose_log_cannot_be_written_is_not_started(store, workspace, monkeypatch):
    nowhere = workspace.job("removed")
    monkeypatch.setattr(Workspace, "job", lambda self, job_id: nowhere)
    job = store.create("index", {"do": "nothing"})
    nowhere.folder.rmdir()
    with pytest.raises(JobFailed, match="No such file or directory"):
        store.start_queued(must_start=job.job_id)
    monkeypatch.undo()
    assert store.get(job.job_id).error["code"] == "job_failed"


def test_the_real_entry_records_why_a_job_cannot_be_done(workspace):
    db = Database(workspace.database)
    store = JobStore(db, workspace)
    job = ended(store, store.submit("export", {"version": "no_such_version", "format": "onnx"}).job_id)
    assert (job.status, job.error["code"]) == ("failed", "unknown_version")
    assert "no_such_version" in job.error["message"]
    assert "unknown_version" in workspace.job(job.job_id).log.read_text()
    db.close()


def test_a_module_in_the_workspace_does_not_shadow_the_workers_own(workspace):
    (workspace.root / "json.py").write_text("raise SystemExit('imported from the workspace')")
    db = Database(workspace.database)
    store = JobStore(db, workspace)
    job = ended(store, store.submit("export", {"version": "no_such_version", "format": "onnx"}).job_id)
    assert job.error["code"] == "unknown_version"
    db.close()
