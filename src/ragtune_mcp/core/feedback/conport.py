"""ConPort, the project memory: where ratings are read and results are logged.

| backend | reads | writes |
|---|---|---|
| `auto` | ConPort's SQLite file where it is of the known revision, else as `stdio` | as `stdio` |
| `stdio` | our own ConPort process | the same |
| `http` | the ConPort at RAGTUNE_CONPORT_URL | the same |
| `sqlite` | ConPort's SQLite file | the same |

With a URL, `auto` is `http`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ragtune_mcp.core.clock import from_iso, utc_now
from ragtune_mcp.core.errors import ConPortUnavailable, InvalidInput
from ragtune_mcp.core.feedback import conport_launch
from ragtune_mcp.core.feedback.conport_file import ConPortFile, find_decision
from ragtune_mcp.core.feedback.conport_session import (
    LOCKED_PAUSES_S,
    ConPortInterrupted,
    ConPortSession,
    is_locked,
    pause,
)
from ragtune_mcp.core.feedback.fields import decode_json, encode_json
from ragtune_mcp.core.settings import Settings, find_workspace
from ragtune_mcp.core.workspace import Workspace

log = logging.getLogger(__name__)

T = TypeVar("T")

# 1.3 ms a row over MCP: 100,000 rows.
_READ_TIMEOUT_S = 600.0
# A ConPort by URL may embed, a second a row, and answers nobody else meanwhile.
_CHUNK_ROWS = {"stdio": 100, "http": 20}
_CHUNK_BYTES = 1_000_000
_ENTRY_KEYS = {"workspace_id", "category", "key", "value"}


class CustomData(NamedTuple):
    """One entry to write."""

    workspace_id: str
    category: str
    key: str
    value: Any


class RowFailure(NamedTuple):
    """One entry of a bulk write that ConPort refused; `row` counts from 0."""

    row: int
    key: str
    error: str


class BulkResult(NamedTuple):
    """Outcome of a bulk write."""

    written: int
    failed: tuple[RowFailure, ...]


class ConPortClient:
    """Plain calls of ConPort, safe from any thread; nothing starts before the first call that needs it.

    Calls block and must not be made on an event loop's thread.

    Args:
        workspace_id: the workspace's folder; None for the current project.
        settings: its settings; None to read them.

    Attributes:
        workspace_id: absolute path of the workspace, as ConPort stores it.
        backend: what served the last read: sqlite, stdio or http; "" before the first.
    """

    def __init__(self, workspace_id: str | None = None, settings: Settings | None = None) -> None:
        root = find_workspace(workspace_id or "")
        self._settings = settings or Settings.load(root)
        self._workspace = Workspace(root, self._settings)
        self.workspace_id = self._workspace.id
        self.backend = ""
        choice, url = self._settings.ragtune_conport, self._settings.ragtune_conport_url
        if choice == "http" and not url:
            raise InvalidInput("RAGTUNE_CONPORT is 'http' but RAGTUNE_CONPORT_URL is empty.")
        self._transport = "http" if choice == "http" or (choice == "auto" and url) else "stdio"
        self._reads_file = choice == "sqlite" or (choice == "auto" and not url)
        self._writes_file = choice == "sqlite"
        connect = (
            conport_launch.remote(url) if self._transport == "http" else conport_launch.child(self._workspace)
        )
        self._session = ConPortSession(connect, self._settings.ragtune_conport_idle_s)

    def get_custom_data(
        self, category: str, key: str | None = None, *, workspace_id: str = "", since: datetime | None = None
    ) -> list[dict[str, Any]]:
        """Custom data of a category.

        Args:
            category: ConPort category; an unknown one has no rows.
            key: only the row with this key.
            workspace_id: another workspace than the client's own.
            since: only rows written at or after this moment; ConPort keeps whole seconds.

        Returns:
            Rows {id, timestamp, category, key, value}, ordered by key. The timestamp is ISO-8601 with `Z`;
            ConPort sets it, and a new id, whenever the row is overwritten.

        Raises:
            ConPortUnavailable: ConPort cannot be reached.
            InvalidInput: the workspace does not exist.
        """
        target = self._target(workspace_id)
        arguments = {"workspace_id": target, "category": category, "key": key}
        rows: list[dict[str, Any]] = self._read(
            target,
            lambda file: file.custom_data(category, key, since),
            "get_custom_data",
            {name: value for name, value in arguments.items() if value is not None},
        )
        if since is not None and self.backend != "sqlite":
            floor = since.replace(microsecond=0)
            rows = [row for row in rows if from_iso(row["timestamp"]) >= floor]
        return rows

    def get_all_custom_data(self) -> list[dict[str, Any]]:
        """Custom data of all categories, ordered by category and key; as `get_custom_data`."""
        arguments = {"workspace_id": self.workspace_id}
        return self._read(self.workspace_id, lambda file: file.custom_data(), "get_custom_data", arguments)

    def get_decisions(self) -> list[dict[str, Any]]:
        """Rows {id, timestamp, summary, rationale, implementation_details, tags}, newest first."""
        return self._items("decisions", "get_decisions")

    def get_progress(self) -> list[dict[str, Any]]:
        """Rows {id, timestamp, status, description, parent_id}, newest first."""
        return self._items("progress", "get_progress")

    def get_system_patterns(self) -> list[dict[str, Any]]:
        """Rows {id, timestamp, name, description, tags}, by name."""
        return self._items("patterns", "get_system_patterns")

    def count_custom_data(self, category: str) -> int | None:
        """Number of rows of a category, or None where it cannot be counted without asking ConPort."""
        return self._from_file(lambda file: file.count(category))

    def custom_data_stamps(self, category: str) -> dict[str, str] | None:
        """Key -> stamp of every row of a category, or None where only whole rows can be had.

        A row whose stamp (see `stamp_of`) is as it was holds what it held, unless it was overwritten within a
        second or two.
        """
        return self._from_file(lambda file: file.stamps(category))

    def log_custom_data(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Write one custom data entry, replacing one of the same category and key.

        Args:
            entry: {category, key, value} and optionally workspace_id.

        Returns:
            The row as stored: {id, timestamp, category, key, value}.

        Raises:
            ConPortUnavailable: ConPort cannot be reached; the entry may be in ConPort if the connection
                ended during the call.
            InvalidInput: the entry is malformed or its workspace does not exist.
        """
        data = self._checked(entry)
        if self._writes_file:
            return self._file(data.workspace_id).write_custom_data([data[1:]])[0]

        def landed() -> dict[str, Any] | None:
            where = {"workspace_id": data.workspace_id, "category": data.category, "key": data.key}
            rows = self._session.call("get_custom_data", where)
            return rows[0] if rows and encode_json(rows[0]["value"]) == encode_json(data.value) else None

        result: dict[str, Any] = self._call("log_custom_data", data._asdict(), landed=landed)
        return result

    def log_custom_data_many(
        self, entries: Sequence[Mapping[str, Any]], progress: Callable[[int, int], None] | None = None
    ) -> BulkResult:
        """Write many custom data entries, in chunks; repeating the call after a failure does no harm.

        Args:
            entries: as for `log_custom_data`.
            progress: called with (entries done, all entries) after each chunk.

        Returns:
            How many were written, and which ConPort refused.

        Raises:
            ConPortUnavailable: ConPort cannot be reached; entries before the failure are written.
            InvalidInput: an entry is malformed; nothing is written.
        """
        checked = [self._checked(entry) for entry in entries]
        failed: list[RowFailure] = []
        done = 0
        for chunk in _chunks(checked, _CHUNK_ROWS[self._transport]):
            if self._writes_file:
                self._file(chunk[0].workspace_id).write_custom_data([data[1:] for data in chunk])
            else:
                failed.extend(f._replace(row=done + f.row) for f in self._write_chunk(chunk))
            done += len(chunk)
            if progress:
                progress(done, len(checked))
        return BulkResult(done - len(failed), tuple(failed))

    def log_decision(
        self, summary: str, rationale: str = "", implementation_details: str = "", tags: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Log a decision; returns the row as stored, with its id. Raises ConPortUnavailable."""
        row = {
            "summary": summary,
            "rationale": rationale or None,
            "implementation_details": implementation_details or None,
            "tags": list(tags) or None,
        }
        if self._writes_file:
            return self._file(self.workspace_id).write_row("decisions", row)
        started = utc_now()

        def landed() -> dict[str, Any] | None:
            recent = self._session.call("get_decisions", {"workspace_id": self.workspace_id, "limit": 20})
            return find_decision(recent, summary, rationale, started)

        result: dict[str, Any] = self._call(
            "log_decision", {"workspace_id": self.workspace_id, **row}, landed=landed
        )
        return result

    def link_items(
        self,
        source_type: str,
        source_id: str,
        target_type: str,
        target_id: str,
        relationship: str,
        description: str = "",
    ) -> dict[str, Any]:
        """Link two items; the ids are free text, `<Category>:<key>` for custom data.

        Returns the link as stored, with its id. Raises ConPortUnavailable.
        """
        row = {
            "source_item_type": source_type,
            "source_item_id": source_id,
            "target_item_type": target_type,
            "target_item_id": target_id,
            "relationship_type": relationship,
            "description": description or None,
        }
        arguments = {"workspace_id": self.workspace_id, **row}
        if self._writes_file:
            return self._file(self.workspace_id).write_row("context_links", arguments)

        def landed() -> dict[str, Any] | None:
            where = {"workspace_id": self.workspace_id, "item_type": source_type, "item_id": source_id}
            links = self._session.call("get_linked_items", where)
            return next((link for link in links if all(link.get(k) == v for k, v in row.items())), None)

        result: dict[str, Any] = self._call("link_conport_items", arguments, landed=landed)
        return result

    def close(self) -> None:
        """End our own ConPort process or the connection; a later call starts anew."""
        self._session.close()

    def _items(self, kind: str, tool: str) -> list[dict[str, Any]]:
        return self._read(
            self.workspace_id, lambda file: file.items(kind), tool, {"workspace_id": self.workspace_id}
        )

    def _from_file(self, read: Callable[[ConPortFile], T]) -> T | None:
        """What the file tells, or None where it may not be read or cannot be."""
        file = self._file(self.workspace_id)
        if not self._reads_file or not file.is_known():
            return None
        try:
            return read(file)
        except ConPortUnavailable as error:
            log.info("Not read from ConPort's file: %s", error)
            return None

    def _read(
        self,
        workspace_id: str,
        from_file: Callable[[ConPortFile], list[dict[str, Any]]],
        tool: str,
        arguments: dict[str, Any],
    ) -> list[dict[str, Any]]:
        file = self._file(workspace_id)
        if self._writes_file or (self._reads_file and file.is_known()):
            try:
                found = from_file(file)
                self.backend = "sqlite"
                return found
            except ConPortUnavailable as error:
                if self._writes_file:
                    raise
                log.warning("Reading through ConPort instead of its file: %s", error)
        rows: list[dict[str, Any]] = self._call(tool, arguments, timeout_s=_READ_TIMEOUT_S)
        self.backend = self._transport
        return rows

    def _call(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        landed: Callable[[], dict[str, Any] | None] | None = None,
        timeout_s: float = 0,
    ) -> Any:
        """Call a tool, once more after an interruption unless `landed` finds the first call's effect."""
        try:
            return self._session.call(tool, arguments, timeout_s=timeout_s)
        except ConPortInterrupted as error:
            log.warning("Repeating %s: %s", tool, error)
            found = landed() if landed else None
            return found or self._session.call(tool, arguments, timeout_s=timeout_s)

    def _write_chunk(self, chunk: Sequence[CustomData]) -> list[RowFailure]:
        failed: list[RowFailure] = []
        rows = list(range(len(chunk)))
        for wait_s in (*LOCKED_PAUSES_S, None):
            items = [
                {"category": chunk[r].category, "key": chunk[r].key, "value": chunk[r].value} for r in rows
            ]
            where = {"workspace_id": chunk[0].workspace_id, "item_type": "custom_data"}
            # The same keys written twice are one row, so that a repeated chunk needs no look first.
            refused = self._call("batch_log_items", {**where, "items": items})["failed_items"]
            locked = [rows[item["item_index"]] for item in refused if is_locked(item["error"])]
            for item in refused:
                row = rows[item["item_index"]]
                if row not in locked:
                    failed.append(RowFailure(row, chunk[row].key, item["error"]))
            if not locked:
                return failed
            if wait_s is not None:
                pause(wait_s)
            rows = locked
        raise ConPortUnavailable(
            "ConPort's database stays locked.", hint="Another process is writing to it; repeat."
        )

    def _checked(self, entry: Mapping[str, Any]) -> CustomData:
        unknown = set(entry) - _ENTRY_KEYS
        if unknown:
            raise InvalidInput(f"A custom data entry has no {sorted(unknown)}; it has {sorted(_ENTRY_KEYS)}.")
        for name in ("category", "key"):
            if not isinstance(entry.get(name), str) or not entry[name]:
                raise InvalidInput(
                    f"The {name} of a custom data entry is {entry.get(name)!r}; it must be text."
                )
        if "value" not in entry:
            raise InvalidInput(f"The custom data entry {entry['key']!r} has no value.")
        value = decode_json(encode_json(entry["value"]))
        return CustomData(
            self._target(entry.get("workspace_id") or ""), entry["category"], entry["key"], value
        )

    def _target(self, workspace_id: str) -> str:
        if not workspace_id:
            return self.workspace_id
        path = os.path.abspath(workspace_id)
        if path != self.workspace_id and not os.path.isdir(path):
            raise InvalidInput(f"The workspace folder {workspace_id!r} does not exist.")
        return path

    def _file(self, workspace_id: str) -> ConPortFile:
        return ConPortFile(Workspace(Path(workspace_id), self._settings).conport_database)


def _chunks(entries: Sequence[CustomData], rows: int) -> Iterator[list[CustomData]]:
    chunk: list[CustomData] = []
    size = 0
    for entry in entries:
        bytes_ = len(encode_json(entry.value))
        full = len(chunk) >= rows or size + bytes_ > _CHUNK_BYTES
        if chunk and (full or entry.workspace_id != chunk[0].workspace_id):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += bytes_
    if chunk:
        yield chunk
