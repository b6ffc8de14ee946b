"""Feedback out of ConPort and the outbox, parsed; every entry ends as a record or is rejected by reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ragtune_mcp.core.clock import from_iso, to_iso
from ragtune_mcp.core.errors import FeedbackInvalid
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.parsing import parse_feedback
from ragtune_mcp.core.feedback.records import FeedbackBatch, FeedbackRecord, Rejected
from ragtune_mcp.core.feedback.states import FeedbackStates

# Clocks of other machines may run ahead by a little; recency weights must not see the future.
_CLOCK_SKEW = timedelta(days=1)


def read_feedback(
    client: ConPortClient, states: FeedbackStates, days_back: int, now: datetime
) -> FeedbackBatch:
    """All `UserFeedback` entries: what ConPort holds, and over it what still waits in the outbox.

    Args:
        client: where to read.
        states: notes what was read.
        days_back: entries older than this many days before `now` are rejected as too_old.
        now: aware UTC.

    Returns:
        The entries by key; `read == len(records) + len(rejected)`.

    Raises:
        ConPortUnavailable: ConPort cannot be read; never an empty batch instead.
    """
    newest = states.read_all(client)
    return parse_rows((newest.pop(key) for key in sorted(newest)), days_back, now)


def parse_rows(rows: Iterable[Mapping[str, Any]], days_back: int, now: datetime) -> FeedbackBatch:
    """Parse rows {key, timestamp, value}; beside the reasons of `parse_feedback`: too_old, in_the_future."""
    records: list[FeedbackRecord] = []
    rejected: list[Rejected] = []
    oldest, latest = now - timedelta(days=days_back), now + _CLOCK_SKEW
    for row in rows:
        try:
            record = parse_feedback(row["key"], row["value"], from_iso(row["timestamp"]))
        except FeedbackInvalid as error:
            rejected.append(Rejected(row["key"], error.reason, error.message))
            continue
        if oldest <= record.timestamp <= latest:
            records.append(record)
        else:
            reason = "too_old" if record.timestamp < oldest else "in_the_future"
            rejected.append(Rejected(record.feedback_id, reason, to_iso(record.timestamp)))
    return FeedbackBatch(tuple(records), tuple(rejected))
