"""A test seen through the verbs: what is told to ConPort and kept for people, and the switch that ends it."""

import json
from types import SimpleNamespace

import pytest
from tests.experiment.support import FakeHit
from tests.verbs.support import BASE, in_conport, opened
from typer.testing import CliRunner

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.experiment.serving import SearchService
from ragtune_mcp.surface.commands import app as commands


@pytest.fixture
def app(tmp_path):
    app = opened(tmp_path)
    yield app
    app.close()


def running(app, ratings=0, **plan):
    """A running test between two versions that answer from a table, with some ratings; the arms are fixed."""
    trial = app.trials.start(BASE, "one", salt="trials", **plan)
    hits = [FakeHit(f"d{i}", "text", "s", i, 1.0) for i in (1, 2, 3)]
    service = SearchService(app.db, app.trials, lambda *_: hits, lambda: BASE)
    for i in range(ratings):
        served = service.search(f"question {i}")
        app.outcomes.record(served.query_id, 3 + i % 3, {"d1": 1 + i % 5}, 4)
    return trial


def test_switched_off_a_running_test_ends_and_the_serving_version_answers(app, tmp_path, monkeypatch):
    trial = running(app)
    monkeypatch.setenv("AB_TESTING_ENABLED", "false")
    other = opened(tmp_path)
    assert other.status().active_test is None
    reading = other.ab_results()
    assert (reading.test_id, reading.status, reading.recommendation) == (
        trial.test_id,
        "stopped",
        "inconclusive",
    )
    assert any("AB_TESTING_ENABLED=false" in reason for reason in reading.reasons)
    other.close()
    assert app.trials.active() is None  # also for a process that still has it switched on
    assert app.ab_results().status == "stopped"


def test_switched_off_a_ramp_ends_with_the_winner_answering_everyone(app, tmp_path, monkeypatch):
    trial = running(app)
    with app.db.transaction() as conn:
        conn.execute("UPDATE trials SET status = 'ramping', ramp_phase = 0")
    monkeypatch.setenv("AB_TESTING_ENABLED", "false")
    other = opened(tmp_path)
    assert other.trials.active() is None
    assert other.trials.get(trial.test_id).ramp_result == "ramp_stopped"
    other.close()


def test_a_stopped_test_is_told_to_conport_and_leaves_its_page_without_anyone_reading_it(app):
    trial = running(app, 12)
    app.trials.stop(trial.test_id, "enough seen")
    app.watch_test()
    told = in_conport(app, "ABTests")[trial.test_id]
    assert (told["status"], told["recommendation"]) == ("stopped", "inconclusive")
    page = (app.workspace.reports / f"{trial.test_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# A/B test {trial.test_id}: inconclusive")
    assert "stopped: enough seen" in page


def test_tests_under_a_fixed_salt_assign_independently_and_the_same_in_a_replay(tmp_path, monkeypatch):
    monkeypatch.setenv("RAGTUNE_AB_SALT", "fixed")

    def keys(folder):
        (tmp_path / folder).mkdir()
        app = opened(tmp_path / folder)
        monkeypatch.setattr(app, "require_still_indexed", lambda version: None)
        found = []
        for _ in range(3):
            trial = app._start(BASE, "one")
            found.append((trial.salt, trial.assignment_key))
            assert app.ab_results().recommendation == "continue"
            app.stop_ab_test(trial.test_id, "next")
        app.close()
        return found

    assert len(set(keys("once"))) == 3
    assert keys("once more") == keys("again")


def end_by_circuit_breaker(app):
    """Searches that a broken test version fails, until the test has ended."""

    def answer(version, query, k):
        if version == "one":
            raise RuntimeError("does not load")
        return [FakeHit("d1", "text", "s", 1, 1.0)]

    service = SearchService(app.db, app.trials, answer, lambda: BASE)
    for i in range(20):
        service.search(f"broken {i}")
    assert app.trials.active() is None


def test_a_test_ended_by_its_circuit_breaker_is_told_and_leaves_its_page(app):
    trial = running(app)
    app.watch_test()
    end_by_circuit_breaker(app)
    app.watch_test()
    told = in_conport(app, "ABTests")[trial.test_id]
    assert (told["status"], told["recommendation"]) == ("completed", "keep_baseline")
    assert app.ab_results().health["fallback_rate"] == [0.0, 1.0]
    assert "circuit breaker" in (app.workspace.reports / f"{trial.test_id}.md").read_text(encoding="utf-8")


