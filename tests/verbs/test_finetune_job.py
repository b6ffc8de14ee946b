"""Fine-tuning jobs that end, are killed, resumed or cancelled."""

import json
import os
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from tests.verbs.support import in_conport, lose_worker, opened, with_training_data, work

from ragtune_mcp.core.errors import GateBlocked, InvalidInput, LeakySplit, PathOutsideWorkspace
from ragtune_mcp.core.jobs.worker import JobContext


class Killed(BaseException):
    """Nothing in the worker catches it, as nothing catches SIGKILL."""


@pytest.fixture
def workspace(tmp_path):
    app, path = with_training_data(tmp_path)
    yield app, {"training_data_path": path, "base_model": "./base", "config": {"save_steps": 2}}
    app.close()


def kill_at(monkeypatch, message, error=Killed):
    """Make the worker die at its first report that begins so."""
    report = JobContext.progress

    def progress(self, fraction, text, **fields):
        if text.startswith(message):
            monkeypatch.setattr(JobContext, "progress", report)
            raise error
        report(self, fraction, text, **fields)

    monkeypatch.setattr(JobContext, "progress", progress)


def test_the_version_is_named_after_the_job_and_leaves_no_checkpoints(workspace):
    app, request = workspace
    job = work(app, app.start_finetune(**request).job_id)
    version = job.result["model_version"]
    assert version == f"feedback_{job.job_id.removeprefix('ft_')}"
    assert app.registry.verify(version).job_id == job.job_id
    assert not app.workspace.job(job.job_id).checkpoints.exists()
    told = in_conport(app, "ModelTraining")[f"training_job_{job.job_id}"]
    assert (told["status"], told["model_version"]) == ("completed", version)
    assert list(in_conport(app, "ModelVersions")) == [version]


@pytest.mark.parametrize("moment", ["training, step 7", "registered"])
def test_a_killed_job_asked_for_again_goes_on_and_leaves_one_version(workspace, monkeypatch, moment):
    app, request = workspace
    first = app.start_finetune(**request)
    kill_at(monkeypatch, moment)
    with pytest.raises(Killed):
        work(app, first.job_id)
    lose_worker(app, first.job_id)
    assert app.job_status(first.job_id).error.code == "worker_disappeared"
    assert in_conport(app, "ModelTraining")[f"training_job_{first.job_id}"]["status"] == "failed"
    steps = []
    report = JobContext.progress
    monkeypatch.setattr(
        JobContext,
        "progress",
        lambda self, fraction, text, **fields: (
            steps.append(fields.get("step")),
            report(self, fraction, text, **fields),
        ),
    )

    again = app.start_finetune(**request)

    assert again.job_id == first.job_id
    assert "checkpoint" in again.message
    job = work(app, first.job_id)
    assert job.status == "completed"
    assert 1 not in steps  # nothing was trained from the start again
    assert [path.name for path in app.workspace.models.iterdir()] == [job.result["model_version"]]
    assert job.result["gate"]["verdict"] == "block"
    assert job.result["evaluation"]


def test_the_same_request_after_a_completed_job_is_a_new_job(workspace):
    app, request = workspace
    first = work(app, app.start_finetune(**request).job_id)
    assert app.start_finetune(**request).job_id != first.job_id


def tuned_weights(app, job):
    return load_file(app.registry.verify(job.result["model_version"]).path / "model.safetensors")


