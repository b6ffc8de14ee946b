"""The Ray executor against a double of Ray's job client; `tests/real/test_ray.py` uses Ray itself."""

from __future__ import annotations

import shlex
import sys
from types import ModuleType, SimpleNamespace

import pytest

from ragtune_mcp.core.errors import ServiceUnavailable
from ragtune_mcp.core.jobs.executors import executor_for
from ragtune_mcp.core.jobs.executors.local import LocalExecutor
from ragtune_mcp.core.jobs.executors.ray import RayExecutor
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.settings import Settings


@pytest.fixture
def ray(monkeypatch):
    """Ray's job client: `submitted`, `statuses` by submission id, and `error` raised by every call."""
    double = SimpleNamespace(submitted={}, statuses={}, error=None, address="")

    class JobSubmissionClient:
        def __init__(self, address):
            double.address = address
            if double.error:
                raise double.error

        def submit_job(self, *, entrypoint, submission_id):
            double.submitted[submission_id] = entrypoint
            double.statuses[submission_id] = "PENDING"
            return submission_id

        def get_job_status(self, submission_id):
            if submission_id not in double.statuses:
                raise RuntimeError(f"Request failed with status code 404: {submission_id}.")
            return SimpleNamespace(is_terminal=lambda: double.statuses[submission_id] == "FAILED")

    module = ModuleType("ray.job_submission")
    module.JobSubmissionClient = JobSubmissionClient
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.job_submission", module)
    return double


def test_a_job_is_submitted_under_its_id_and_attempt(ray, db, workspace):
    store = JobStore(db, workspace, RayExecutor("http://127.0.0.1:9"))
    job = store.submit("finetune", {})
    assert ray.address == "http://127.0.0.1:9"
    assert list(ray.submitted) == [f"{job.job_id}-1"]
    assert job.worker == f"ray:{job.job_id}-1"
    words = shlex.split(ray.submitted[f"{job.job_id}-1"])
    worker = ["exec", sys.executable, "-P", "-m", "ragtune_mcp.worker", str(workspace.root), job.job_id]
    assert words == [*worker, ">>", str(workspace.job(job.job_id).log), "2>&1"]


def test_a_submission_that_ended_before_the_worker_came_fails_the_job(ray, db, workspace):
    store = JobStore(db, workspace, RayExecutor())
    job = store.submit("finetune", {})
    assert store.get(job.job_id).status == "running"
    ray.statuses[f"{job.job_id}-1"] = "FAILED"
    assert store.get(job.job_id).error["code"] == "worker_disappeared"


def test_a_submission_that_ray_forgot_is_dead_and_one_it_cannot_be_asked_about_is_not(ray):
    executor = RayExecutor()
    assert not executor.is_alive("ray:ft_1-1")
    ray.error = ConnectionError("refused")
    assert executor.is_alive("ray:ft_1-1")


def test_a_cluster_that_does_not_answer_is_named(ray, db, workspace):
    ray.error = ConnectionError("refused")
    store = JobStore(db, workspace, RayExecutor("http://127.0.0.1:9"))
    with pytest.raises(ServiceUnavailable, match="http://127.0.0.1:9: refused") as caught:
        store.submit("export", {})
    assert caught.value.code == "ray_unavailable"
    assert store.list()[0].error["code"] == "ray_unavailable"


def test_a_missing_ray_is_said_with_the_remedy(monkeypatch, db, workspace):
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(ServiceUnavailable, match="not installed") as caught:
        JobStore(db, workspace, RayExecutor()).submit("export", {})
    assert "ragtune-mcp[ray]" in caught.value.hint


def test_the_executor_is_the_one_the_settings_name():
    assert isinstance(executor_for(Settings()), LocalExecutor)
    ray = executor_for(Settings(ragtune_executor="ray", ragtune_ray_address="http://10.0.0.1:8265"))
    assert ray.address == "http://10.0.0.1:8265"
