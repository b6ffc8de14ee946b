"""Jobs on a real Ray, where the extra `ray` is installed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.real import job_worker

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.jobs.executors.ray import RayExecutor
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytest.importorskip("ray.job_submission", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.real

ENTRY = (str(Path(job_worker.__file__)),)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_agent(address):
    """Ray takes jobs only some seconds after its head has started."""
    from ray.job_submission import JobSubmissionClient

    for _ in range(120):
        try:
            return JobSubmissionClient(address).submit_job(entrypoint="true")
        except (RuntimeError, ConnectionError):
            time.sleep(1)
    pytest.fail("Ray did not start.")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    # Ray's sockets lie under this folder, and a socket's path may have 107 characters.
    folder = tmp_path_factory.mktemp("ray")
    port = free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
    options = {
        "port": free_port(),
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        "dashboard-agent-listen-port": free_port(),
        "object-store-memory": 10**8,
        "temp-dir": f"/tmp/{folder.name}-{os.getpid()}",
    }
    head = subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in options.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    wait_for_agent(f"http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}"
    head.send_signal(signal.SIGTERM)
    head.wait()


@pytest.fixture
def store(tmp_path, address):
    workspace = Workspace(tmp_path, Settings.load(tmp_path))
    workspace.prepare()
    db = Database(workspace.database)
    yield JobStore(db, workspace, RayExecutor(address, ENTRY))
    db.close()


def until(store, job_id, condition):
    for _ in range(120):
        job = store.wait(job_id, 1)
        if condition(job):
            return job
    pytest.fail(f"{job.status}: {job.message} {job.error}")


def test_ray_runs_a_job_to_its_end(store):
    job = until(store, store.submit("finetune", {"do": "nothing"}).job_id, lambda job: job.is_final)
    assert (job.status, job.error) == ("completed", None)
    assert "written to stdout" in store.workspace.job(job.job_id).log.read_text()


def test_a_worker_killed_under_ray_is_reported(store):
    job = until(store, store.submit("index", {"do": "wait"}).job_id, lambda job: job.message == "working")
    os.kill(job.events[-1].fields["pid"], signal.SIGKILL)
    job = until(store, job.job_id, lambda job: job.is_final)
    assert job.error["code"] == "worker_disappeared"


def test_an_entry_that_fails_under_ray_before_it_begins_is_reported(store):
    store.executor.entry = ("-c", "raise SystemExit('cannot import')")
    job = until(store, store.submit("export", {}).job_id, lambda job: job.is_final)
    assert job.error["message"].endswith("cannot import")
