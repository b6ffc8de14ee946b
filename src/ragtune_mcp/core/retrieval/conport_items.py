"""ConPort items as documents: decisions, progress, patterns, custom data and the glossary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from ragtune_mcp.core.retrieval.chunking import Section, cut
from ragtune_mcp.core.retrieval.documents import Document, Scan, storable

SOURCE = "conport"
# Written by this project: ratings and logs are not knowledge to be found.
OWN_CATEGORIES = frozenset({"UserFeedback", "ModelTraining", "ModelVersions", "ABTests"})

_Row = Mapping[str, Any]


class ItemSource(Protocol):
    """What is read of ConPort; implemented by `feedback.conport.ConPortClient`."""

    def get_decisions(self) -> list[dict[str, Any]]:
        """Rows with id, summary, rationale, implementation_details, tags."""
        ...

    def get_progress(self) -> list[dict[str, Any]]:
        """Rows with id, status, description."""
        ...

    def get_system_patterns(self) -> list[dict[str, Any]]:
        """Rows with id, name, description, tags."""
        ...

    def get_all_custom_data(self) -> list[dict[str, Any]]:
        """Rows with category, key, value; the glossary is the category ProjectGlossary."""
        ...


def scan_conport(client: ItemSource) -> Scan:
    """Read all items of a workspace's ConPort; they replace all that was indexed from it.

    Args:
        client: ConPort.

    Returns:
        One document an item, long ones in parts. Items without text are skipped as `empty`, this project's
        own logs as `own_log`.

    Raises:
        ConPortUnavailable: ConPort does not answer.
    """
    skipped: Counter[str] = Counter()
    documents: list[Document] = []
    for origin, section in (*_items(client), *_custom_data(client.get_all_custom_data(), skipped)):
        found = cut(SOURCE, origin, [section])
        documents += found
        skipped["empty"] += not found
    return Scan(SOURCE, tuple(documents), None, +skipped)


def _items(client: ItemSource) -> Iterator[tuple[str, Section]]:
    for row in client.get_decisions():
        body = _join(row, ("rationale", "implementation_details")) or _text(row, "summary")
        yield (
            f"conport:decision/{row['id']}",
            Section("", f"Decision: {_text(row, 'summary')}", _tagged(row, body)),
        )
    for row in client.get_progress():
        body = _text(row, "description")
        yield f"conport:progress/{row['id']}", Section("", f"Progress: {_text(row, 'status')}", body)
    for row in client.get_system_patterns():
        body = _text(row, "description") or _text(row, "name")
        yield (
            f"conport:system_pattern/{row['id']}",
            Section("", f"Pattern: {_text(row, 'name')}", _tagged(row, body)),
        )


def _custom_data(rows: Iterable[_Row], skipped: Counter[str]) -> Iterator[tuple[str, Section]]:
    for row in rows:
        category, key = str(row["category"]), str(row["key"])
        if category in OWN_CATEGORIES:
            skipped["own_log"] += 1
            continue
        value = row.get("value")
        body = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
        empty = value is None or value in ("", [], {})
        yield (
            f"conport:custom_data/{category}/{key}",
            Section("", storable(f"{category}: {key}"), "" if empty else storable(body)),
        )


def _text(row: _Row, field: str) -> str:
    value = row.get(field)
    return storable(str(value).strip()) if value is not None else ""


def _join(row: _Row, fields: Iterable[str]) -> str:
    return "\n\n".join(text for field in fields if (text := _text(row, field)))


def _tagged(row: _Row, body: str) -> str:
    tags = row.get("tags")
    if not body or not isinstance(tags, list) or not tags:
        return body
    return f"{body}\n\nTags: {', '.join(storable(str(tag)) for tag in tags)}"
