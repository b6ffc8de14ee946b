from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.errors import ConPortUnavailable
from ragtune_mcp.core.feedback.reader import parse_rows, read_feedback

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def value(days_ago: float = 1, **changes):
    return {"query": "q", "rating": 4, "timestamp": to_iso(NOW - timedelta(days=days_ago)), **changes}


def row(key: str, entry: object, timestamp: datetime = NOW) -> dict[str, object]:
    return {"id": 1, "timestamp": to_iso(timestamp), "category": "UserFeedback", "key": key, "value": entry}


def put(client, **entries):
    client.log_custom_data_many(
        [{"category": "UserFeedback", "key": key, "value": entry} for key, entry in entries.items()]
    )


def test_every_entry_read_is_a_record_or_rejected_by_reason(file_client, states):
    put(
        file_client,
        good=value(),
        text=json.dumps(value(rating="5")),
        old=value(91),
        future=value(-2),
        bad=value(rating=9),
        torn='{"query": "q',
        silent={"query": "q"},
    )
    batch = read_feedback(file_client, states, 90, NOW)
    assert [record.feedback_id for record in batch.records] == ["good", "text"]
    assert {(r.feedback_id, r.reason) for r in batch.rejected} == {
        ("old", "too_old"),
        ("future", "in_the_future"),
        ("bad", "invalid_rating"),
        ("torn", "invalid_json"),
        ("silent", "no_rating"),
    }
    assert batch.read == 7


def test_the_age_limit_counts_from_the_entrys_own_time_and_includes_its_edge():
    rows = [row("edge", value(90)), row("over", value(90.001)), row("undated", {"query": "q", "rating": 1})]
    batch = parse_rows(rows, 90, NOW)
    assert [record.key for record in batch.records] == ["edge", "undated"]


def test_waiting_entries_are_read_and_newer_than_stored_ones(file_client, outbox, states):
    put(file_client, a=value(rating=1), b=value(rating=2))
    outbox.put_custom_data("UserFeedback", "a", value(rating=5))
    outbox.put_custom_data("UserFeedback", "c", value(rating=3))
    outbox.put_custom_data("Other", "d", value())
    batch = read_feedback(file_client, states, 90, NOW)
    assert [(record.key, record.rating) for record in batch.records] == [("a", 5), ("b", 2), ("c", 3)]


def test_other_categories_are_not_feedback(file_client, states):
    file_client.log_custom_data({"category": "UserFeedbackArchive", "key": "x", "value": value()})
    assert read_feedback(file_client, states, 90, NOW).read == 0


def test_an_absent_conport_is_an_error_and_never_an_empty_batch(absent_client, outbox, states):
    outbox.put_custom_data("UserFeedback", "a", value())
    with pytest.raises(ConPortUnavailable):
        read_feedback(absent_client, states, 90, NOW)


def test_the_order_of_rows_does_not_matter(file_client, states):
    rows = {f"k{n}": value(rating=1 + n % 5) for n in range(20)}
    put(file_client, **rows)
    first = read_feedback(file_client, states, 90, NOW)
    put(file_client, **dict(reversed(rows.items())))
    assert read_feedback(file_client, states, 90, NOW) == first


def test_broken_rows_of_every_kind_survive_together():
    broken = [
        '{"query": "q", "rating": ',
        "\x00\x01",
        value(rating=float("nan")),
        value(rating="five"),
        value(rating=0),
        value(timestamp="soon"),
        value(documents=[{"id": None}]),
        [],
        None,
    ]
    good = [value(response="x" * 5_000_000), value(query="w " * 29_000)]
    batch = parse_rows([row(f"k{n}", entry) for n, entry in enumerate([*broken, *good])], 90, NOW)
    assert (len(batch.records), len(batch.rejected)) == (len(good), len(broken))
    assert all(rejected.detail for rejected in batch.rejected)
