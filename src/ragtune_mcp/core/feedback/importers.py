"""Feedback from files into ConPort: folders of JSON entries, `.json`, `.jsonl` and `.csv` files.

Each object is an entry of any shape `parse_feedback` reads. An entry in one of the two `UserFeedback` shapes
is stored as it is, a flat row (one rating of one document) as a `ragtune.feedback/1` entry. The columns of a
CSV file are the keys of the flat row: query and doc_id (or document, its text), rating, comment, rater,
timestamp and any others, which are kept.

A row that cannot be used is reported with its number and left out; the others go on. Importing the same rows
again changes nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.errors import ConPortUnavailable, FeedbackInvalid, InvalidInput
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.fields import decode_json, encode_json, name
from ragtune_mcp.core.feedback.outbox import FlushResult, Outbox
from ragtune_mcp.core.feedback.parsing import CATEGORY, feedback_value, is_flat, parse_feedback, unwrap_entry

_SUFFIXES = (".json", ".jsonl", ".csv")
# Spreadsheets compute such a cell; nobody typed it as a question or a comment.
_FORMULA = re.compile(r"\s*(?:=\S|[+\-@]\s*[A-Za-z_][\w.]*\s*[(|!])")
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff")
# Bytes that were no UTF-8, as `surrogateescape` decodes them.
_UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class ImportProblem:
    """A row left out: `row` counts from 1 (in CSV the header is row 1), 0 for the file as a whole."""

    source: str
    row: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the rows: `read == imported + unchanged + len(problems)`."""

    read: int
    imported: int
    unchanged: int
    problems: tuple[ImportProblem, ...]
    delivery: FlushResult

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> number of rows left out for it."""
        return dict(Counter(problem.reason for problem in self.problems))


class _Row(NamedTuple):
    source: str
    row: int
    content: Any


class _Entry(NamedTuple):
    source: _Row
    key: str
    value: dict[str, Any]
    has_time: bool


def import_feedback(
    paths: Sequence[Path],
    outbox: Outbox,
    client: ConPortClient,
    *,
    now: datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Read files and write their entries to ConPort, through the outbox.

    Args:
        paths: files, or folders whose `.json`, `.jsonl` and `.csv` files are meant (in a `.conport_local`
            folder those of its `UserFeedback`).
        outbox: where entries wait until ConPort has them.
        client: where they go; if ConPort is not there they keep waiting and the report says so.
        now: the time of entries that have none; None for the present.
        progress: called with (entries delivered, entries to deliver).

    Returns:
        The report.

    Raises:
        InvalidInput: a path does not exist or is no such file.
    """
    files = [file for path in paths for file in _files(path)]
    moment = now or utc_now()
    problems: list[ImportProblem] = []
    entries: dict[str, _Entry] = {}
    read = 0
    for file in files:
        seen: Counter[str] = Counter()
        for row in _rows(file):
            read += 1
            try:
                entry = _entry(row, seen, moment)
            except FeedbackInvalid as error:
                problems.append(ImportProblem(row.source, row.row, error.reason, error.message))
                continue
            earlier = entries.pop(entry.key, None)
            if earlier is not None:
                detail = f"{entry.key!r} stands again in row {row.row} of {row.source}; the later row counts."
                problems.append(
                    ImportProblem(earlier.source.source, earlier.source.row, "duplicate_key", detail)
                )
            entries[entry.key] = entry
    stored = _stored(outbox, client)
    changed = [entry for entry in entries.values() if not _is_stored(entry, stored)]
    outbox.put_custom_data_many(CATEGORY, ((entry.key, entry.value) for entry in changed))
    delivery = outbox.flush(client, progress)
    return ImportReport(read, len(changed), len(entries) - len(changed), tuple(problems), delivery)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        folder = path / CATEGORY if (path / CATEGORY).is_dir() else path
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not path.is_file():
        raise InvalidInput(f"There is no file or folder {str(path)!r}.")
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInput(f"{str(path)!r} is none of {', '.join(_SUFFIXES)}.")
    return [path]


