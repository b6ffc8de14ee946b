"""Ratings in a real ConPort become a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.dataset.samples import question

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.export import load_dataset
from ragtune_mcp.core.dataset.generator import DatasetOptions, TrainingDataGenerator
from ragtune_mcp.core.dataset.lineage import Stale, descendants, mark_stale
from ragtune_mcp.core.dataset.validate import validate
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.importers import import_feedback
from ragtune_mcp.core.feedback.outbox import Outbox
from ragtune_mcp.core.feedback.states import FeedbackStates
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytestmark = pytest.mark.real


def test_imported_ratings_are_read_back_from_conport_and_followed_both_ways(tmp_path: Path) -> None:
    rows = [
        {"query": question(i), "doc_id": f"d{(i + 3 * low) % 40}",
         "text": f"{question((i + 3 * low) % 40)} said.", "rating": 1 if low else 5, "rater": f"r{i % 3}"}
        for i in range(40) for low in (0, 1)
    ]  # fmt: skip
    rows.append({"query": question(1), "doc_id": "d1", "rating": 9})
    source = tmp_path / "ratings.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workspace = Workspace(tmp_path, Settings())
    workspace.prepare()
    db = Database(workspace.database)
    client = ConPortClient(workspace.id, Settings(ragtune_conport="stdio"))
    outbox = Outbox(db)
    report = import_feedback([source], outbox, client)
    assert (report.imported, report.skipped, outbox.pending()) == (80, {"invalid_rating": 1}, 0)

    options = DatasetOptions(min_positive_samples=40, min_negative_samples=40, min_ratings=80)
    built = TrainingDataGenerator(client, workspace, outbox=outbox).build(options)
    dataset = load_dataset(built.path)
    assert built.statistics["feedback_read"] == built.statistics["feedback_used"] == 80
    assert validate(dataset).is_valid

    chosen, changed = dataset.pairs[0].feedback_ids[0], dataset.pairs[-1].feedback_ids[0]
    found = descendants(workspace.training_data, chosen)
    assert [d.dataset_id for d in found] == [built.dataset_id]

    # What ConPort itself wrote is watched through its file: only what changed is read again.
    watch = ConPortClient(workspace.id, Settings())
    states = FeedbackStates(db, outbox)
    states.refresh(watch)
    assert mark_stale(workspace.training_data, states.hashes()) == {}
    value = client.get_custom_data("UserFeedback", changed)[0]["value"]
    client.log_custom_data({"category": "UserFeedback", "key": changed, "value": {**value, "rater": "x"}})
    where = {"workspace_id": workspace.id, "category": "UserFeedback", "key": chosen}
    client._call("delete_custom_data", where)
    assert states.refresh(watch) == 2
    assert mark_stale(workspace.training_data, states.hashes()) == {
        built.dataset_id: Stale(deleted=(chosen,), changed=(changed,))
    }
    client.close()
    db.close()
