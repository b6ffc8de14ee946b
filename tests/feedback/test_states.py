from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragtune_mcp.core.errors import ConPortUnavailable
from ragtune_mcp.core.feedback.fields import encode_json
from ragtune_mcp.core.feedback.states import KnownEntry
from ragtune_mcp.core.workspace import sha256_text

CATEGORY = "UserFeedback"


def put(client, **entries):
    client.log_custom_data_many(
        [{"category": CATEGORY, "key": key, "value": value} for key, value in entries.items()]
    )


def delete(workspace, key):
    with sqlite3.connect(workspace.conport_database) as connection:
        connection.execute("DELETE FROM custom_data WHERE key = ?", (key,))
    connection.close()


def age(workspace):
    """Make every row old enough for its stamp to settle its state."""
    with sqlite3.connect(workspace.conport_database) as connection:
        connection.execute("UPDATE custom_data SET timestamp = '2026-01-01T00:00:00+00:00'")
    connection.close()


class Counting:
    """A client that notes how many values were read."""

    def __init__(self, client):
        self._client = client
        self.custom_data_stamps = client.custom_data_stamps
        self.read = 0

    def get_custom_data(self, category, key=None, since=None):
        rows = self._client.get_custom_data(category, key, since=since)
        self.read += len(rows)
        return rows


def test_only_what_changed_is_read_again(file_client, states, workspace):
    put(file_client, **{f"k{n}": {"rating": 1} for n in range(50)})
    age(workspace)
    client = Counting(file_client)
    assert (states.refresh(client), client.read) == (50, 50)
    assert (states.refresh(client), client.read) == (0, 50)
    put(file_client, k3={"rating": 5}, new={"rating": 2})
    delete(workspace, "k7")
    assert (states.refresh(client), client.read) == (3, 52)


def test_the_same_value_written_again_is_no_change(file_client, states, workspace):
    put(file_client, a={"rating": 1})
    age(workspace)
    states.refresh(file_client)
    put(file_client, a={"rating": 1})
    assert states.refresh(file_client) == 0


def test_a_restored_older_state_is_noticed(file_client, states, workspace):
    put(file_client, a={"rating": 1}, b={"rating": 1})
    states.refresh(file_client)
    put(file_client, a={"rating": 5})
    with sqlite3.connect(workspace.conport_database) as connection:
        connection.execute("UPDATE custom_data SET timestamp = '2020-01-01T00:00:00+00:00' WHERE key = 'a'")
    connection.close()
    assert states.refresh(file_client) == 1


def test_an_entry_is_the_same_while_it_waits_and_when_it_has_arrived(file_client, states, outbox):
    outbox.put_custom_data(CATEGORY, "a", {"feedback_id": "id-a", "rating": float("nan"), "query": "ü"})
    assert states.refresh(file_client) == 1
    outbox.flush(file_client)
    assert states.refresh(file_client) == 0
    assert states.find("id-a") == states.find("a") == KnownEntry("a", "id-a")
    assert states.find("b") is None


def test_where_the_file_may_not_be_read_nothing_is_done(make_client, states):
    client = make_client()
    put(client, a={"rating": 1})
    assert states.refresh(client) is None
    assert states.hashes() == {}
    assert list(states.read_all(client)) == list(states.hashes()) == ["a"]


def test_an_absent_conport_deletes_nothing(file_client, absent_client, states):
    put(file_client, a={"rating": 1})
    states.refresh(file_client)
    with pytest.raises(ConPortUnavailable):
        states.read_all(absent_client)
    assert list(states.hashes()) == ["a"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "delete", "wait", "flush", "age"]),
        st.integers(0, 3).map("k{}".format),
        st.integers(1, 3),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_an_incremental_read_ends_where_a_full_one_does(file_client, states, outbox, workspace, steps):
    for key in states.hashes():
        delete(workspace, key)
    outbox.flush(file_client)
    for what, key, rating in (("age", "", 0), *steps):
        if what == "put":
            put(file_client, **{key: {"rating": rating}})
        elif what == "delete":
            delete(workspace, key)
        elif what == "wait":
            outbox.put_custom_data(CATEGORY, key, {"rating": rating})
        elif what == "flush":
            outbox.flush(file_client)
        else:
            age(workspace)
        states.refresh(file_client)
        newest = {row["key"]: row["value"] for row in file_client.get_custom_data(CATEGORY)}
        newest |= {row["key"]: row["value"] for row in outbox.pending_custom_data(CATEGORY)}
        assert states.hashes() == {k: sha256_text(encode_json(v)) for k, v in newest.items()}


@pytest.mark.parametrize(
    ("value", "feedback_id"),
    [
        ({"feedback_id": "inner"}, "inner"),
        (json.dumps({"feedback_id": "inner"}), "inner"),
        ({"key": "k1", "value": {"feedback_id": "inner"}}, "inner"),
        ({"rating": 5}, "k1"),
        ('{"feedback_id": "inner"', "k1"),
        (["inner"], "k1"),
    ],
    ids=["object", "text", "envelope", "none", "torn", "array"],
)
def test_an_entry_is_found_by_the_id_it_is_read_under(file_client, states, value, feedback_id):
    put(file_client, k1=value)
    states.refresh(file_client)
    assert states.find("k1") == states.find(feedback_id) == KnownEntry("k1", feedback_id)
