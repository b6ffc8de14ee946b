from __future__ import annotations

import csv
import json
from datetime import UTC, datetime

import pytest

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.feedback.importers import import_feedback
from ragtune_mcp.core.feedback.reader import read_feedback

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FLAT = {
    "query": "How?",
    "query_id": None,
    "doc_id": "CDC-88",
    "rating": 1,
    "comment": "No.",
    "rater": 0,
    "region": "CDC",
}


@pytest.fixture
def run(outbox, file_client, tmp_path):
    def run(*names, client=file_client):
        return import_feedback([tmp_path / name for name in names], outbox, client, now=NOW)

    return run


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def reasons(report):
    return [(problem.row, problem.reason) for problem in report.problems]


def lines(*values) -> str:
    return "".join(json.dumps(v) + "\n" for v in values)


def test_a_flat_jsonl_row_becomes_an_entry_of_our_schema(run, write, file_client, states):
    report = run(write("f.jsonl", lines(FLAT, {**FLAT, "doc_id": "CDC-1", "rating": 5, "rater": 1})))
    assert (report.read, report.imported, report.unchanged, report.problems) == (2, 2, 0, ())
    assert (report.delivery.delivered, report.delivery.pending) == (2, 0)
    stored = {row["value"]["document_ids"][0]: row for row in file_client.get_custom_data("UserFeedback")}
    value = stored["CDC-88"]["value"]
    assert value["schema"] == "ragtune.feedback/1"
    assert value["feedback_id"] == stored["CDC-88"]["key"]
    assert value["documents"][0]["rating"] == 1
    assert (value["rating"], value["region"], value["timestamp"]) == (
        None,
        "CDC",
        "2026-06-01T00:00:00.000000Z",
    )
    records = read_feedback(file_client, states, 90, NOW).records
    assert sorted((r.rater, r.documents[0].rating) for r in records) == [("0", 1), ("1", 5)]


def test_a_folder_of_the_original_system_keeps_its_entries_as_they_are(run, write, file_client):
    original = {
        "feedback_id": "f1",
        "timestamp": 1779000000.5,
        "rating": 5,
        "query": "q",
        "document_ids": [],
        "metadata": {},
    }
    envelope = {"key": "f1", "value": original, "metadata": {"rating": 5}, "timestamp": "2026-05-01T00:00:00"}
    write(".conport_local/UserFeedback/f1.json", json.dumps(envelope))
    bare = {"rating": 4, "query": "bare"}
    write(".conport_local/UserFeedback/f2.json", json.dumps(bare))
    write(".conport_local/ModelTraining/x.json", "{}")
    write(".conport_local/UserFeedback/notes.txt", "no feedback")
    report = run(".conport_local")
    assert (report.read, report.imported, report.problems) == (2, 2, ())
    stored = {row["value"]["query"]: row["value"] for row in file_client.get_custom_data("UserFeedback")}
    assert stored["q"] == original
    assert stored["bare"] | bare == stored["bare"]


def test_an_envelopes_time_counts_where_its_entry_has_none(run, write, file_client):
    write(
        "e.json",
        json.dumps({"key": "a", "value": {"query": "q", "rating": 2}, "timestamp": "2026-05-01T00:00:00"}),
    )
    run("e.json")
    assert file_client.get_custom_data("UserFeedback", "a")[0]["value"]["timestamp"] == "2026-05-01T00:00:00"


def test_a_json_file_may_hold_a_list(run, write):
    assert run(write("l.json", json.dumps([FLAT, "text", {**FLAT, "rating": 6}]))).skipped == {
        "not_an_object": 1,
        "invalid_rating": 1,
    }


def test_importing_again_changes_nothing(run, write, file_client):
    name = write("f.jsonl", lines(FLAT, FLAT, {**FLAT, "rating": 3}))
    assert run(name).imported == 3
    before = file_client.get_custom_data("UserFeedback")
    again = run(name)
    assert (again.read, again.imported, again.unchanged) == (3, 0, 3)
    assert file_client.get_custom_data("UserFeedback") == before


def test_rows_added_in_front_leave_the_keys_of_the_others(run, write):
    run(write("f.jsonl", lines(FLAT, FLAT)))
    report = run(write("f.jsonl", lines({**FLAT, "rating": 4}, FLAT, FLAT)))
    assert (report.imported, report.unchanged) == (1, 2)


def test_a_changed_entry_replaces_its_older_state(run, write, file_client):
    run(write("a.json", json.dumps({"feedback_id": "f", "query": "q", "rating": 2})))
    report = run(write("a.json", json.dumps({"feedback_id": "f", "query": "q", "rating": 4})))
    assert (report.imported, report.unchanged) == (1, 0)
    assert [row["value"]["rating"] for row in file_client.get_custom_data("UserFeedback")] == [4]


