from __future__ import annotations

import sqlite3
from datetime import timedelta

import pytest
from tests.jobs.support import GONE, Recorder, Refusing, child

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import Conflict, InvalidInput, JobCancelled, JobFailed, UnknownId
from ragtune_mcp.core.jobs.processes import process_name
from ragtune_mcp.core.jobs.store import JobStore


def change(db, job_id, **columns):
    """Set columns of a row behind the store's back."""
    text = ", ".join(f"{name}=?" for name in columns)
    db.connection.execute(f"UPDATE jobs SET {text} WHERE job_id=?", (*columns.values(), job_id))


def seconds_ago(seconds):
    return to_iso(utc_now() - timedelta(seconds=seconds))


def rows(db):
    return db.connection.execute("SELECT count(*) FROM jobs").fetchone()[0]


# Submitting


def test_a_submitted_job_is_running_with_its_spec_and_folder(store, executor, workspace):
    job = store.submit("finetune", {"epochs": 4})
    assert (job.status, job.kind, dict(job.spec)) == ("running", "finetune", {"epochs": 4})
    assert job.job_id.startswith("ft_")
    assert executor.started == [job.job_id]
    assert workspace.job(job.job_id).folder.is_dir()


def test_a_second_training_job_waits_for_the_first(store, executor):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    assert [first.status, second.status] == ["running", "queued"]
    assert executor.started == [first.job_id]


def test_jobs_of_another_kind_and_exports_do_not_wait(store):
    kinds = ("finetune", "index", "export", "export")
    assert [store.submit(kind, {}).status for kind in kinds] == ["running"] * 4


def test_the_next_job_starts_when_the_running_one_has_ended(store, executor):
    jobs = [store.submit("finetune", {"n": n}) for n in range(3)]
    store.claim(jobs[0].job_id).finish({})
    store.reconcile()
    assert executor.started == [jobs[0].job_id, jobs[1].job_id]


def test_a_spec_that_is_no_json_leaves_nothing_behind(store, db, workspace):
    with pytest.raises(TypeError):
        store.submit("index", {"path": object()})
    assert rows(db) == 0
    assert not (workspace.state / "jobs").exists()


def test_an_unknown_kind_is_refused(store, db):
    with pytest.raises(InvalidInput, match="'train' is not one of finetune, distill, index, export"):
        store.submit("train", {})
    assert rows(db) == 0


def test_a_folder_that_cannot_be_made_leaves_no_row(store, db, workspace):
    (workspace.state / "jobs").write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError):
        store.submit("index", {})
    assert rows(db) == 0


def test_a_worker_that_cannot_be_started_is_raised_and_recorded(db, workspace):
    store = JobStore(db, workspace, Refusing())
    with pytest.raises(JobFailed, match="No process could be started"):
        store.submit("index", {})
    (job,) = store.list()
    assert (job.status, dict(job.error)) == (
        "failed",
        {"code": "job_failed", "message": "No process could be started.", "hint": "Free some memory."},
    )


def test_another_job_that_cannot_be_started_does_not_fail_the_caller(db, workspace):
    failing = JobStore(db, workspace, Refusing())
    waiting = failing.create("index", {})
    job = failing.create("export", {})
    failing.start_queued()
    assert [failing.get(j.job_id).status for j in (waiting, job)] == ["failed", "failed"]


def test_two_stores_reserve_a_queued_job_once(db, workspace, executor):
    other = Database(workspace.database)
    stores = [JobStore(db, workspace, executor), JobStore(other, workspace, executor)]
    job = stores[0].create("index", {})
    for store in stores:
        store.reconcile()
    assert executor.started == [job.job_id]
    other.close()


_RECONCILE = """
import sys
from pathlib import Path
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace
from tests.jobs.support import Recorder

root = Path(sys.argv[1])
workspace = Workspace(root, Settings.load(root))
executor = Recorder()
store = JobStore(Database(workspace.database), workspace, executor)
print("ready", flush=True)
input()
store.reconcile()
print(*executor.started, flush=True)
input()
"""


