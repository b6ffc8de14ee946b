"""The real ConPort. One child process serves most of these tests: starting one costs eight seconds of CPU."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from ragtune_mcp.core.clock import from_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.importers import import_feedback
from ragtune_mcp.core.feedback.outbox import FlushResult, Outbox
from ragtune_mcp.core.feedback.reader import read_feedback
from ragtune_mcp.core.feedback.states import FeedbackStates
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytestmark = pytest.mark.real

VALUES = ["text", '{"a": 1}', "42", 3, 2.5, True, None, [1, "ü"], {"k": {"n": [None]}}, "日本 😀 \u0085", ""]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conport")


@pytest.fixture(scope="session")
def client(root: Path) -> Iterator[ConPortClient]:
    """Reads and writes through one ConPort process."""
    client = ConPortClient(str(root), Settings(ragtune_conport="stdio"))
    client.log_custom_data({"category": "Start", "key": "k", "value": "v"})
    yield client
    client.close()


def child() -> psutil.Process:
    (found,) = [p for p in psutil.Process().children() if any("conport" in word for word in p.cmdline())]
    return found


def test_what_is_written_is_read_back_in_any_script_and_shape(client):
    for number, value in enumerate(VALUES):
        row = client.log_custom_data({"category": "Shapes", "key": f"k{number:02}", "value": value})
        assert row["value"] == value
    rows = client.get_custom_data("Shapes")
    assert [row["value"] for row in rows] == VALUES
    assert client.get_custom_data("Shapes", "k03") == [rows[3]]
    assert client.get_custom_data("Shapes", "none") == client.get_custom_data("NoSuchCategory") == []
    assert client.backend == "stdio"
    assert abs(from_iso(rows[0]["timestamp"]) - utc_now()) < timedelta(minutes=5)


def test_a_large_value_is_kept_whole(client):
    value = {"text": "ß" * 100_000}
    client.log_custom_data({"category": "Large", "key": "k", "value": value})
    assert client.get_custom_data("Large")[0]["value"] == value


def test_a_decision_is_logged_and_linked(client, root):
    decision = client.log_decision("Promote v2", "better nDCG", "alias moved", ["ragtune", "model"])
    link = client.link_items(
        "decision", str(decision["id"]), "custom_data", "ModelVersions:v2", "concerns", "why"
    )
    assert (link["target_item_id"], link["relationship_type"]) == ("ModelVersions:v2", "concerns")
    stored = client.get_decisions()
    assert stored[0]["tags"] == ["ragtune", "model"]
    assert client.get_progress() == client.get_system_patterns() == []


def test_reading_the_file_equals_reading_through_mcp(client, root):
    client.log_custom_data_many(
        [{"category": "Equal", "key": f"k{n:02}", "value": value} for n, value in enumerate(VALUES)]
    )
    client.log_decision("Read twice")
    file = ConPortClient(str(root), Settings(ragtune_conport_command="no-such-conport"))
    assert file.get_all_custom_data() == client.get_all_custom_data()
    assert file.get_decisions() == client.get_decisions()
    assert (file.backend, client.backend) == ("sqlite", "stdio")


def test_rows_written_into_the_file_are_seen_by_conport(client, root):
    client.get_custom_data("Shapes")
    file = ConPortClient(str(root), Settings(ragtune_conport="sqlite"))
    file.log_custom_data({"category": "Direct", "key": "k", "value": {"ü": 1}})
    decision = file.log_decision("Direct decision", tags=["direct"])
    assert client.get_custom_data("Direct") == file.get_custom_data("Direct")
    assert decision["id"] in [row["id"] for row in client.get_decisions()]


def test_conports_refusal_is_the_callers_mistake(client):
    with pytest.raises(InvalidInput, match="ConPort refuses"):
        client.log_decision("")


def test_a_killed_child_is_respawned_and_the_write_lands(client):
    os.kill(child().pid, signal.SIGKILL)
    client.log_custom_data({"category": "Killed", "key": "k", "value": 1})
    assert [row["value"] for row in client.get_custom_data("Killed")] == [1]


def test_the_outbox_waits_for_an_absent_conport_and_delivers_later(client, root):
    workspace = Workspace(root, Settings())
    outbox = Outbox(Database(workspace.database))
    outbox.put_custom_data("ModelTraining", "training_job_1", {"status": "completed"})
    outbox.put_decision("Promote v3", "why", ("ragtune",), ("custom_data", "ModelVersions:v3"), "promote:3")
    absent = ConPortClient(
        str(root), Settings(ragtune_conport="stdio", ragtune_conport_command="no-such-conport")
    )
    assert outbox.flush(absent).pending == 2
    assert outbox.flush(client) == FlushResult(2, 0, None)
    assert client.get_custom_data("ModelTraining")[0]["value"] == {"status": "completed"}
    assert client.get_decisions()[0]["summary"] == "Promote v3"


def test_many_rows_are_imported_and_each_is_read(client, root, tmp_path):
    rows = [f'{{"query": "question {n // 5}?", "doc_id": "d{n}", "rating": {n % 7}}}\n' for n in range(210)]
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(rows), encoding="utf-8")
    db = Database(Workspace(root, Settings()).database)
    outbox = Outbox(db)
    report = import_feedback([path], outbox, client)
    assert (report.read, report.imported, report.skipped) == (210, 150, {"invalid_rating": 60})
    assert (report.delivery.delivered, report.delivery.pending) == (150, 0)
    batch = read_feedback(client, FeedbackStates(db, outbox), 90, utc_now())
    assert (batch.read, len(batch.records)) == (150, 150)


def test_our_conport_never_embeds(client, root):
    client.log_custom_data({"category": "Vectors", "key": "k", "value": "some text"})
    assert not (root / "context_portal" / "conport_vector_data").exists()


def test_closing_ends_the_child(client):
    client.get_custom_data("Start")
    process = child()
    client.close()
    assert not process.is_running()
