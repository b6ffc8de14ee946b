from __future__ import annotations

import threading

import pytest

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import ConPortUnavailable, InvalidInput
from ragtune_mcp.core.feedback.outbox import FlushResult, Outbox


def gone(*args, **kwargs):
    raise ConPortUnavailable("gone")


def test_custom_data_waits_until_conport_is_there(outbox, absent_client, file_client):
    outbox.put_custom_data("ModelTraining", "job-1", {"status": "running", "note": "ü😀"})
    failed = outbox.flush(absent_client)
    assert (failed.delivered, failed.pending) == (0, 1)
    assert "no-such-conport" in (failed.error or "")
    assert outbox.last_error() == failed.error
    assert outbox.flush(file_client) == FlushResult(1, 0, None)
    assert outbox.last_error() is None
    assert file_client.get_custom_data("ModelTraining")[0]["value"] == {"status": "running", "note": "ü😀"}


def test_what_waits_survives_the_process(workspace, outbox, file_client):
    outbox.put_custom_data("C", "k", 1)
    outbox.put_decision("Promote v2", "why", ("ragtune",), ("custom_data", "ModelVersions:v2"), "promote:1")
    again = Outbox(Database(workspace.database))
    assert again.pending() == 2
    assert again.flush(file_client).delivered == 2


def test_a_newer_value_replaces_the_waiting_one_and_keeps_its_place(outbox, file_client):
    outbox.put_custom_data("C", "first", "old")
    outbox.put_custom_data("C", "second", 2)
    outbox.put_custom_data("C", "first", "new")
    assert [(row["key"], row["value"]) for row in outbox.pending_custom_data("C")] == [
        ("first", "new"),
        ("second", 2),
    ]
    assert outbox.flush(file_client).delivered == 2
    assert file_client.get_custom_data("C", "first")[0]["value"] == "new"


def test_an_empty_outbox_does_not_touch_conport(outbox, absent_client):
    assert outbox.flush(absent_client) == FlushResult(0, 0, None)


def test_a_decision_is_logged_once_and_linked(outbox, make_client, workspace):
    client = make_client()
    for _ in range(2):
        outbox.put_decision(
            "Promote v2", "why", ("ragtune",), ("custom_data", "ModelVersions:v2"), "promote:1"
        )
        outbox.flush(client)
    outbox.put_decision("Promote v2", "again", ("ragtune",), None, "promote:2")
    outbox.flush(client)
    assert [row["rationale"] for row in client.get_decisions()] == ["why", "again"]
    assert (workspace.root / "calls.txt").read_text().split().count("link_conport_items") == 1


def test_a_decision_whose_link_failed_is_not_logged_again(outbox, file_client):
    outbox.put_decision("Promote v2", link_to=("custom_data", "ModelVersions:v2"))
    link_items, file_client.link_items = file_client.link_items, gone
    assert outbox.flush(file_client).pending == 1
    file_client.link_items = link_items
    assert outbox.flush(file_client) == FlushResult(1, 0, None)
    assert len(file_client.get_decisions()) == 1


def test_the_order_of_delivery_is_the_order_of_putting(outbox):
    sent: list[str] = []

    class Recorder:
        def log_custom_data(self, entry):
            sent.append(entry["key"])

        def log_decision(self, summary, rationale, tags):
            sent.append(summary)
            return {"id": 1}

    outbox.put_custom_data("C", "a", 1)
    outbox.put_decision("d1")
    outbox.put_custom_data("C", "b", 1)
    outbox.put_decision("d2")
    outbox.flush(Recorder())
    assert sent == ["a", "d1", "b", "d2"]


def test_delivery_stops_at_the_first_failure_and_goes_on_from_there(outbox, file_client):
    outbox.put_custom_data("C", "a", 1)
    outbox.put_decision("d1")
    outbox.put_custom_data("C", "b", 1)
    log_decision, file_client.log_decision = file_client.log_decision, gone
    stopped = outbox.flush(file_client)
    assert (stopped.delivered, stopped.pending) == (1, 2)
    assert "gone" in (stopped.error or "")
    assert [row["key"] for row in file_client.get_custom_data("C")] == ["a"]
    file_client.log_decision = log_decision
    assert outbox.flush(file_client) == FlushResult(2, 0, None)


def test_a_refused_entry_keeps_waiting_and_holds_up_nothing(outbox, make_client):
    client = make_client({"refuse": "bad"})
    for key in ("a", "bad", "b"):
        outbox.put_custom_data("C", key, 1)
    outbox.put_decision("d")
    result = outbox.flush(client)
    assert (result.delivered, result.pending) == (3, 1)
    assert "validation error" in (result.error or "")
    assert [row["key"] for row in outbox.pending_custom_data("C")] == ["bad"]
    single = outbox.flush(client)
    assert (single.delivered, single.pending) == (0, 1)


@pytest.mark.parametrize("many", [True, False])
def test_a_row_that_the_tool_fails_on_keeps_its_error_and_blocks_nothing(outbox, make_client, many):
    client = make_client({"fail": "bad"})
    outbox.put_custom_data("C", "bad", 1)
    if many:
        outbox.put_custom_data("C", "good", 1)
    outbox.put_decision("bad")
    outbox.put_decision("good")
    outbox.put_custom_data("C", "last", 1)
    result = outbox.flush(client)
    assert (result.delivered, result.pending) == (3 if many else 2, 2)
    assert "Unexpected error in the tool: bad" in (outbox.last_error() or "")
    assert [row["key"] for row in client.get_custom_data("C")] == (["good", "last"] if many else ["last"])
    assert [row["summary"] for row in client.get_decisions()] == ["good"]


