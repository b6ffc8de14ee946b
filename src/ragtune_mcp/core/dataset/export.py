"""Data sets as files: csv, json, jsonl or triplets, each with a manifest, and the loader.

    csv        one row per pair; columns query, document, label, then what else a pair holds
    json       an array of pair objects
    jsonl      one pair object a line
    triplets   one {query, positive, negative} object a line; the pairs' other fields under positive_pair and
               negative_pair. Every pair stands in at least one line; where a query has one side only, the
               other one is null.

All hold every pair and every field, triplets in canonical order and without repeats. Any Unicode text
survives, NUL and every line separator included; only lone surrogates, which are not characters and have no
UTF-8 form, are refused. A csv cell that a spreadsheet would run as a formula is written with a leading
apostrophe, which the loader takes off again.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, get_args

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.dataset.pairs import NEGATIVE_KINDS, Dataset, TrainingPair, canonical
from ragtune_mcp.core.dataset.rows import pair_of_row, with_groups_and_splits
from ragtune_mcp.core.errors import DigestMismatch, IntegrityError, InvalidInput
from ragtune_mcp.core.feedback.records import Rejected
from ragtune_mcp.core.workspace import DatasetPaths, sha256_file

ExportFormat = Literal["csv", "json", "jsonl", "triplets"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
SUFFIXES: Mapping[ExportFormat, str] = {
    "csv": ".csv",
    "json": ".json",
    "jsonl": ".jsonl",
    "triplets": ".jsonl",
}
SCHEMA = "ragtune.dataset/1"
_FIELDS = tuple(TrainingPair.__dataclass_fields__)
_COLUMNS = ("query", "document", "label", *(f for f in _FIELDS if f not in ("query", "document", "label")))
# What makes a spreadsheet run a cell (OWASP, CSV injection), full-width forms included; and the mark itself.
_FORMULA = re.compile("^['=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_ESCAPED = re.compile("^'(?=['=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CELL_LIMIT = 2**31 - 1


def export_pairs(
    pairs: Sequence[TrainingPair],
    path: Path,
    format_type: str = "csv",
    *,
    dataset_id: str = "",
    details: Mapping[str, Any] | None = None,
    rejected: Sequence[Rejected] | None = None,
    card: str | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Write a data set and its manifest; all files appear complete or not at all, the manifest last.

    Args:
        pairs: what to write, in this order.
        path: the data file; what belongs to it is written beside it under the same stem.
        format_type: csv, json, jsonl or triplets.
        dataset_id: empty for the file's stem.
        details: further manifest entries.
        rejected: entries that were not used, written as `<stem>.rejected.jsonl`.
        card: Markdown, written as `<stem>.card.md`.
        now: when the data set was made; None for the present.

    Returns:
        The manifest.

    Raises:
        InvalidInput: an unknown format, or a text with a lone surrogate.
    """
    form = _format(format_type)
    _check_texts(pairs)
    paths = DatasetPaths(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        folder = Path(scratch)
        written = [path]
        _write(folder / path.name, lambda handle: _WRITERS[form](handle, pairs))
        if rejected is not None:
            written.append(paths.rejected)
            _write(folder / paths.rejected.name, lambda handle: _json_lines(handle, map(asdict, rejected)))
        if card is not None:
            written.append(paths.card)
            _write(folder / paths.card.name, lambda handle: handle.write(card))
        files = _kept_files(paths) | {f.name: _file_entry(folder / f.name) for f in written}
        files[path.name] |= {"format": form, "pairs": len(pairs)}
        manifest = {
            "schema": SCHEMA,
            "dataset_id": dataset_id or path.stem,
            "created_at": to_iso(now or utc_now()),
            **_counts(pairs),
            **(details or {}),
            "files": files,
        }
        _write(folder / paths.manifest.name, lambda handle: _json(handle, manifest))
        for target in (*written[1:], path, paths.manifest):
            os.replace(folder / target.name, target)
    return manifest


def load_dataset(path: str | Path) -> Dataset:
    """Read a data set back.

    A file without a manifest is read as well: at least query, document and label in each row. Where no row
    has a group they get them here, and where none is held out splits too, by the same rules as everywhere.

    Args:
        path: the data file, as written by `export_pairs` or by hand.

    Returns:
        The data set; `manifest` is {} where there is none for this file.

    Raises:
        DigestMismatch: the file is not the one its manifest describes.
        InvalidInput: the file is missing or unreadable, a row is not a pair (the message names it), or only
            some rows have a group.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInput(
            f"The file {str(path)!r} does not exist.", hint="Call generate_training_data first."
        )
    manifest = _manifest_of(path)
    entry = manifest.get("files", {}).get(path.name, {})
    if entry and sha256_file(path) != entry["sha256"]:
        raise DigestMismatch(
            f"{path.name} is not the file its manifest describes: its sha256 is {sha256_file(path)[:12]}..., "
            f"recorded is {entry['sha256'][:12]}...",
            hint="Generate the data set again, or delete the manifest to load the file as your own.",
        )
    pairs = list(_READERS[entry.get("format") or _format_of(path)](path))
    if not pairs:
        raise InvalidInput(f"{path.name} holds no pairs.")
    pairs = with_groups_and_splits(pairs, path.name)
    return Dataset(manifest.get("dataset_id", path.stem), tuple(pairs), manifest if entry else {})


def dataset_file(folder: Path, dataset_id: str, format_type: str) -> Path:
    """Where a new data set of this format is written."""
    return folder / f"{dataset_id}{SUFFIXES[_format(format_type)]}"


def find_dataset(folder: Path, dataset_id: str) -> Path | None:
    """The data file of a data set id in a folder; None when there is none or the id is no plain file name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,120}", dataset_id):
        return None
    for suffix in dict.fromkeys(SUFFIXES.values()):
        path = folder / f"{dataset_id}{suffix}"
        if path.is_file():
            return path
    return None