def test_three_servers_that_start_thirty_queued_jobs_start_each_once(store, workspace):
    jobs = {store.create("export", {}).job_id for _ in range(30)}
    servers = [child(_RECONCILE, str(workspace.root)) for _ in range(3)]
    for server in servers:
        assert server.stdout.readline() == "ready\n"
    for server in servers:
        server.stdin.write("\n")
        server.stdin.flush()
    started = [job_id for server in servers for job_id in server.stdout.readline().split()]
    assert (len(started), set(started)) == (30, jobs)
    for server in servers:
        server.communicate("\n")


def test_the_database_refuses_a_second_active_training_job(store, db):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    assert first.status == "running"
    with pytest.raises(sqlite3.IntegrityError):
        change(db, second.job_id, status="running")


# Claiming

_CLAIM = """
import sys
from pathlib import Path
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.jobs.store import JobStore
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

root = Path(sys.argv[1])
workspace = Workspace(root, Settings.load(root))
store = JobStore(Database(workspace.database), workspace)
print("ready", flush=True)
input()
print("claimed" if store.claim(sys.argv[2]) else "too late", flush=True)
input()
"""


def test_of_four_processes_that_claim_one_job_exactly_one_gets_it(store, workspace):
    job = store.submit("finetune", {})
    processes = [child(_CLAIM, str(workspace.root), job.job_id) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes]
    assert sorted(answers) == ["claimed\n"] + ["too late\n"] * 3
    winner = processes[answers.index("claimed\n")]
    assert store.get(job.job_id).worker == str(process_name(winner.pid))
    for process in processes:
        process.communicate("\n")
    assert store.get(job.job_id).error["code"] == "worker_disappeared"


def test_a_claimed_job_cannot_be_claimed_again(store):
    job = store.submit("index", {})
    assert store.claim(job.job_id).job.started_at is not None
    assert store.claim(job.job_id) is None


def test_a_job_whose_kind_is_busy_cannot_be_claimed(store):
    store.submit("finetune", {})
    assert store.claim(store.submit("finetune", {}).job_id) is None


def test_claiming_an_unknown_job_is_an_error(store):
    with pytest.raises(UnknownId, match="ft_nope") as caught:
        store.claim("ft_nope")
    assert caught.value.code == "unknown_job"


# Progress


def test_progress_is_read_back_in_percent_with_its_fields(store):
    claim = store.claim(store.submit("finetune", {}).job_id)
    claim.progress(0.25, "epoch 1 of 4", {"loss": 0.5})
    job = store.get(claim.job.job_id)
    assert (job.progress, job.message) == (25.0, "epoch 1 of 4")
    assert [(event.message, event.progress, dict(event.fields)) for event in job.events] == [
        ("started", None, {}),
        ("epoch 1 of 4", 25.0, {"loss": 0.5}),
    ]


def test_repeated_reports_of_one_step_are_one_event(store):
    claim = store.claim(store.submit("finetune", {}).job_id)
    for step in range(50):
        claim.progress(step / 100, "epoch 1", {"step": step})
    claim.event("checkpoint", {"step": 50})
    claim.progress(0.6, "epoch 1", {"step": 60})
    events = store.get(claim.job.job_id).events
    assert [(event.message, event.fields.get("step")) for event in events] == [
        ("started", None),
        ("epoch 1", 49),
        ("checkpoint", 50),
        ("epoch 1", 60),
    ]


def test_progress_never_falls_and_stays_within_its_range(store):
    claim = store.claim(store.submit("finetune", {}).job_id)
    seen = []
    for fraction in (0.5, 0.2, -1.0, 3.0):
        claim.progress(fraction, str(fraction), {})
        seen.append(store.get(claim.job.job_id).progress)
    assert seen == [50.0, 50.0, 50.0, 100.0]


