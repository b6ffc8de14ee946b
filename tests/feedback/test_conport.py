from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from tests.feedback import conport_double

from ragtune_mcp.core.clock import from_iso, utc_now
from ragtune_mcp.core.errors import ConPortUnavailable, InvalidInput
from ragtune_mcp.core.feedback import conport_launch
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.conport_launch import find_command
from ragtune_mcp.core.feedback.conport_session import ConPortSession
from ragtune_mcp.core.settings import Settings


def calls(workspace) -> list[str]:
    return (workspace.root / "calls.txt").read_text(encoding="utf-8").split()


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def test_nothing_starts_before_the_first_call(make_client, workspace):
    before = len(children())
    client = make_client()
    assert len(children()) == before
    assert client.backend == ""
    client.log_custom_data({"category": "C", "key": "k", "value": 1})
    assert len(children()) == before + 1
    client.close()
    assert len(children()) == before


def test_a_closed_client_starts_again_at_the_next_call(make_client):
    client = make_client()
    client.log_custom_data({"category": "C", "key": "k", "value": {"é": [1, None]}})
    client.close()
    assert client.get_custom_data("C", "k")[0]["value"] == {"é": [1, None]}
    assert client.backend == "stdio"


def test_calls_from_many_threads_are_all_answered(make_client):
    client = make_client()
    threads = [
        threading.Thread(target=client.log_custom_data, args=({"category": "C", "key": str(n), "value": n},))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["value"] for row in client.get_custom_data("C")) == list(range(8))


def test_the_childs_noise_goes_to_log_files_and_not_to_our_streams(workspace):
    script = (
        "import sys\n"
        "from ragtune_mcp.core.feedback.conport import ConPortClient\n"
        "from ragtune_mcp.core.settings import Settings\n"
        f"s = Settings(ragtune_conport='stdio', ragtune_conport_command={find_double()!r})\n"
        f"c = ConPortClient({workspace.id!r}, s)\n"
        "assert 'mcp.client' not in sys.modules\n"
        "c.log_custom_data({'category': 'C', 'key': 'k', 'value': 1})\n"
        "import psutil\n"
        "sys.stdout.write(str(psutil.Process().children()[0].pid))\n"
    )
    # The script neither closes the client nor ends its child: leaving the interpreter must.
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert not psutil.pid_exists(int(done.stdout))


def find_double() -> str:
    return f"{sys.executable} {Path(conport_double.__file__)}"


def test_a_killed_child_is_respawned_and_the_write_repeated(make_client, workspace):
    client = make_client({"die_before": "log_custom_data"})
    row = client.log_custom_data({"category": "C", "key": "k", "value": "v"})
    assert row["value"] == "v"
    assert calls(workspace).count("log_custom_data") == 2


def test_a_child_killed_from_outside_is_respawned(make_client):
    client = make_client()
    client.log_custom_data({"category": "C", "key": "k", "value": "v"})
    for child in children():
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
    assert client.get_custom_data("C")[0]["value"] == "v"


def test_a_write_that_landed_before_the_connection_ended_is_not_repeated(make_client, workspace):
    client = make_client({"die_after": "log_custom_data"})
    assert client.log_custom_data({"category": "C", "key": "k", "value": "v"})["key"] == "k"
    assert calls(workspace).count("log_custom_data") == 1


def test_a_decision_that_landed_before_the_connection_ended_is_logged_once(make_client):
    client = make_client({"die_after": "log_decision"})
    logged = client.log_decision("Promote v2", "better", tags=["ragtune"])
    assert [row["id"] for row in client.get_decisions()] == [logged["id"]]


def test_a_link_that_landed_before_the_connection_ended_is_made_once(make_client, workspace):
    client = make_client({"die_after": "link_conport_items"})
    client.link_items("decision", "1", "custom_data", "ModelVersions:v2", "concerns")
    assert calls(workspace).count("link_conport_items") == 1