def same_weights(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_killed_at_three_random_points_a_job_ends_with_the_weights_of_an_undisturbed_one(
    workspace, monkeypatch, tmp_path
):
    app, request = workspace
    # Of the 8 steps; a checkpoint is written after every second one.
    for step in sorted(np.random.default_rng(7).choice(np.arange(1, 9), 3, replace=False)):
        killed = app.start_finetune(**request)
        kill_at(monkeypatch, f"training, step {step}")
        with pytest.raises(Killed):
            work(app, killed.job_id)
        lose_worker(app, killed.job_id)
    resumed = work(app, app.start_finetune(**request).job_id)
    assert (resumed.status, resumed.attempt) == ("completed", 4)

    undisturbed = work(app, app.start_finetune(**request).job_id)
    assert undisturbed.attempt == 1
    assert same_weights(tuned_weights(app, resumed), tuned_weights(app, undisturbed))
    assert resumed.result["metrics"] == undisturbed.result["metrics"]


def test_a_job_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(workspace, monkeypatch):
    app, request = workspace
    first = app.start_finetune(**request)
    replace = os.replace

    def dying(source, target):
        if "step-00000004" in str(target):
            monkeypatch.setattr(os, "replace", replace)
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        work(app, first.job_id)
    lose_worker(app, first.job_id)
    assert [path.name for path in app.workspace.job(first.job_id).checkpoints.glob("*.safetensors")] == [
        "step-00000002.safetensors"
    ]
    resumed = work(app, app.start_finetune(**request).job_id)
    assert same_weights(
        tuned_weights(app, resumed),
        tuned_weights(app, work(app, app.start_finetune(**request).job_id)),
    )


def cancel_at(monkeypatch, app, job_id, message):
    report = JobContext.progress

    def cancelling(self, fraction, text, **fields):
        if text.startswith(message):
            app.cancel_job(job_id)
            monkeypatch.setattr(JobContext, "progress", report)
        report(self, fraction, text, **fields)

    monkeypatch.setattr(JobContext, "progress", cancelling)


def test_a_cancelled_training_stops_at_that_step_keeps_its_state_and_goes_on_when_asked_again(
    workspace, monkeypatch
):
    app, request = workspace
    job_id = app.start_finetune(**request).job_id
    cancel_at(monkeypatch, app, job_id, "training, step 5")
    assert work(app, job_id).status == "cancelled"
    assert in_conport(app, "ModelTraining")[f"training_job_{job_id}"]["status"] == "cancelled"
    [kept] = app.workspace.job(job_id).checkpoints.iterdir()
    assert kept.stem == "step-00000005"
    assert not app.workspace.models.exists()

    again = app.start_finetune(**request)

    assert again.job_id == job_id
    resumed = work(app, job_id)
    assert not app.workspace.job(job_id).checkpoints.exists()
    undisturbed = work(app, app.start_finetune(**request).job_id)
    assert same_weights(tuned_weights(app, resumed), tuned_weights(app, undisturbed))


def test_base_model_name_and_output_model_path_say_from_what_and_where_to(workspace):
    app, request = workspace
    config = {"base_model_name": "./base", "output_model_path": "./elsewhere", "num_epochs": 1}
    request = {"training_data_path": request["training_data_path"], "config": config}
    version = app.registry.get(work(app, app.start_finetune(**request).job_id).result["model_version"])
    assert version.path == app.workspace.root / "elsewhere" / version.version
    assert version.base_model == "./base"
    with pytest.raises(PathOutsideWorkspace):
        app.start_finetune(**{**request, "config": {**config, "output_model_path": "../elsewhere"}})


def test_a_base_model_that_wants_prompts_is_refused_before_a_job_starts(workspace):
    app, request = workspace
    config = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    (app.workspace.root / "base" / "config_sentence_transformers.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="'query: ' before every query"):
        app.start_finetune(**request)
    assert app.jobs.list() == ()


def test_a_job_that_fails_leaves_no_checkpoints(workspace, monkeypatch):
    app, request = workspace
    job_id = app.start_finetune(**request).job_id
    kill_at(monkeypatch, "training, step 5", OSError("No space left on device"))
    job = work(app, job_id)
    assert (job.status, job.error["code"]) == ("failed", "job_failed")
    assert not app.workspace.job(job_id).checkpoints.exists()
    assert app.start_finetune(**request).job_id != job_id


def test_a_job_that_found_too_little_memory_keeps_its_checkpoints_and_goes_on_when_asked_again(
    workspace, monkeypatch
):
    app, request = workspace
    job_id = app.start_finetune(**request).job_id
    kill_at(monkeypatch, "training, step 5")
    with pytest.raises(Killed):
        work(app, job_id)
    lose_worker(app, job_id)
    kept = sorted(app.workspace.job(job_id).checkpoints.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
        assert app.start_finetune(**request).job_id == job_id
        refused = work(app, job_id)
    assert refused.error["code"] == "not_enough_memory"
    assert "GiB are free" in refused.error["message"]
    assert kept and sorted(app.workspace.job(job_id).checkpoints.iterdir()) == kept
    assert app.start_finetune(**request).job_id == job_id
    assert work(app, job_id).status == "completed"


def test_a_base_model_whose_folder_moved_is_found_anew(workspace, tmp_path):
    app, request = workspace
    work(app, app.start_finetune(**request).job_id)
    with app.db.transaction() as connection:
        connection.execute("UPDATE model_versions SET path='gone' WHERE version='./base'")
    assert work(app, app.start_finetune(**request).job_id).status == "completed"


def test_a_tuned_version_can_be_the_base_of_the_next(workspace):
    app, request = workspace
    version = with_teacher(app, request)
    job = work(app, app.start_finetune(**{**request, "base_model": version}).job_id)
    assert app.registry.get(job.result["model_version"]).base_model == version


def test_a_tuned_version_whose_files_changed_is_no_base(workspace):
    app, request = workspace
    version = with_teacher(app, request)
    (app.registry.get(version).path / "config.json").write_text("{}")
    job = work(app, app.start_finetune(**{**request, "base_model": version}).job_id)
    assert job.error["code"] == "digest_mismatch"


def test_the_queue_of_one_process_is_worked_on_by_another(workspace, tmp_path):
    app, request = workspace
    job_id = app.start_finetune(**request).job_id
    other = opened(tmp_path)
    try:
        assert work(other, job_id).status == "completed"
    finally:
        other.close()
    assert app.job_status(job_id).model_version


def with_teacher(app, request, verdict="pass"):
    """A tuned version whose gate said so, whatever it found."""
    version = work(app, app.start_finetune(**request).job_id).result["model_version"]
    gate = {"verdict": verdict, "reasons": ["made for the test"], "details": {}}
    with app.db.transaction() as connection:
        connection.execute("UPDATE model_versions SET gate=? WHERE version=?", (json.dumps(gate), version))
    return version


def test_a_student_of_a_version_is_a_version_with_fewer_layers_and_its_teacher_as_base(workspace):
    app, request = workspace
    teacher = with_teacher(app, request)
    job = work(app, app.distill(teacher, layers=2).job_id)
    assert job.status == "completed", job.error
    student = app.registry.verify(job.result["model_version"])
    assert (student.base_model, student.dataset_id) == (teacher, "training_1")
    assert json.loads((student.path / "config.json").read_text())["num_hidden_layers"] == 2
    assert job.result["gate"]["details"]["margin"] == 0.03
    assert job.result["gate"]["verdict"] == "block"  # four held-out queries judge nothing
    assert app.registry.alias("challenger") != student.version
    assert in_conport(app, "ModelTraining")[f"training_job_{job.job_id}"]["status"] == "completed"


def test_a_killed_distillation_asked_for_again_ends_with_the_same_weights(workspace, monkeypatch):
    app, request = workspace
    teacher = with_teacher(app, request)
    first = app.distill(teacher, layers=2)
    kill_at(monkeypatch, "training, step 2")
    with pytest.raises(Killed):
        work(app, first.job_id)
    lose_worker(app, first.job_id)
    assert app.distill(teacher, layers=2).job_id == first.job_id
    resumed = work(app, first.job_id)
    undisturbed = work(app, app.distill(teacher, layers=2).job_id)
    assert undisturbed.job_id != first.job_id
    assert same_weights(tuned_weights(app, resumed), tuned_weights(app, undisturbed))


def test_a_blocked_version_a_base_model_and_too_many_layers_are_refused(workspace):
    app, request = workspace
    blocked = with_teacher(app, request, "block")
    with pytest.raises(GateBlocked, match=blocked):
        app.distill(blocked)
    with pytest.raises(GateBlocked, match=blocked):
        app.start_finetune(**{**request, "base_model": blocked})
    with pytest.raises(InvalidInput, match="not tuned on a data set"):
        app.distill("./base")
    with pytest.raises(InvalidInput, match="from 2 to 3"):
        app.distill(with_teacher(app, request), layers=4)


def test_a_data_set_by_hand_that_leaks_is_refused(workspace):
    app, request = workspace
    path = app.workspace.training_data / "own.csv"
    path.write_text(
        "query,document,label,query_group,split\n"
        "how do I reset the cache of the server,a b c,1,g1,train\n"
        "how do I reset the cache of the server?,a b c,1,g2,test\n"
    )
    with pytest.raises(LeakySplit):
        app.start_finetune(**{**request, "training_data_path": "./training_data/own.csv"})
