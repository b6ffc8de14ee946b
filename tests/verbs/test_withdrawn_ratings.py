"""Ratings that are changed or deleted in ConPort after they were trained on, and the way from an id to the next."""

import json
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from tests.feedback import conport_double
from tests.models.support import make_model
from tests.verbs.support import opened

from ragtune_mcp.core.errors import NotEnoughData, UnknownId
from ragtune_mcp.core.experiment.serving import SearchService
from ragtune_mcp.core.retrieval.search import SearchHit


class Feedback:
    """`UserFeedback` in ConPort's file, which is there without ConPort; the real one is used in tests/real."""

    def __init__(self, workspace):
        self.path = workspace.conport_database
        conport_double.create(workspace.root)

    def put(self, number, *, minutes_ago=60, **changes):
        value = {
            "feedback_id": f"f{number}",
            "query": f"question {number} about {'cache index deploy login'.split()[number % 4]}",
            "documents": [{"id": f"d{number}", "text": f"The answer to number {number}.", "rating": 5}],
            **changes,
        }
        stamp = (datetime.now(UTC) - timedelta(minutes=minutes_ago)).isoformat(timespec="seconds")
        self._run(
            "INSERT OR REPLACE INTO custom_data (timestamp, category, key, value) VALUES (?, ?, ?, ?)",
            (stamp, "UserFeedback", f"k{number}", json.dumps({"timestamp": stamp, **value})),
        )

    def delete(self, number):
        self._run("DELETE FROM custom_data WHERE key = ?", (f"k{number}",))

    def _run(self, sql, values):
        with sqlite3.connect(self.path) as connection:
            connection.execute(sql, values)
        connection.close()


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINING_DATA_MIN_SAMPLES", "0")
    monkeypatch.setenv("RAGTUNE_CONPORT", "sqlite")
    app = opened(tmp_path)
    yield app
    app.close()


@pytest.fixture
def feedback(app):
    feedback = Feedback(app.workspace)
    for number in range(12):
        feedback.put(number)
    return feedback


def generate(app, positives=1):
    return app.generate_training_data(min_positive_samples=positives, min_negative_samples=0)


def train(app, version, dataset_id=None):
    """Stands for a fine-tuning job: a version made of the data set."""
    ids = app.explain(dataset_id)["feedback"]["ids"] if dataset_id else []
    folder = make_model(app.workspace.models / version, weights=version.encode())
    app.registry.register(
        version, folder, base_model="base", dataset_id=dataset_id or "other", feedback_ids=ids
    )


def test_a_deleted_rating_marks_the_versions_and_data_sets_that_used_it(app, feedback):
    first = generate(app)
    train(app, "with", first.dataset_id)
    train(app, "without")
    feedback.delete(3)

    warnings = generate(app).warnings

    assert any("1 were deleted and 0 changed" in each and "with" in each for each in warnings)
    assert app.model("with").stale
    assert not app.model("without").stale
    assert app.explain("f3")["datasets"][0]["in_conport"] == "deleted"
    assert app.explain(first.dataset_id)["stale"] == {"deleted": ["f3"]}


def test_a_changed_rating_marks_the_versions_made_of_its_earlier_state_only(app, feedback):
    before = generate(app)
    train(app, "before", before.dataset_id)
    feedback.put(3, minutes_ago=30, documents=[{"id": "d3", "text": "The answer to number 3.", "rating": 4}])
    after = generate(app)
    train(app, "after", after.dataset_id)

    warnings = generate(app).warnings

    assert any("0 were deleted and 1 changed in ConPort; stale: before." in each for each in warnings)
    assert app.model("before").stale
    assert not app.model("after").stale
    states = {d["dataset_id"]: d["in_conport"] for d in app.explain("f3")["datasets"]}
    assert (states[before.dataset_id], states[after.dataset_id]) == ("changed", "unchanged")


def test_the_background_notices_without_a_new_data_set(app, feedback):
    train(app, "v", generate(app).dataset_id)
    app.watch_feedback()
    assert not app.model("v").stale
    feedback.put(5, minutes_ago=30, rating=1)
    app.watch_feedback()
    assert app.model("v").stale


def test_a_rating_whose_loss_leaves_too_little_still_marks(app, feedback):
    train(app, "v", generate(app, positives=12).dataset_id)
    feedback.delete(1)
    with pytest.raises(NotEnoughData):
        generate(app, positives=12)
    assert app.model("v").stale


def test_a_rating_is_explained_by_its_id_and_by_its_key(app, feedback):
    built = generate(app)
    train(app, "v", built.dataset_id)
    by_id, by_key = app.explain("f4"), app.explain("k4")
    assert by_id == by_key
    assert [pair["document_id"] for pair in by_id["datasets"][0]["pairs"]] == ["d4"]
    assert [each["version"] for each in by_id["versions"]] == ["v"]
    assert (by_id["not_used"], by_id["note"]) == ([], "")


def test_a_rating_that_no_data_set_used_is_explained_with_its_reason(app, feedback):
    feedback.put(50, query="what about it?")
    built = generate(app)
    [why] = app.explain("f50")["not_used"]
    assert (why["dataset_id"], why["reason"]) == (built.dataset_id, "follow_up_without_context")
    feedback.put(51)
    assert app.explain("k51")["note"] == "No data set was made since it was given."
    with pytest.raises(UnknownId):
        app.explain("nobody")


def test_a_search_leads_to_its_ratings_and_they_lead_back(app, feedback):
    def search(version, query, k):
        return [SearchHit("d1", "The answer to number 1.", "d.md", 1, 0.5)]

    service = SearchService(app.db, app.trials, search, lambda: "base")
    query_id = service.search("how does the cache work", 1).query_id
    feedback_id = app.record_feedback(query_id, rating=5).feedback_id

    found = app.explain(query_id)

    assert (found["kind"], found["version"], found["documents"]) == ("query", "base", ["d1"])
    assert found["feedback_ids"] == [feedback_id]
    assert app.explain(feedback_id)["query_id"] == query_id


def test_a_rating_that_cannot_be_read_is_explained_by_its_id_and_its_key(app, feedback):
    feedback.put(12, documents=[], rating=6)
    dataset_id = generate(app).dataset_id
    for identifier in ("f12", "k12"):
        found = app.explain(identifier)
        assert (found["id"], found["datasets"]) == ("f12", [])
        assert [(n["dataset_id"], n["reason"]) for n in found["not_used"]] == [(dataset_id, "invalid_rating")]