def test_an_unanswered_write_is_read_back_and_then_repeated(make_client, workspace, monkeypatch):
    client = make_client({"hang": "log_custom_data"})
    client.get_custom_data("C")
    monkeypatch.setattr(ConPortSession, "call_timeout_s", 0.5)
    client.log_custom_data({"category": "C", "key": "k", "value": "v"})
    assert calls(workspace) == ["get_custom_data", "log_custom_data", "get_custom_data", "log_custom_data"]


def test_a_locked_database_is_tried_again(make_client, workspace):
    client = make_client({"locked": 3})
    assert client.log_custom_data({"category": "C", "key": "k", "value": 1})["value"] == 1
    assert calls(workspace).count("log_custom_data") == 4


def test_a_database_that_stays_locked_is_reported(make_client):
    client = make_client({"locked": 99})
    with pytest.raises(ConPortUnavailable, match="locked"):
        client.log_custom_data({"category": "C", "key": "k", "value": 1})


def test_a_refused_entry_is_the_callers_mistake_and_not_repeated(make_client, workspace):
    client = make_client({"refuse": "k"})
    with pytest.raises(InvalidInput, match="validation error"):
        client.log_custom_data({"category": "C", "key": "k", "value": 1})
    assert calls(workspace).count("log_custom_data") == 1


def test_bulk_writes_report_refused_rows_and_progress(make_client):
    client = make_client({"refuse": "k150"})
    seen: list[tuple[int, int]] = []
    entries = [{"category": "C", "key": f"k{n:03}", "value": n} for n in range(250)]
    result = client.log_custom_data_many(entries, lambda done, total: seen.append((done, total)))
    assert (result.written, [(f.row, f.key) for f in result.failed]) == (249, [(150, "k150")])
    assert seen == [(100, 250), (200, 250), (250, 250)]
    assert [row["value"] for row in client.get_custom_data("C")] == [n for n in range(250) if n != 150]


def test_bulk_writes_repeat_only_the_items_that_met_a_locked_database(make_client, workspace):
    client = make_client({"locked_item": "k1"})
    result = client.log_custom_data_many([{"category": "C", "key": f"k{n}", "value": n} for n in range(3)])
    assert result == (3, ())
    assert calls(workspace).count("batch_log_items") == 2
    assert [row["value"] for row in client.get_custom_data("C")] == [0, 1, 2]


def test_a_bulk_write_survives_the_death_of_the_child(make_client):
    client = make_client({"die_after": "batch_log_items"})
    assert (
        client.log_custom_data_many([{"category": "C", "key": f"k{n}", "value": n} for n in range(3)]).written
        == 3
    )
    assert len(client.get_custom_data("C")) == 3


def test_large_values_share_no_chunk(make_client, workspace):
    client = make_client()
    client.log_custom_data_many([{"category": "C", "key": f"k{n}", "value": "x" * 600_000} for n in range(3)])
    assert calls(workspace).count("batch_log_items") == 3


def test_an_idle_child_is_stopped(make_client):
    client = make_client(ragtune_conport_idle_s=1.0)
    client.log_custom_data({"category": "C", "key": "k", "value": 1})
    (child,) = children()
    child.wait(30)
    assert client.get_custom_data("C")[0]["value"] == 1


def test_a_missing_program_is_named_at_once(absent_client):
    with pytest.raises(ConPortUnavailable, match="no-such-conport") as caught:
        absent_client.get_custom_data("C")
    assert "RAGTUNE_CONPORT_COMMAND" in caught.value.hint


def test_a_program_that_is_no_conport_is_unavailable(make_client):
    client = make_client(ragtune_conport_command=f"{sys.executable} -c pass")
    with pytest.raises(ConPortUnavailable, match="could not be started"):
        client.get_custom_data("C")


def test_a_url_where_nothing_answers_is_unavailable(workspace):
    client = ConPortClient(workspace.id, Settings(ragtune_conport_url="http://127.0.0.1:9/mcp"))
    with pytest.raises(ConPortUnavailable, match="could not be started or reached"):
        client.get_custom_data("C")


def test_http_without_a_url_is_refused(workspace):
    with pytest.raises(InvalidInput, match="RAGTUNE_CONPORT_URL"):
        ConPortClient(workspace.id, Settings(ragtune_conport="http"))