def test_a_locked_database_stops_the_delivery_and_nothing_is_refused(outbox, make_client, workspace):
    client = make_client({"locked": 6})
    for key in ("a", "b"):
        outbox.put_decision(key)
    stopped = outbox.flush(client)
    assert (stopped.delivered, stopped.pending) == (0, 2)
    assert "locked" in (stopped.error or "")
    assert (workspace.root / "calls.txt").read_text().split().count("log_decision") == 6
    assert outbox.flush(client) == FlushResult(2, 0, None)


def test_a_refusal_that_repeats_a_text_about_locks_is_a_refusal(outbox, make_client, workspace):
    client = make_client({"refuse": "database is locked"})
    outbox.put_custom_data("C", "database is locked", 1)
    outbox.put_decision("d")
    assert outbox.flush(client).delivered == 1


def test_each_decision_is_settled_after_its_link(outbox, file_client):
    outbox.put_decision("first", link_to=("custom_data", "A:1"))
    outbox.put_decision("second", link_to=("custom_data", "A:2"))
    linked: list[str] = []

    def link_items(source_type, source_id, target_type, target_id, relationship):
        if target_id == "A:2" and "A:2 failed" not in linked:
            linked.append("A:2 failed")
            raise ConPortUnavailable("gone")
        linked.append(target_id)

    file_client.link_items = link_items
    assert outbox.flush(file_client).delivered == 1
    assert outbox.flush(file_client) == FlushResult(1, 0, None)
    assert linked == ["A:1", "A:2 failed", "A:2"]


def test_a_decision_sent_before_a_kill_is_not_logged_again(outbox, file_client, monkeypatch):
    outbox.put_decision("Promote v2", "why", link_to=("custom_data", "ModelVersions:v2"))
    update = outbox._update

    def killed(id_, column, value):
        if "conport_id" in value:
            raise KeyboardInterrupt
        update(id_, column, value)

    monkeypatch.setattr(outbox, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        outbox.flush(file_client)
    monkeypatch.undo()
    assert outbox.flush(file_client) == FlushResult(1, 0, None)
    assert len(file_client.get_decisions()) == 1


def test_a_decision_of_the_same_words_logged_earlier_is_not_taken_for_it(outbox, file_client):
    file_client.log_decision("Promote v2", "why")
    with outbox._db.transaction() as conn:
        conn.execute(
            "INSERT INTO outbox (kind, category, key, body, created_at) VALUES ('decision', '', 'k', ?, '')",
            (
                '{"summary": "Promote v2", "rationale": "why", "tags": [], "link_to": null, '
                '"sent_at": "2099-01-01T00:00:00.000000Z"}',
            ),
        )
    assert outbox.flush(file_client).delivered == 1
    assert len(file_client.get_decisions()) == 2


def test_a_value_replaced_while_its_old_state_is_under_way_is_delivered_too(outbox, file_client):
    outbox.put_custom_data("C", "k", "old")
    log_custom_data = file_client.log_custom_data

    def replace_meanwhile(entry):
        if entry["value"] == "old":
            outbox.put_custom_data("C", "k", "new")
        return log_custom_data(entry)

    file_client.log_custom_data = replace_meanwhile
    result = outbox.flush(file_client)
    assert (result.pending, result.error) == (0, None)
    assert file_client.get_custom_data("C")[0]["value"] == "new"


def test_two_deliveries_at_once_do_not_interleave(workspace, outbox, file_client):
    outbox.put_custom_data("C", "k", 1)
    inside, leave = threading.Event(), threading.Event()
    log_custom_data = file_client.log_custom_data

    def slow(entry):
        inside.set()
        leave.wait(30)
        return log_custom_data(entry)

    file_client.log_custom_data = slow
    thread = threading.Thread(target=outbox.flush, args=(file_client,))
    thread.start()
    assert inside.wait(30)
    second = Outbox(Database(workspace.database)).flush(file_client)
    leave.set()
    thread.join()
    assert (second.delivered, second.pending, second.error) == (0, 1, "Another process is delivering.")
    assert outbox.pending() == 0


def test_many_entries_are_delivered_in_batches_with_progress(outbox, make_client, workspace):
    seen: list[tuple[int, int]] = []
    assert outbox.put_custom_data_many("C", ((f"k{n}", n) for n in range(250))) == 250
    result = outbox.flush(make_client(), lambda done, total: seen.append((done, total)))
    assert result == FlushResult(250, 0, None)
    assert seen == [(100, 250), (200, 250), (250, 250)]
    assert (workspace.root / "calls.txt").read_text().split() == ["batch_log_items"] * 3


def test_queueing_is_part_of_the_callers_transaction(workspace, outbox):
    db = Database(workspace.database)
    joined = Outbox(db)
    with pytest.raises(RuntimeError), db.transaction() as conn:
        joined.put_custom_data("C", "a", 1, conn)
        joined.put_custom_data("C", "b", 1)
        joined.put_decision("d")
        raise RuntimeError
    assert outbox.pending() == 0


@pytest.mark.parametrize(("category", "key", "value"), [("", "k", 1), ("C", "", 1), ("C", "k", object())])
def test_what_conport_could_never_take_is_refused_at_once(outbox, category, key, value):
    with pytest.raises(InvalidInput):
        outbox.put_custom_data(category, key, value)
    assert outbox.pending() == 0


def test_a_vanished_metric_is_stored_as_null(outbox):
    outbox.put_custom_data("C", "k", {"loss": float("nan")})
    assert outbox.pending_custom_data("C")[0]["value"] == {"loss": None}