def test_only_the_last_events_are_returned(store):
    claim = store.claim(store.submit("index", {}).job_id)
    for n in range(20):
        claim.event(f"event {n}", {})
    job_id = claim.job.job_id
    assert [event.message for event in store.get(job_id, events=2).events] == ["event 18", "event 19"]
    assert len(store.get(job_id).events) == 8


def test_the_time_left_follows_the_rate_since_the_first_report(store, db):
    job_id = store.submit("finetune", {}).job_id
    claim = store.claim(job_id)
    assert store.get(job_id).eta_s is None
    claim.progress(0.2, "training", {})
    assert store.get(job_id).eta_s is None
    claim.progress(0.6, "training", {})
    change(
        db, job_id, started_at=seconds_ago(500), first_progress_at=seconds_ago(40), progress_at=seconds_ago(0)
    )
    assert store.get(job_id).eta_s == pytest.approx(40, abs=1)


def test_the_time_left_shrinks_between_two_reports_and_never_falls_below_zero(store, db):
    job_id = store.submit("finetune", {}).job_id
    claim = store.claim(job_id)
    claim.progress(0.2, "training", {})
    claim.progress(0.6, "training", {})
    change(db, job_id, first_progress_at=seconds_ago(70), progress_at=seconds_ago(30))
    assert store.get(job_id).eta_s == pytest.approx(10, abs=1)
    change(db, job_id, first_progress_at=seconds_ago(340), progress_at=seconds_ago(300))
    assert store.get(job_id).eta_s == 0


def test_the_duration_of_an_ended_job_stands_still(store, db):
    job_id = store.submit("export", {}).job_id
    assert store.get(job_id).duration_s is None
    store.claim(job_id).finish({})
    change(db, job_id, started_at="2026-01-08T14:30:00Z", finished_at="2026-01-08T14:30:12.500000Z")
    assert store.get(job_id).duration_s == 12.5


# Ending


def test_a_finished_job_holds_its_result(store):
    claim = store.claim(store.submit("finetune", {}).job_id)
    claim.finish({"model_path": "./fine_tuned_models/x", "metrics": {"ndcg@10": 0.5}})
    job = store.get(claim.job.job_id)
    assert (job.status, job.progress, job.eta_s, job.error) == ("completed", 100.0, None, None)
    assert job.result == {"model_path": "./fine_tuned_models/x", "metrics": {"ndcg@10": 0.5}}


def test_an_unknown_job_is_an_error(store):
    with pytest.raises(UnknownId, match="'nope'") as caught:
        store.get("nope")
    assert caught.value.code == "unknown_job"


def test_jobs_are_listed_newest_first(store):
    ids = [store.submit("export", {"n": n}).job_id for n in range(3)]
    assert [job.job_id for job in store.list(2)] == [ids[2], ids[1]]


def test_waiting_returns_at_once_for_an_ended_job(store):
    claim = store.claim(store.submit("export", {}).job_id)
    claim.finish({})
    assert store.wait(claim.job.job_id, 3600).status == "completed"


def test_waiting_ends_with_the_time_given(store):
    job_id = store.submit("export", {}).job_id
    assert store.wait(job_id, 0).status == "running"
    assert store.wait(job_id, 0.3).status == "running"


def test_waiting_ends_when_another_process_ends_the_job(store, workspace):
    job = store.submit("finetune", {})
    process = child(
        _CLAIM.replace("input()\n", "").replace('print("ready", flush=True)\n', ""),
        str(workspace.root),
        job.job_id,
    )
    assert store.wait(job.job_id, 60).status == "failed"
    assert process.communicate()[0] == "claimed\n"


def test_waiting_for_a_queued_job_ends_when_it_starts(store, db, monkeypatch):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    monkeypatch.setattr("time.sleep", lambda seconds: change(db, first.job_id, worker=GONE))
    assert store.wait(second.job_id, 3600).status == "running"


# Cancelling