def test_the_program_is_found_beside_the_interpreter_without_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    program, *arguments = find_command(f"{Path(sys.executable).name} -m x")
    assert Path(program).parent == Path(sys.executable).parent
    assert arguments == ["-m", "x"]


def test_on_a_fresh_workspace_another_starting_conport_is_waited_for(make_client, workspace, monkeypatch):
    looked: list[str] = []

    def running(workspace_id: str) -> list[int]:
        looked.append(workspace_id)
        if len(looked) == 3:
            conport_double.create(workspace.root)
        return [1]

    monkeypatch.setattr(conport_launch, "running", running)
    make_client().log_custom_data({"category": "C", "key": "k", "value": 1})
    assert looked == [workspace.id] * 3


@pytest.mark.parametrize(
    "entry",
    [
        {"category": "", "key": "k", "value": 1},
        {"category": "C", "value": 1},
        {"category": "C", "key": 3, "value": 1},
        {"category": "C", "key": "k"},
        {"category": "C", "key": "k", "value": {1, 2}},
        {"category": "C", "key": "k", "value": 1, "metadata": {}},
        {"category": "C", "key": "k", "value": 1, "workspace_id": "/no/such/folder"},
    ],
)
def test_a_malformed_entry_is_refused_before_anything_starts(absent_client, entry):
    with pytest.raises(InvalidInput):
        absent_client.log_custom_data(entry)
    with pytest.raises(InvalidInput):
        absent_client.log_custom_data_many([{"category": "C", "key": "k", "value": 1}, entry])


def test_auto_reads_the_file_without_starting_conport(file_client, workspace):
    file_client.log_custom_data({"category": "C", "key": "k", "value": "ü"})
    auto = ConPortClient(workspace.id, Settings(ragtune_conport_command="no-such-conport"))
    assert auto.get_custom_data("C")[0]["value"] == "ü"
    assert auto.backend == "sqlite"
    assert auto.count_custom_data("C") == 1
    with pytest.raises(ConPortUnavailable):
        auto.log_custom_data({"category": "C", "key": "k", "value": 1})


