"""The state of every feedback entry at the last read: enough to see what changed since, without any text.

A data set follows from all entries, so making one reads them all. Whether ratings that were trained on have
been changed or deleted is seen by an incremental read: keys and stamps of all rows, and the values of those
only whose stamp is another one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from ragtune_mcp.core.clock import from_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import FeedbackInvalid
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.conport_file import stamp_of
from ragtune_mcp.core.feedback.fields import encode_json, name
from ragtune_mcp.core.feedback.outbox import Outbox
from ragtune_mcp.core.feedback.parsing import CATEGORY, unwrap_entry
from ragtune_mcp.core.workspace import sha256_text

# ConPort's time has whole seconds and SQLite may give an id again: a row this young could be overwritten
# without its stamp showing it, so it is read once more.
_UNSETTLED = timedelta(seconds=2)


class KnownEntry(NamedTuple):
    """An entry by its names."""

    key: str
    feedback_id: str


class FeedbackStates:
    """What `UserFeedback` held at the last read, entries waiting in the outbox included."""

    def __init__(self, db: Database, outbox: Outbox) -> None:
        self._db = db
        self._outbox = outbox

    def read_all(self, client: ConPortClient) -> dict[str, dict[str, Any]]:
        """Read every entry, and note its state.

        Args:
            client: where to read.

        Returns:
            Rows {id, timestamp, category, key, value} by key; an entry that waits in the outbox stands for
            the stored one of its key, whose newer state it is.

        Raises:
            ConPortUnavailable: ConPort cannot be read; what was noted before stays.
        """
        started = utc_now()
        stored = {row["key"]: row for row in client.get_custom_data(CATEGORY)}
        waiting = self._waiting()
        self._note(stored.values(), waiting, stored.keys(), started)
        return stored | waiting

    def refresh(self, client: ConPortClient) -> int | None:
        """Read only what changed since the last read, and note it.

        Args:
            client: where to read.

        Returns:
            How many entries are new, changed or gone; None, with nothing done, where ConPort's file cannot be
            read, since a tool call always returns everything.

        Raises:
            ConPortUnavailable: ConPort became unreachable on the way.
        """
        started = utc_now()
        stamps = client.custom_data_stamps(CATEGORY)
        if stamps is None:
            return None
        known = self._stamps()
        changed = {key for key, stamp in stamps.items() if known.get(key) != stamp}
        rows: list[dict[str, Any]] = []
        if changed:
            oldest = min(from_iso(stamps[key].partition(" ")[2]) for key in changed)
            rows = [r for r in client.get_custom_data(CATEGORY, since=oldest) if r["key"] in changed]
        return self._note(rows, self._waiting(), stamps.keys(), started)

    def hashes(self) -> dict[str, str]:
        """Key -> sha256 of the entry, as last read."""
        rows = self._db.connection.execute("SELECT key, sha256 FROM feedback_states")
        return {row["key"]: row["sha256"] for row in rows}

    def find(self, identifier: str) -> KnownEntry | None:
        """The entry with this key or feedback id; None where the last read found no such entry."""
        row = self._db.connection.execute(
            "SELECT key, feedback_id FROM feedback_states WHERE key = ?1 OR feedback_id = ?1 "
            "ORDER BY key <> ?1, key LIMIT 1",
            (identifier,),
        ).fetchone()
        return None if row is None else KnownEntry(*row)

    def _stamps(self) -> dict[str, str]:
        rows = self._db.connection.execute("SELECT key, stamp FROM feedback_states")
        return {row["key"]: row["stamp"] for row in rows}

    def _waiting(self) -> dict[str, dict[str, Any]]:
        return {row["key"]: row for row in self._outbox.pending_custom_data(CATEGORY)}

    def _note(
        self,
        rows: Iterable[Mapping[str, Any]],
        waiting: Mapping[str, Mapping[str, Any]],
        present: Collection[str],
        started: datetime,
    ) -> int:
        """Replace what is known of `rows` and the waiting entries, forget what is not present; count changes."""
        known, before = self._stamps(), self.hashes()
        noted = []
        for row in rows:
            stamp = stamp_of(row)
            if row["key"] not in waiting and known.get(row["key"]) != stamp:
                settled = from_iso(row["timestamp"]) < started - _UNSETTLED
                noted.append(_state(row, stamp if settled else ""))
        noted += (_state(row, "") for row in waiting.values())
        gone = [(key,) for key in before if key not in present and key not in waiting]
        with self._db.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO feedback_states (key, feedback_id, stamp, sha256) VALUES (?, ?, ?, ?)",
                noted,
            )
            connection.executemany("DELETE FROM feedback_states WHERE key = ?", gone)
        return len(gone) + sum(before.get(key) != sha256 for key, _, _, sha256 in noted)


def _state(row: Mapping[str, Any], stamp: str) -> tuple[str, str, str, str]:
    key, value = row["key"], row["value"]
    try:
        own = name(unwrap_entry(value).get("feedback_id"))
    except FeedbackInvalid:
        # Nothing can be read of it, so it is rejected under its key.
        own = ""
    return key, own or key, stamp, sha256_text(encode_json(value))
