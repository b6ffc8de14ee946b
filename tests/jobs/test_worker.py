from __future__ import annotations

import os
import signal
import threading

import pytest

from ragtune_mcp.core.errors import NotEnoughData
from ragtune_mcp.core.jobs import worker
from ragtune_mcp.core.jobs.worker import run


def test_a_handler_gets_the_job_and_its_result_is_kept(store, workspace):
    job_id = store.submit("index", {"paths": ["a"]}).job_id

    def handler(ctx):
        ctx.progress(0.5, "half", done=1)
        ctx.event("note", size=3)
        assert ctx.paths == workspace.job(job_id)
        assert ctx.workspace is workspace
        return {"paths": ctx.job.spec["paths"]}

    job = run(job_id, store, {"index": handler})
    assert (job.status, job.result) == ("completed", {"paths": ["a"]})
    assert [event.message for event in job.events] == ["started", "half", "note", "completed"]


def test_a_deliberate_error_keeps_its_code_and_hint(store):
    def handler(ctx):
        raise NotEnoughData("have 3, need 50", hint="Collect more.")

    job = run(store.submit("finetune", {}).job_id, store, {"finetune": handler})
    assert dict(job.error) == {
        "code": "not_enough_data",
        "message": "have 3, need 50",
        "hint": "Collect more.",
    }


def test_any_other_error_is_recorded_and_its_traceback_logged(store, caplog):
    job_id = store.submit("finetune", {}).job_id
    job = run(job_id, store, {"finetune": lambda ctx: {}[1]})
    assert dict(job.error) == {
        "code": "job_failed",
        "message": "KeyError: 1",
        "hint": f"The traceback is in ./.ragtune/jobs/{job_id}/worker.log.",
    }
    assert "Traceback" in caplog.text


def test_a_result_that_is_no_json_fails_the_job(store):
    job = run(store.submit("export", {}).job_id, store, {"export": lambda ctx: {"x": object()}})
    assert (job.status, job.error["message"]) == (
        "failed",
        "TypeError: Object of type object is not JSON serializable",
    )


def test_a_kind_without_a_handler_fails_the_job(store):
    job = run(store.submit("export", {}).job_id, store, {})
    assert job.error["message"] == "Nothing here can do a job of kind 'export'."


def test_a_cancelled_job_stops_at_the_next_report(store):
    def handler(ctx):
        store.request_cancel(ctx.job.job_id)
        ctx.progress(0.1, "never")
        return {}

    job = run(store.submit("finetune", {}).job_id, store, {"finetune": handler})
    assert (job.status, job.progress) == ("cancelled", 0.0)


def test_sigterm_cancels_the_job_and_the_old_handler_returns(store):
    before = signal.getsignal(signal.SIGTERM)

    def handler(ctx):
        os.kill(os.getpid(), signal.SIGTERM)
        ctx.check_cancelled()
        return {}

    assert run(store.submit("finetune", {}).job_id, store, {"finetune": handler}).status == "cancelled"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_job_cancelled_before_its_worker_came_is_not_done(store):
    job_id = store.submit("finetune", {}).job_id
    store.request_cancel(job_id)
    job = run(job_id, store, {"finetune": lambda ctx: pytest.fail("was done")})
    assert job.status == "cancelled"


@pytest.mark.parametrize("handler", [lambda ctx: {}, lambda ctx: {}[1]])
def test_the_next_waiting_job_is_started_however_the_first_ended(store, executor, handler):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    run(first.job_id, store, {"finetune": handler})
    assert executor.started == [first.job_id, second.job_id]


def test_the_worker_shows_that_it_lives_while_the_handler_is_busy(store, db, monkeypatch):
    monkeypatch.setattr(worker, "_HEARTBEAT_S", 0.01)
    beaten = threading.Event()

    def handler(ctx):
        first = store.get(ctx.job.job_id).heartbeat_at
        while store.get(ctx.job.job_id).heartbeat_at == first:
            pass
        beaten.set()
        return {}

    run(store.submit("finetune", {}).job_id, store, {"finetune": handler})
    assert beaten.is_set()


def test_a_worker_outside_the_main_thread_works_without_signals(store):
    job_id = store.submit("export", {}).job_id
    thread = threading.Thread(target=run, args=(job_id, store, {"export": lambda ctx: {"ok": True}}))
    thread.start()
    thread.join()
    assert store.get(job_id).result == {"ok": True}
