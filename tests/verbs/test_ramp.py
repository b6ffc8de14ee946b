"""Promotion after a won test: the holdback, the automatic roll-back, and what ConPort hears of it."""

import sqlite3
from contextlib import closing

import pytest
from tests.verbs.support import BASE, in_conport, indexed, opened, serve, work

from ragtune_mcp.core.errors import Conflict, DigestMismatch, ModelUnavailable, NotReady
from ragtune_mcp.core.experiment.evidence import Evidence
from ragtune_mcp.core.retrieval.reindex import plan_index


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A workspace whose challenger "one" has just won its test against the champion."""
    monkeypatch.setenv("RAGTUNE_AB_SALT", "the same arms in every run")
    app = opened(tmp_path)
    serve(app, BASE, kind="base")
    (tmp_path / "a.md").write_text("# a\n\nhow do i roll back\n")
    indexed(app, paths=["*.md"])
    serve(app, "one", seed=1)
    with pytest.raises(NotReady):
        app.require_index(app.registry.get("one"))
    assert work(app, app.jobs.list(1)[0].job_id).status == "completed"
    app.start_ab_test(test_model="one", duration_hours=1)
    rate(app, 80, baseline=3, test=5)
    with app.db.transaction() as connection:
        connection.execute("UPDATE trials SET started_at = '2026-01-01T00:00:00.000000Z'")
    assert app.ab_results().recommendation == "deploy_test_model"
    yield app
    app.stop_store()
    app.close()


def rate(app, n, *, baseline, test, about="question"):
    for i in range(n):
        query_id = app.search(f"{about} {i}", k=1).query_id
        row = app.db.connection.execute(
            "SELECT assigned FROM exposures WHERE query_id = ?", (query_id,)
        ).fetchone()
        app.record_feedback(query_id, rating=(test if row["assigned"] == "test" else baseline) - i % 2)


def end_of_ramp(app):
    with app.db.transaction() as connection:
        connection.execute("UPDATE trials SET ramp_ends_at = '2026-01-02T00:00:00.000000Z'")


def decisions(app):
    rows = app.db.connection.execute("SELECT body FROM outbox WHERE kind = 'decision'").fetchall()
    return " ".join(row[0] for row in rows)


def test_promoting_the_winner_begins_its_ramp_and_says_so_before(app):
    preview = app.promote_model("one")
    assert any("80% of searches" in change for change in preview.will_change)
    assert app.trials.active() is None
    app.promote_model("one", confirm=True)
    trial = app.trials.active()
    assert (app.champion(), trial.status, trial.split) == ("one", "ramping", 0.8)
    told = in_conport(app, "ABTests")[trial.test_id]
    assert (told["status"], told["recommendation"]) == ("ramping", "deploy_test_model")


def test_a_quiet_ramp_ends_with_all_searches_on_the_winner(app):
    app.promote_model("one", confirm=True)
    app.watch_test()
    assert app.trials.active() is not None
    end_of_ramp(app)
    app.watch_test()
    assert app.trials.active() is None
    assert app.champion() == "one"
    assert in_conport(app, "ABTests")[app.ab_results().test_id]["ramp"] == "ramp_complete"


def test_harm_in_the_ramp_rolls_back_by_itself_and_tells_conport(app):
    app.promote_model("one", confirm=True)
    rate(app, 150, baseline=5, test=2, about="ramp")
    app.watch_test()
    assert app.champion() == BASE
    assert app.trials.active() is None
    told = app.ab_results()
    assert "rolled back" in told.next_step
    assert in_conport(app, "ABTests")[told.test_id]["ramp"] == "roll_back"
    assert "Rolled back by itself: one -> " in decisions(app)
    assert app.registry.audit.entries(subject="champion")[-1].actor == "ramp"


def test_a_damaged_previous_version_is_not_rolled_back_to(app, monkeypatch):
    app.promote_model("one", confirm=True)
    rate(app, 150, baseline=5, test=2, about="ramp")

    def damaged(version):
        raise DigestMismatch(f"model.safetensors of {version} changed")

    monkeypatch.setattr(app.registry, "verify", damaged)
    for _ in range(2):
        app.watch_test()
    assert app.champion() == "one"
    told = app.ab_results()
    assert "roll-back is blocked: model.safetensors" in told.reasons[0]
    assert "Restore the files" in told.next_step
    steps = app.db.connection.execute("SELECT recommendation FROM decisions ORDER BY seq").fetchall()
    assert [row[0] for row in steps][-2:] == ["ramp", "roll_back_blocked"]
    monkeypatch.undo()
    app.watch_test()
    assert app.champion() == BASE
    assert "rolled back" in app.ab_results().next_step


def harmed(app):
    app.promote_model("one", confirm=True)
    rate(app, 150, baseline=5, test=2, about="ramp")


def last_step(app):
    row = app.db.connection.execute("SELECT recommendation FROM decisions ORDER BY seq DESC").fetchone()
    return row[0]


def test_a_previous_version_that_is_gone_blocks_the_roll_back_and_nothing_else(app, monkeypatch):
    app.settings.ragtune_allow_downloads = False
    harmed(app)

    def gone(version):
        assert not app.db.connection.in_transaction  # looking for a model takes long
        raise ModelUnavailable(f"The base model {version!r} was not found.")

    monkeypatch.setattr(app.registry, "verify", gone)
    for _ in range(2):
        app.watch_test()
    told = app.ab_results()
    assert (app.champion(), last_step(app)) == ("one", "roll_back_blocked")
    assert "roll-back is blocked: The base model" in told.reasons[0]
    assert "roll-back is blocked" in in_conport(app, "ABTests")[told.test_id]["reasons"][0]
    monkeypatch.undo()
    app.watch_test()
    assert app.champion() == BASE


def test_a_previous_version_without_its_encoder_is_rolled_back_to_once_it_has_one(app):
    harmed(app)
    encoder, aside = app.encoders.folder(BASE), app.workspace.root / "aside"
    encoder.rename(aside)
    app.watch_test()
    assert (app.champion(), last_step(app)) == ("one", "roll_back_blocked")
    assert app.jobs.list(1)[0].spec == {"version": BASE}
    assert "wait for the job" in app.ab_results().next_step
    aside.rename(encoder)
    app.watch_test()
    assert app.champion() == BASE


def test_documents_that_arrive_while_the_previous_version_is_checked_delay_the_roll_back(app, monkeypatch):
    harmed(app)
    (app.workspace.root / "b.md").write_text("# b\n\nindex search\n")
    plan = plan_index(app.workspace, app.documents, paths=["*.md"])
    check = app.encoders.check
    monkeypatch.setattr(app.encoders, "check", lambda version: (check(version), app.documents.apply(plan)))
    app.watch_test()
    assert (app.champion(), last_step(app)) == ("one", "roll_back_blocked")
    monkeypatch.undo()
    indexed(app, paths=["*.md"])
    app.watch_test()
    assert app.champion() == BASE


def test_a_ramp_whose_time_is_over_ends_though_the_previous_version_is_gone(app, monkeypatch):
    app.promote_model("one", confirm=True)
    end_of_ramp(app)
    monkeypatch.setattr(app.registry, "verify", lambda version: 1 / 0)
    app.watch_test()
    assert app.trials.active() is None


def test_a_look_at_a_ramp_that_goes_on_takes_no_write_lock_and_counts_only_what_is_new(app, monkeypatch):
    app.promote_model("one", confirm=True)
    rate(app, 20, baseline=4, test=4, about="ramp")
    app._watch_ramp()
    counted = []
    take_in = Evidence.add_ratings
    monkeypatch.setattr(
        Evidence, "add_ratings", lambda self, *ratings: (counted.append(1), take_in(self, *ratings))
    )
    with closing(sqlite3.connect(app.db.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # would make a writer wait for it
        app._watch_ramp()
    assert counted == []


def test_a_ramp_can_be_rolled_back_by_hand_and_refuses_another_promotion(app):
    app.promote_model("one", confirm=True)
    with pytest.raises(Conflict, match="ramp of one"):
        app.promote_model(BASE, confirm=True)
    app.rollback_model(confirm=True)
    assert app.champion() == BASE
    assert app.trials.active() is None
    assert in_conport(app, "ABTests")[app.ab_results().test_id]["ramp"] == "ramp_stopped"


def test_a_version_promoted_without_a_won_test_serves_everyone_at_once(app):
    app.promote_model("one", confirm=True)
    app.rollback_model(confirm=True)
    assert "all searches use the new index at once" in app.promote_model("one").will_change
    app.promote_model("one", confirm=True)
    assert app.trials.active() is None


def test_the_rated_queries_can_be_answered_again_by_both_versions(app):
    found = app.search("how do i roll back", k=1)
    app.record_feedback(found.query_id, document_ratings={found.results[0].id: 5})
    compared = app.replay_ab_test()
    assert (compared.queries, compared.baseline, compared.test) == (1, 1.0, 1.0)
    assert app.ab_results().replay["queries"] == 1
