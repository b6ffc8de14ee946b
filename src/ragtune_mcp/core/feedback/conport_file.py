"""ConPort's own SQLite file, for bulk reads and the backend `sqlite`; only at the known schema revision."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ragtune_mcp.core.clock import from_iso, utc_now
from ragtune_mcp.core.errors import ConPortUnavailable
from ragtune_mcp.core.feedback.fields import encode_json

KNOWN_REVISION = "20250617"
_BUSY_TIMEOUT_S = 10.0
_HINT = "Start ConPort once in this workspace, or set RAGTUNE_CONPORT=stdio."
_REPLACE = "INSERT OR REPLACE INTO custom_data (timestamp, category, key, value) VALUES (?, ?, ?, ?)"
_QUERIES = {
    "decisions": "SELECT id, timestamp, summary, rationale, implementation_details, tags FROM decisions "
    "ORDER BY timestamp DESC",
    "progress": "SELECT id, timestamp, status, description, parent_id FROM progress_entries "
    "ORDER BY timestamp DESC",
    "patterns": "SELECT id, timestamp, name, description, tags FROM system_patterns ORDER BY name",
}


class ConPortFile:
    """`context_portal/context.db` of one workspace; every call opens it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_known(self) -> bool:
        """Whether the file is there and of the schema revision that is known here."""
        if not self.path.is_file():
            return False
        try:
            return self._revision() == KNOWN_REVISION
        except ConPortUnavailable:
            return False

    def custom_data(
        self, category: str | None = None, key: str | None = None, since: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Rows {id, timestamp, category, key, value} by category and key, as ConPort returns them.

        A value that is not JSON stays text: ConPort leaves such a row out, here the reader reports it.
        """
        conditions, parameters = [], []
        for column, wanted in (("category", category), ("key", key), ("timestamp", _stored(since))):
            if wanted is not None:
                conditions.append(f"{column} {'>=' if column == 'timestamp' else '='} ?")
                parameters.append(wanted)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"SELECT id, timestamp, category, key, value FROM custom_data{where} ORDER BY category, key"
        with self._reading() as connection:
            # Row by row: the texts and the decoded values of 100,000 rows are not to be in memory together.
            return [
                {"id": id_, "timestamp": _shown(moment), "category": of, "key": name, "value": _value(text)}
                for id_, moment, of, name, text in connection.execute(sql, parameters)
            ]

    def stamps(self, category: str) -> dict[str, str]:
        """Key -> `stamp_of` of every row of a category; values are not read."""
        sql = "SELECT id, timestamp, key FROM custom_data WHERE category = ?"
        with self._reading() as connection:
            return {
                key: stamp_of({"id": id_, "timestamp": _shown(moment)})
                for id_, moment, key in connection.execute(sql, (category,))
            }

    def count(self, category: str) -> int:
        """Number of custom data rows of a category."""
        with self._reading() as connection:
            counted = connection.execute("SELECT count(*) FROM custom_data WHERE category = ?", (category,))
            return int(counted.fetchone()[0])

    def items(self, kind: str) -> list[dict[str, Any]]:
        """Rows of `decisions`, `progress` or `patterns`, in ConPort's order."""
        with self._reading() as connection:
            cursor = connection.execute(_QUERIES[kind])
            names = [column[0] for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor]
        for row in rows:
            row["timestamp"] = _shown(row["timestamp"])
            if "tags" in row:
                row["tags"] = json.loads(row["tags"]) if row["tags"] else None
        return rows

    def write_custom_data(self, entries: Sequence[tuple[str, str, Any]]) -> list[dict[str, Any]]:
        """Write (category, key, value) entries in one transaction, replacing those with the same key."""
        now = _stored(utc_now())
        rows = []
        with self._writing() as connection:
            for category, key, value in entries:
                cursor = connection.execute(_REPLACE, (now, category, key, encode_json(value)))
                row = {"category": category, "key": key, "value": value}
                rows.append({"id": cursor.lastrowid, "timestamp": _shown(now), **row})
        return rows

    def write_row(self, table: str, row: dict[str, Any]) -> dict[str, Any]:
        """Add one row to `decisions` or `context_links` and return it with its id and timestamp."""
        stored = {**row, "timestamp": _stored(utc_now())}
        if isinstance(stored.get("tags"), list):
            stored["tags"] = encode_json(stored["tags"])
        marks = ", ".join("?" * len(stored))
        with self._writing() as connection:
            cursor = connection.execute(
                f"INSERT INTO {table} ({', '.join(stored)}) VALUES ({marks})", tuple(stored.values())
            )
        return {"id": cursor.lastrowid, **row, "timestamp": _shown(stored["timestamp"])}

    def _revision(self) -> str:
        with self._opened("ro") as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else ""

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._require()
        with self._opened("ro") as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self._require()
        with self._opened("rw") as connection, connection:
            yield connection

    @contextmanager
    def _opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            uri = f"{self.path.absolute().as_uri()}?mode={mode}"
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
                yield connection
        except sqlite3.Error as error:
            message = f"ConPort's database {self.path} cannot be used: {error}."
            raise ConPortUnavailable(message, hint=_HINT) from error

    def _require(self) -> None:
        if not self.path.is_file():
            raise ConPortUnavailable(f"ConPort's database {self.path} does not exist.", hint=_HINT)
        revision = self._revision()
        if revision != KNOWN_REVISION:
            raise ConPortUnavailable(
                f"ConPort's database {self.path} has the schema revision {revision!r}; "
                f"known is {KNOWN_REVISION!r}.",
                hint="Set RAGTUNE_CONPORT=stdio.",
            )


def stamp_of(row: Mapping[str, Any]) -> str:
    """What ConPort sets anew whenever it overwrites a row: id and time, the time in whole seconds."""
    return f"{row['id']} {row['timestamp']}"


def find_decision(
    rows: Iterable[dict[str, Any]], summary: str, rationale: str, since: datetime
) -> dict[str, Any] | None:
    """The first of these decisions that has the same words and was logged at that moment or later."""
    # ConPort keeps whole seconds.
    start = since - timedelta(seconds=1)
    same = (row for row in rows if row["summary"] == summary and (row["rationale"] or "") == rationale)
    return next((row for row in same if from_iso(row["timestamp"]) >= start), None)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _stored(moment: datetime | None) -> str | None:
    """ConPort stores whole seconds with an offset, which sorts as text."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


def _shown(stored: Any) -> str:
    return str(stored).replace(" ", "T").removesuffix("+00:00").removesuffix("Z") + "Z"