def _format(name: str) -> ExportFormat:
    for form in FORMATS:
        if form == name:
            return form
    raise InvalidInput(f"The format {name!r} is not one of {', '.join(FORMATS)}.")


def _format_of(path: Path) -> ExportFormat:
    by_suffix: dict[str, ExportFormat] = {
        ".csv": "csv",
        ".json": "json",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
    }
    form = by_suffix.get(path.suffix.lower())
    if form is None:
        raise InvalidInput(f"{path.name}: the ending {path.suffix!r} is not one of {', '.join(by_suffix)}.")
    return form


def _check_texts(pairs: Iterable[TrainingPair]) -> None:
    for number, pair in enumerate(pairs, 1):
        for text in (pair.query, pair.document, pair.document_id, pair.query_group, *pair.feedback_ids):
            if not text.isascii() and (found := _SURROGATE.search(text)):
                code = f"U+{ord(found.group()):04X}"
                raise InvalidInput(
                    f"Pair {number} holds the lone surrogate {code}, which is no character.",
                    hint="Decode the text it came from as UTF-16 or replace the surrogate.",
                )


def _counts(pairs: Sequence[TrainingPair]) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "kinds": dict(sorted(Counter(pair.kind for pair in pairs).items())),
        "splits": dict(sorted(Counter(pair.split for pair in pairs).items())),
    }