def test_auto_leaves_an_unknown_schema_to_conport(file_client, make_client, workspace):
    file_client.log_custom_data({"category": "C", "key": "k", "value": 1})
    with sqlite3.connect(workspace.conport_database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '20300101'")
    connection.close()
    auto = make_client(ragtune_conport="auto")
    assert auto.count_custom_data("C") is None
    assert auto.get_custom_data("C")[0]["value"] == 1
    assert auto.backend == "stdio"
    with pytest.raises(ConPortUnavailable, match="20300101"):
        file_client.get_custom_data("C")


def test_the_file_backend_needs_a_database(workspace):
    client = ConPortClient(workspace.id, Settings(ragtune_conport="sqlite"))
    with pytest.raises(ConPortUnavailable, match="does not exist"):
        client.get_custom_data("C")
    assert client.count_custom_data("C") is None


def test_a_damaged_database_is_unavailable_and_never_empty(workspace):
    conport_double.create(workspace.root).write_bytes(b"not a database" * 100)
    with pytest.raises(ConPortUnavailable):
        ConPortClient(workspace.id, Settings(ragtune_conport="sqlite")).get_custom_data("C")


def test_file_and_process_give_the_same_rows(file_client, make_client):
    values = ["text", '{"a": 1}', 3, 2.5, True, None, [1, "ü"], {"k": {"n": [None]}}, "😀", ""]
    file_client.log_custom_data_many(
        [{"category": "C", "key": f"k{n}", "value": v} for n, v in enumerate(values)]
    )
    file_client.log_custom_data({"category": "A", "key": "k", "value": 1})
    file_client.log_decision("s", "r", "d", ["t"])
    file_client.log_decision("s2")
    process = make_client()
    assert process.get_custom_data("C") == file_client.get_custom_data("C")
    assert process.get_all_custom_data() == file_client.get_all_custom_data()
    assert [row["value"] for row in file_client.get_custom_data("C")] == values
    by_id = sorted(file_client.get_decisions(), key=lambda row: row["id"])
    assert process.get_decisions() == by_id


def test_the_file_backend_writes_decisions_and_links(file_client, workspace):
    decision = file_client.log_decision("Promote", "why", tags=["ragtune"])
    file_client.link_items("decision", str(decision["id"]), "custom_data", "M:v", "concerns", "d")
    with sqlite3.connect(workspace.conport_database) as connection:
        (link,) = connection.execute(
            "SELECT workspace_id, source_item_id, target_item_id, relationship_type FROM context_links"
        )
    connection.close()
    assert link == (workspace.id, str(decision["id"]), "M:v", "concerns")
    assert file_client.get_decisions() == [{**decision, "timestamp": decision["timestamp"]}]
    assert file_client.get_progress() == file_client.get_system_patterns() == []


def test_overwriting_a_key_leaves_one_row_with_a_new_id(file_client):
    first = file_client.log_custom_data({"category": "C", "key": "k", "value": 1})
    file_client.log_custom_data({"category": "C", "key": "other", "value": 1})
    second = file_client.log_custom_data({"category": "C", "key": "k", "value": 2})
    assert [row["value"] for row in file_client.get_custom_data("C", "k")] == [2]
    assert first["id"] != second["id"]


@pytest.mark.parametrize("backend", ["sqlite", "stdio"])
def test_reading_since_a_moment_skips_older_rows(backend, file_client, make_client, workspace):
    file_client.log_custom_data_many([{"category": "C", "key": key, "value": 1} for key in ("old", "new")])
    with sqlite3.connect(workspace.conport_database) as connection:
        connection.execute("UPDATE custom_data SET timestamp = '2026-01-01T10:00:00+00:00' WHERE key = 'old'")
    connection.close()
    client = file_client if backend == "sqlite" else make_client()
    edge = datetime(2026, 1, 1, 10, 0, 0, 900_000, tzinfo=UTC)
    assert [r["key"] for r in client.get_custom_data("C", since=edge)] == ["new", "old"]
    assert [r["key"] for r in client.get_custom_data("C", since=edge + timedelta(seconds=1))] == ["new"]


def test_a_row_that_is_not_json_is_shown_and_not_dropped(file_client, workspace):
    with sqlite3.connect(workspace.conport_database) as connection:
        connection.execute(
            "INSERT INTO custom_data (timestamp, category, key, value) "
            "VALUES ('2026-01-01T00:00:00+00:00', 'C', 'k', '{\"a')"
        )
    connection.close()
    assert file_client.get_custom_data("C")[0]["value"] == '{"a'


def test_another_workspace_can_be_named_in_the_entry(file_client, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    conport_double.create(other)
    file_client.log_custom_data({"workspace_id": f"{other}/", "category": "C", "key": "k", "value": 1})
    assert file_client.get_custom_data("C") == []
    assert file_client.get_custom_data("C", workspace_id=str(other))[0]["value"] == 1


def test_values_arrive_as_plain_json(file_client):
    value = {"nan": float("nan"), "half": "x\ud800", "inf": [float("-inf")], "text": "NaN and Infinity"}
    row = file_client.log_custom_data({"category": "C", "key": "k", "value": value})
    expected = {"nan": None, "half": "x\ufffd", "inf": [None], "text": "NaN and Infinity"}
    assert row["value"] == expected
    assert file_client.get_custom_data("C")[0]["value"] == expected


def test_timestamps_are_utc_with_a_z(file_client):
    before = utc_now().replace(microsecond=0)
    file_client.log_custom_data({"category": "C", "key": "k", "value": 1})
    stamp = file_client.get_custom_data("C")[0]["timestamp"]
    assert stamp.endswith("Z")
    assert before <= from_iso(stamp) <= utc_now()


@pytest.mark.parametrize("value", [{"a": [1]}, "text", '{"a": 1}', None])
def test_the_value_is_sent_as_text_to_a_conport_whose_schema_wants_text(make_client, value):
    client = make_client({"strict": True})
    client.log_custom_data({"category": "C", "key": "k", "value": value})
    assert client.get_custom_data("C")[0]["value"] == value
