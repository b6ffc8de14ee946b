"""Ratings that are deleted in ConPort after they were trained on."""

from datetime import UTC, datetime

import pytest
from tests.models.support import make_model
from tests.verbs.support import opened


class ConPort:
    """Holds what the test puts there; the real one is used in tests/real."""

    def __init__(self):
        self.rows = {}

    def get_custom_data(self, category, key=None, since=None):
        return list(self.rows.values())

    def close(self):
        pass


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINING_DATA_MIN_SAMPLES", "0")
    app = opened(tmp_path)
    app.__dict__["conport"] = ConPort()
    for number in range(12):
        value = {
            "query": f"question {number} about {'cache index deploy login'.split()[number % 4]}",
            "rating": 5,
            "documents": [{"id": f"d{number}", "text": f"The answer to number {number}.", "rating": 5}],
        }
        stamp = datetime.now(UTC).isoformat()
        row = {"id": number, "timestamp": stamp, "category": "UserFeedback", "key": f"k{number}"}
        app.conport.rows[number] = {**row, "value": value}
    yield app
    app.close()


def generate(app):
    return app.generate_training_data(min_positive_samples=1, min_negative_samples=0)


def test_versions_and_data_sets_that_used_a_deleted_rating_are_marked(app):
    first = generate(app)
    rating = app.explain("k3")["datasets"][0]
    assert rating["dataset_id"] == first.dataset_id
    used = next(
        i
        for i in app.explain(first.dataset_id)["feedback"]["ids"]
        if app.explain(i)["datasets"][0]["pairs"][0]["document_id"] == "d3"
    )
    for version, ids in (("with", [used]), ("without", [])):
        folder = make_model(app.workspace.models / version, weights=version.encode())
        app.registry.register(version, folder, base_model="base", feedback_ids=ids)
    del app.conport.rows[3]

    warnings = generate(app).warnings

    assert any("with" in each for each in warnings)
    assert app.model("with").stale
    assert not app.model("without").stale
    assert app.explain("k3")["datasets"][0]["deleted_in_conport"]