def test_a_queued_job_is_cancelled_at_once(store, executor):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    assert store.request_cancel(second.job_id).status == "cancelled"
    store.claim(first.job_id).finish({})
    store.reconcile()
    assert executor.started == [first.job_id]


def test_a_job_cancelled_while_its_worker_starts_is_not_claimed_and_frees_its_place(store, executor):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    assert store.request_cancel(first.job_id).status == "cancelled"
    assert store.claim(first.job_id) is None
    assert executor.started == [first.job_id, second.job_id]


def test_a_running_job_is_stopped_at_its_next_check(store):
    claim = store.claim(store.submit("finetune", {}).job_id)
    claim.progress(0.1, "training", {})
    assert store.request_cancel(claim.job.job_id).status == "running"
    for look in (claim.check_cancelled, lambda: claim.progress(0.2, "training", {})):
        with pytest.raises(JobCancelled):
            look()
    claim.cancelled()
    assert store.get(claim.job.job_id).status == "cancelled"


def test_cancelling_an_ended_job_changes_nothing(store):
    claim = store.claim(store.submit("export", {}).job_id)
    claim.finish({"a": 1})
    assert store.request_cancel(claim.job.job_id) == store.get(claim.job.job_id, events=0)


def test_cancelling_again_soon_leaves_the_worker_its_time(store, db, workspace):
    job = store.submit("finetune", {})
    process = _claiming_child(workspace, job.job_id)
    store.request_cancel(job.job_id)
    assert store.request_cancel(job.job_id).status == "running"
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_worker_that_does_not_stop_is_killed_by_a_later_request(store, db, workspace):
    job, waiting = store.submit("finetune", {}), store.submit("finetune", {})
    process = _claiming_child(workspace, job.job_id)
    store.request_cancel(job.job_id)
    change(db, job.job_id, cancel_requested_at=seconds_ago(31))
    assert store.request_cancel(job.job_id).status == "cancelled"
    assert process.wait() == -9
    assert store.get(waiting.job_id).status == "running"
    process.communicate()


def _claiming_child(workspace, job_id):
    process = child("import os; os.setsid()\n" + _CLAIM, str(workspace.root), job_id)
    process.stdin.write("\n")
    process.stdin.flush()
    assert [process.stdout.readline(), process.stdout.readline()] == ["ready\n", "claimed\n"]
    return process


# The dead


def test_a_killed_worker_is_reported_with_the_last_lines_of_its_log(store, workspace):
    job = store.submit("finetune", {})
    process = _claiming_child(workspace, job.job_id)
    log = [f"line {n} in {workspace.root}/x" for n in range(40)]
    workspace.job(job.job_id).log.write_text("\n".join(log) + "\n")
    process.kill()
    process.wait()
    job = store.get(job.job_id)
    assert (job.status, job.error["code"], job.message) == (
        "failed",
        "worker_disappeared",
        "worker process disappeared",
    )
    assert "disappeared while: started" in job.error["message"]
    assert job.error["message"].endswith("\n".join(f"line {n} in ./x" for n in range(28, 40)))
    assert "line 27" not in job.error["message"]
    process.communicate()


def test_a_worker_that_died_before_it_began_is_reported(db, workspace):
    store = JobStore(db, workspace, Recorder(handle=GONE))
    job = store.get(store.submit("index", {}).job_id)
    assert job.status == "failed"
    assert job.error["message"] == "The worker process disappeared before it began. Its log is empty."


def test_looking_at_a_waiting_job_settles_the_dead_one_before_it(store, executor, db):
    first, second = store.submit("finetune", {}), store.submit("finetune", {})
    change(db, first.job_id, worker=GONE)
    assert store.get(second.job_id).status == "running"
    assert store.get(first.job_id).error["code"] == "worker_disappeared"
    assert executor.started == [first.job_id, second.job_id]


def test_submitting_does_not_wait_for_a_dead_job(store, db):
    first = store.submit("finetune", {})
    change(db, first.job_id, worker=GONE)
    assert store.submit("finetune", {}).status == "running"