def test_an_end_that_a_killed_process_did_not_tell_is_told_once_by_the_next(app, tmp_path):
    trial = running(app, 12)
    app.trials.stop(trial.test_id, "enough seen")
    app.ab_report.results(trial.test_id)  # latched; the process dies before it tells
    other = opened(tmp_path)
    other.watch_test()
    assert in_conport(other, "ABTests")[trial.test_id]["status"] == "stopped"
    with other.db.transaction() as connection:
        connection.execute("DELETE FROM outbox")  # delivered
    other.watch_test()
    app.watch_test()
    app.ab_results(trial.test_id)
    assert app.outbox.pending() == 0
    other.close()


def test_an_ended_test_is_told_although_the_next_one_has_started(app):
    first = running(app, 12)
    app.trials.stop(first.test_id, "enough seen")
    running(app)
    app.watch_test()
    assert in_conport(app, "ABTests")[first.test_id]["status"] == "stopped"


def test_the_split_of_a_running_test_can_be_changed_and_is_told(app):
    trial = running(app, 4, split=0.2)
    assert app.set_ab_split(trial.test_id, 0.5).status == "active"
    assert (app.trials.active().split, app.trials.active().phase) == (0.5, 1)
    assert in_conport(app, "ABTests")[trial.test_id]["traffic_split"] == 0.5


def test_the_split_of_an_interleaved_or_ended_test_cannot_be_changed(app):
    trial = running(app, mode="interleave")
    with pytest.raises(Conflict, match="interleaved"):
        app.set_ab_split(trial.test_id, 0.2)
    app.stop_ab_test(trial.test_id, "next")
    with pytest.raises(Conflict, match="stopped"):
        app.set_ab_split(trial.test_id, 0.2)


def test_a_replay_stands_beside_the_results_and_on_the_page(app):
    trial = running(app, 12)
    loaded = []
    rankings = {BASE: ["d2", "d1", "d3"], "one": ["d1", "d2", "d3"]}
    app.__dict__["encoders"] = SimpleNamespace(get=lambda version, wait_s: loaded.append(version))
    app.__dict__["searcher"] = SimpleNamespace(
        search=lambda version, query, k: [
            FakeHit(d, "text", "s", i, 1.0) for i, d in enumerate(rankings[version])
        ]
    )
    assert "replay" not in app.ab_results().model_dump()
    compared = app.replay_ab_test()
    assert loaded == [BASE, "one"]
    assert app.ab_results().replay["queries"] == compared.queries > 0
    page = app.report_ab_test(trial.test_id).read_text(encoding="utf-8")
    assert "Offline replay (not causal)" in page


def test_the_results_of_a_running_test_are_short_enough_to_be_read_after_every_rating(app):
    running(app, 90)
    told = app.ab_results().model_dump(mode="json")
    assert {"recommendation", "p_anytime", "needed"} <= set(told)
    assert "fallback_rate" not in told["health"]
    assert len(json.dumps(told, separators=(",", ":"))) < 950


def test_the_status_names_every_job_that_is_not_done(app):
    with app.db.transaction() as conn:
        for i in range(30):
            conn.execute(
                "INSERT INTO jobs (job_id, kind, status, spec, created_at, queued_at, finished_at)"
                " VALUES (?1, 'export', ?2, '{}', ?3, ?3, ?4)",
                (f"ex_{i:02}", "completed" if i else "queued", f"2026-01-01T00:00:{i:02}.000000Z", i or None),
            )
    assert app.status().running_jobs == ["ex_00"]


@pytest.mark.parametrize(
    ("options", "metrics"),
    [
        ([], None),
        (
            ["--metrics", "relevance_score", "--metrics", "user_satisfaction"],
            ["relevance_score", "user_satisfaction"],
        ),
    ],
)
def test_the_command_line_names_the_metrics_of_a_test(options, metrics, tmp_path, monkeypatch):
    asked = {}

    def start(core, **plan):
        asked.update(plan)
        raise Conflict("seen")

    monkeypatch.setattr(RagTune, "start_ab_test", start)
    CliRunner().invoke(commands, ["--workspace", str(tmp_path), "start-ab-test", *options])
    assert asked["metrics"] == metrics