def test_of_duplicate_keys_the_later_row_counts_and_the_earlier_is_reported(run, write, file_client):
    entry = {"feedback_id": "f", "query": "q", "rating": 2}
    report = run(write("f.jsonl", lines(entry, {**entry, "rating": 5})))
    assert (report.read, report.imported, reasons(report)) == (2, 1, [(1, "duplicate_key")])
    assert file_client.get_custom_data("UserFeedback", "f")[0]["value"]["rating"] == 5


def test_without_conport_everything_waits_in_the_outbox(run, write, outbox, absent_client, file_client):
    name = write("f.jsonl", lines(FLAT, {**FLAT, "rating": 2}))
    report = run(name, client=absent_client)
    assert (report.imported, report.delivery.pending) == (2, 2)
    assert "no-such-conport" in (report.delivery.error or "")
    assert run(name, client=absent_client).unchanged == 2
    assert outbox.flush(file_client).delivered == 2


def test_every_kind_of_broken_line_is_reported_by_row_and_the_others_go_on(run, write):
    rows = [
        json.dumps(FLAT).encode(),
        b'{"query": "torn", "ra',
        b"",
        b'{"query": "caf\xe9", "doc_id": "a", "rating": 4}',
        json.dumps({**FLAT, "rating": 0}).encode(),
        json.dumps({**FLAT, "rating": "five"}).encode(),
        b'{"query": "q", "doc_id": "a", "rating": NaN}',
        json.dumps({**FLAT, "query": " "}).encode(),
        b"[" * 100_000,
        json.dumps({**FLAT, "comment": "x" * 5_000_000}).encode(),
        json.dumps({**FLAT, "query": "next\u0085line"}, ensure_ascii=False).encode(),
    ]
    report = run(write("f.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(rows)))
    assert (report.read, report.imported) == (10, 3)
    assert reasons(report) == [
        (2, "invalid_json"),
        (4, "wrong_encoding"),
        (5, "invalid_rating"),
        (6, "invalid_rating"),
        (7, "invalid_rating"),
        (8, "empty_query"),
        (9, "invalid_json"),
    ]


def test_a_csv_file_is_read_by_its_header(run, write, file_client, tmp_path):
    with (tmp_path / "f.csv").open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["query", "doc_id", "rating", "comment", "rater", "timestamp", "team", "response"])
        writer.writerow(
            ["Wie geht's?\nZeile 2", "a.md#x", "5", 'sagt "gut", ja', "ann", "2026-05-01", "docs", ""]
        )
        writer.writerow(["-v flag", "", "4.0", "", "", "", "", "An answer."])
    report = run("f.csv")
    assert (report.imported, report.problems) == (2, ())
    stored = {row["value"]["query"]: row["value"] for row in file_client.get_custom_data("UserFeedback")}
    answer = stored["-v flag"]
    assert (answer["rating"], answer["response"], answer["documents"]) == (4, "An answer.", [])
    value = stored["Wie geht's?\nZeile 2"]
    assert (value["team"], value["rater"], value["rating"]) == ("docs", "ann", None)
    assert value["documents"][0]["rating"] == 5
    assert value["timestamp"] == "2026-05-01T00:00:00.000000Z"


def test_broken_csv_rows_are_reported_by_row(run, write):
    content = (
        b"query,doc_id,rating,comment\r\n"
        b"good,a,4,fine\r\n"
        b"=1+1,a,4,\r\n"
        b'"=HYPERLINK(""http://x"")",a,4,\r\n'
        b"q,a,4,@SUM(A1:A9)\r\n"
        b"caf\xe9,a,4,\r\n"
        b"q,a,7,\r\n"
        b"q,a,4,x,too,many\r\n"
        b"q,a,4," + b"x" * 200_000 + b"\r\n"
        b"short,a\r\n"
        b"@property and -v and +1,a,4,= is assignment\r\n"
    )
    report = run(write("f.csv", content))
    assert (report.read, report.imported) == (10, 2)
    assert reasons(report) == [
        (3, "formula_cell"),
        (4, "formula_cell"),
        (5, "formula_cell"),
        (6, "wrong_encoding"),
        (7, "invalid_rating"),
        (8, "invalid_csv"),
        (9, "invalid_csv"),
        (10, "no_rating"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("f.csv", b"question,stars\nq,4\n", (1, "missing_column")),
        ("f.csv", b"", (1, "missing_column")),
        ("f.csv", "query,rating\nq,4\n".encode("utf-16"), (0, "wrong_encoding")),
        ("f.jsonl", json.dumps(FLAT).encode("utf-16"), (0, "wrong_encoding")),
        ("f.json", b'{"query": "q"', (1, "invalid_json")),
        ("f.json", b"", (1, "invalid_json")),
    ],
)
def test_an_unreadable_file_is_one_problem(run, write, name, content, expected):
    assert reasons(run(write(name, content))) == [expected]


def test_a_path_that_is_no_feedback_file_is_refused_before_anything_is_written(run, write, outbox):
    write("good.jsonl", lines(FLAT))
    write("notes.txt", "text")
    for bad in ("missing.jsonl", "notes.txt"):
        with pytest.raises(InvalidInput, match=bad):
            run("good.jsonl", bad)
    assert outbox.pending() == 0