def test_a_job_whose_starter_died_is_started_by_another_process(store, executor, db):
    job = store.create("index", {})
    change(db, job.job_id, status="starting", worker=f"starter:{GONE}")
    store.reconcile()
    assert store.get(job.job_id).status == "running"
    assert executor.started == [job.job_id]


def test_a_job_that_another_living_process_starts_is_left_alone(store, executor, db):
    job = store.create("index", {})
    change(db, job.job_id, status="starting", worker=f"starter:{process_name()}")
    store.reconcile()
    assert executor.started == []


@pytest.mark.parametrize(("silent_s", "status"), [(60, "running"), (180, "failed")])
def test_a_worker_in_another_container_is_judged_by_its_heartbeat(store, db, silent_s, status):
    claim = store.claim(store.submit("finetune", {}).job_id)
    change(db, claim.job.job_id, worker="other|1|1", heartbeat_at=seconds_ago(silent_s))
    assert store.get(claim.job.job_id).status == status


def test_a_handle_that_is_no_process_is_judged_by_its_executor(db, workspace):
    executor = Recorder(handle="ray:ft_1-1")
    executor.alive.add("ray:ft_1-1")
    store = JobStore(db, workspace, executor)
    job = store.submit("finetune", {})
    assert store.get(job.job_id).status == "running"
    executor.alive.clear()
    assert store.get(job.job_id).error["code"] == "worker_disappeared"


def test_a_worker_declared_dead_can_no_longer_write(store, db):
    claim = store.claim(store.submit("finetune", {}).job_id)
    store.fail(claim.job.job_id, "worker_disappeared", "gone")
    for write in (claim.check_cancelled, lambda: claim.progress(0.5, "x", {}), lambda: claim.finish({})):
        with pytest.raises(JobCancelled):
            write()
    claim.fail("job_failed", "late", "")
    claim.cancelled()
    job = store.get(claim.job.job_id)
    assert (job.status, job.error["message"], job.progress) == ("failed", "gone", 0.0)


# Restarting


def test_a_failed_job_is_queued_again_and_keeps_its_folder(store, workspace, executor):
    job = store.submit("finetune", {"epochs": 4})
    claim = store.claim(job.job_id)
    claim.progress(0.7, "epoch 3", {})
    (workspace.job(job.job_id).folder / "kept").write_text("checkpoint")
    claim.fail("job_failed", "no memory", "")
    again = store.restart(job.job_id)
    assert (again.status, again.attempt, again.progress, again.error) == ("running", 2, 0.0, None)
    assert dict(again.spec) == {"epochs": 4}
    assert (workspace.job(job.job_id).folder / "kept").read_text() == "checkpoint"
    assert executor.started == [job.job_id] * 2


def test_the_worker_of_an_earlier_attempt_can_no_longer_write(store):
    job_id = store.submit("finetune", {}).job_id
    old = store.claim(job_id)
    old.fail("job_failed", "x", "")
    store.restart(job_id)
    new = store.claim(job_id)
    with pytest.raises(JobCancelled):
        old.progress(0.9, "late", {})
    with pytest.raises(JobCancelled):
        old.finish({"late": True})
    new.finish({"late": False})
    assert store.get(job_id).result == {"late": False}


@pytest.mark.parametrize("end", [None, lambda claim: claim.finish({})])
def test_only_an_ended_and_unsuccessful_job_can_be_restarted(store, end):
    job_id = store.submit("finetune", {}).job_id
    claim = store.claim(job_id)
    if end:
        end(claim)
    with pytest.raises(Conflict, match="only a failed or cancelled job"):
        store.restart(job_id)


def test_a_restarted_job_waits_its_turn(store):
    first = store.submit("finetune", {})
    store.claim(first.job_id).cancelled()
    second = store.submit("finetune", {})
    assert [store.restart(first.job_id).status, store.get(second.job_id).status] == ["queued", "running"]