def _write(path: Path, body: Callable[[IO[str]], object]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        body(handle)
        handle.flush()
        os.fsync(handle.fileno())


def _file_entry(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _kept_files(paths: DatasetPaths) -> dict[str, Any]:
    """What an older manifest says of files of the same stem in other formats that are still there."""
    if not paths.manifest.is_file():
        return {}
    files: dict[str, Any] = _manifest_of(paths.file).get("files", {})
    return {name: entry for name, entry in files.items() if (paths.file.parent / name).is_file()}


def _manifest_of(path: Path) -> dict[str, Any]:
    manifest_path = DatasetPaths(path).manifest
    if not manifest_path.is_file():
        return {}
    try:
        manifest = json.loads(manifest_path.read_bytes())
    except ValueError as error:
        raise IntegrityError(f"{manifest_path.name} is not valid JSON: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise IntegrityError(f"{manifest_path.name} is not a manifest of schema {SCHEMA}.")
    return manifest


def _json(handle: IO[str], value: Any) -> None:
    json.dump(value, handle, ensure_ascii=False, indent=1)
    handle.write("\n")


def _json_lines(handle: IO[str], rows: Iterable[Any]) -> None:
    for row in rows:
        handle.write(_line(row) + "\n")


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _write_csv(handle: IO[str], pairs: Sequence[TrainingPair]) -> None:
    writer = csv.writer(handle, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([_cell(getattr(pair, column)) for column in _COLUMNS] for pair in pairs)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value)
    text = value if isinstance(value, str) else _line(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _write_json(handle: IO[str], pairs: Sequence[TrainingPair]) -> None:
    handle.write("[")
    for number, pair in enumerate(pairs):
        handle.write((",\n" if number else "\n") + _line(asdict(pair)))
    handle.write("\n]\n")


def _write_jsonl(handle: IO[str], pairs: Sequence[TrainingPair]) -> None:
    _json_lines(handle, map(asdict, pairs))


def _write_triplets(handle: IO[str], pairs: Sequence[TrainingPair]) -> None:
    queries: dict[tuple[str, ...], list[TrainingPair]] = {}
    for pair in pairs:
        queries.setdefault((pair.query, pair.query_group, pair.split), []).append(pair)
    for members in queries.values():
        negatives = [pair for pair in members if pair.kind in NEGATIVE_KINDS]
        positives = [pair for pair in members if pair.kind not in NEGATIVE_KINDS]
        # Round and round the shorter side, so that every pair stands in a line without the full cross
        # product.
        for i in range(max(len(positives), len(negatives))):
            positive, negative = (side[i % len(side)] if side else None for side in (positives, negatives))
            handle.write(_line(_triplet(members[0], positive, negative)) + "\n")


_SHARED = ("query", "query_group", "split")


def _triplet(
    shared: TrainingPair, positive: TrainingPair | None, negative: TrainingPair | None
) -> dict[str, Any]:
    def rest(pair: TrainingPair | None) -> dict[str, Any] | None:
        if pair is None:
            return None
        return {k: v for k, v in asdict(pair).items() if k not in (*_SHARED, "document")}

    return {
        "query": shared.query,
        "positive": positive.document if positive else None,
        "negative": negative.document if negative else None,
        "query_group": shared.query_group,
        "split": shared.split,
        "positive_pair": rest(positive),
        "negative_pair": rest(negative),
    }


def _read_csv(path: Path) -> Iterator[TrainingPair]:
    limit = csv.field_size_limit(_CELL_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            if not {"query", "document", "label"} <= set(columns):
                raise InvalidInput(
                    f"{path.name} needs the columns query, document and label; it has {columns}."
                )
            reader.fieldnames = columns
            for row in reader:
                where = f"{path.name}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InvalidInput(f"{where}: the row has not the {len(columns)} cells of the header.")
                yield pair_of_row({k: _ESCAPED.sub("", v) for k, v in row.items()}, where)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path.name} cannot be read as UTF-8 csv: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _read_json(path: Path) -> Iterator[TrainingPair]:
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{path.name} cannot be read as JSON: {error}.") from error
    if not isinstance(rows, list):
        raise InvalidInput(f"{path.name} holds a {type(rows).__name__}, not an array of pairs.")
    for number, row in enumerate(rows, 1):
        yield pair_of_row(row, f"{path.name}, element {number}")


def _read_jsonl(path: Path) -> Iterator[TrainingPair]:
    for where, row in _lines(path):
        if isinstance(row, dict) and "positive" in row and "negative" in row:
            yield from _read_triplets(path)
            return
        yield pair_of_row(row, where)


def _read_triplets(path: Path) -> Iterator[TrainingPair]:
    seen: set[TrainingPair] = set()
    for where, row in _lines(path):
        if not isinstance(row, dict):
            raise InvalidInput(f"{where}: a {type(row).__name__} is not a triplet.")
        shared = {key: row[key] for key in _SHARED if key in row}
        for side, label, other in (("positive", 1.0, "negative"), ("negative", 0.0, "positive")):
            if side in row and row[side] is None and row.get(other) is not None:
                continue
            own = {"label": label, "kind": side, **(row.get(f"{side}_pair") or {}), "document": row.get(side)}
            seen.add(pair_of_row(shared | own, where))
    yield from sorted(seen, key=canonical)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    # Bytes: iterating over text would be the same here, but splitting at U+2028 or U+0085 would break
    # strings.
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{path.name}, line {number}"
            if line.strip():
                try:
                    yield where, json.loads(line)
                except ValueError as error:
                    raise InvalidInput(f"{where} cannot be read as JSON: {error}.") from error


_WRITERS: Mapping[ExportFormat, Callable[[IO[str], Sequence[TrainingPair]], None]] = {
    "csv": _write_csv,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "triplets": _write_triplets,
}
_READERS: Mapping[str, Callable[[Path], Iterator[TrainingPair]]] = {
    "csv": _read_csv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "triplets": _read_triplets,
}