def _rows(file: Path) -> Iterator[_Row]:
    """The rows of a file; a row that cannot be read has its `FeedbackInvalid` as content."""
    with file.open("rb") as handle:
        start = handle.read(2)
    if start in _OTHER_ENCODINGS:
        error = FeedbackInvalid("wrong_encoding", "The file is UTF-16; save it as UTF-8.")
        return iter([_Row(str(file), 0, error)])
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
    return readers[file.suffix.lower()](file)


def _json_rows(file: Path) -> Iterator[_Row]:
    content = _decode(file.read_bytes())
    listed = content if isinstance(content, list) else [content]
    for number, item in enumerate(listed, 1):
        yield _Row(str(file), number, item)


def _jsonl_rows(file: Path) -> Iterator[_Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _Row(str(file), number, _decode(line))


def _decode(raw: bytes) -> Any:
    try:
        return decode_json(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return FeedbackInvalid("wrong_encoding", f"Not UTF-8: byte {raw[error.start]:#04x} at {error.start}.")
    except FeedbackInvalid as error:
        return error


def _csv_rows(file: Path) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.DictReader(text)
        try:
            columns = reader.fieldnames or []
        except csv.Error as failure:
            yield _Row(str(file), 1, FeedbackInvalid("invalid_csv", f"{failure}."))
            return
        if "query" not in columns:
            error = FeedbackInvalid(
                "missing_column", f"There is no column 'query' among {list(columns)[:20]}."
            )
            yield _Row(str(file), 1, error)
            return
        number = 1
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as failure:
                yield _Row(str(file), number, FeedbackInvalid("invalid_csv", f"{failure}."))
                continue
            yield _Row(str(file), number, _checked_cells(cells))


def _checked_cells(cells: Mapping[str | None, Any]) -> Any:
    if None in cells:
        return FeedbackInvalid("invalid_csv", f"The row has {len(cells[None])} cells more than the header.")
    given = {str(column): cell for column, cell in cells.items() if cell}
    for column, cell in given.items():
        if _UNDECODED.search(cell):
            return FeedbackInvalid("wrong_encoding", f"Column {column!r} is not UTF-8: {cell[:40]!r}.")
        if _FORMULA.match(cell):
            return FeedbackInvalid("formula_cell", f"Column {column!r} holds the formula {cell[:40]!r}.")
    return _Cells(given)


class _Cells(dict[str, str]):
    """A CSV row: its values are text, so that it is stored in canonical form."""


def _entry(row: _Row, seen: Counter[str], now: datetime) -> _Entry:
    content = row.content
    if isinstance(content, FeedbackInvalid):
        raise content
    entry = unwrap_entry(content)
    envelope = content if isinstance(content, Mapping) and entry is not content else {}
    if envelope.get("timestamp") and not entry.get("timestamp"):
        entry = {**entry, "timestamp": envelope["timestamp"]}
    has_time = bool(entry.get("timestamp"))
    key = name(envelope.get("key")) or name(entry.get("feedback_id")) or _derived_key(entry, seen)
    record = parse_feedback(key, entry, now)
    if isinstance(entry, _Cells) or is_flat(entry):
        value = feedback_value(record)
    else:
        value = {"feedback_id": record.feedback_id, **entry}
        value.update({} if has_time else {"timestamp": to_iso(now)})
    return _Entry(row, key, value, has_time)


def _derived_key(entry: Mapping[str, Any], seen: Counter[str]) -> str:
    # From the content and how often it came before in the file: stable when rows are added or moved.
    content = json.dumps(entry, sort_keys=True)
    seen[content] += 1
    digest = hashlib.sha256(f"{seen[content]}\0{content}".encode()).hexdigest()
    return f"import-{digest[:32]}"


def _stored(outbox: Outbox, client: ConPortClient) -> dict[str, Any]:
    """Key -> value of what ConPort and the outbox hold; the outbox alone where ConPort is not there."""
    try:
        rows = client.get_custom_data(CATEGORY)
    except ConPortUnavailable:
        rows = []
    return {row["key"]: row["value"] for row in (*rows, *outbox.pending_custom_data(CATEGORY))}


def _is_stored(entry: _Entry, stored: Mapping[str, Any]) -> bool:
    known = stored.get(entry.key)
    if not isinstance(known, dict):
        return False
    value = dict(entry.value)
    if not entry.has_time:
        value["timestamp"] = known.get("timestamp")
    same: bool = decode_json(encode_json(value)) == known
    return same
