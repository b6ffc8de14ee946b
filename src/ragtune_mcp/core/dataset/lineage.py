"""From a rating to the data sets it went into, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragtune_mcp.core.dataset.export import SCHEMA, load_dataset
from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.workspace import DatasetPaths


@dataclass(frozen=True, slots=True)
class Descendant:
    """A data set that one feedback entry went into, with the pairs it stands on."""

    dataset_id: str
    path: Path
    key: str
    pairs: tuple[TrainingPair, ...]
    is_stale: bool


def descendants(folder: Path, feedback_id: str) -> list[Descendant]:
    """The data sets of a folder that used an entry.

    Args:
        folder: where data sets lie.
        feedback_id: id or ConPort key of the entry.

    Returns:
        By data set id; one whose data file was deleted has no pairs and the manifest as its path.

    Raises:
        DigestMismatch: the file of such a data set was changed.
    """
    found = []
    for manifest_path, manifest in _manifests(folder):
        entries: dict[str, str] = manifest.get("conport", {}).get("entries", {})
        ids = [i for i, key in entries.items() if feedback_id in (i, key)]
        if not ids:
            continue
        path = _data_file(manifest_path, manifest)
        pairs = load_dataset(path).pairs if path is not None else ()
        found.append(
            Descendant(
                manifest["dataset_id"],
                path or manifest_path,
                entries[ids[0]],
                tuple(pair for pair in pairs if ids[0] in pair.feedback_ids),
                ids[0] in manifest.get("stale", ()),
            )
        )
    return sorted(found, key=lambda d: d.dataset_id)


def mark_stale(folder: Path, present: Collection[str]) -> dict[str, list[str]]:
    """Note in every manifest which of its entries are no longer in ConPort.

    Args:
        folder: where data sets lie.
        present: the keys of all entries that exist now.

    Returns:
        Data set id -> feedback ids that were deleted since; only data sets that have some.
    """
    stale: dict[str, list[str]] = {}
    for path, manifest in _manifests(folder):
        entries: dict[str, str] = manifest.get("conport", {}).get("entries", {})
        gone = sorted(i for i, key in entries.items() if key not in present)
        if gone != manifest.get("stale", []):
            manifest["stale"] = gone
            scratch = path.with_name(f".{path.name}.new")
            scratch.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            os.replace(scratch, path)
        if gone:
            stale[manifest["dataset_id"]] = gone
    return stale


def _manifests(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in DatasetPaths.manifests(folder):
        manifest = json.loads(path.read_bytes())
        if manifest.get("schema") == SCHEMA:
            yield path, manifest


def _data_file(manifest_path: Path, manifest: dict[str, Any]) -> Path | None:
    for name, entry in manifest["files"].items():
        path = manifest_path.parent / str(name)
        if "format" in entry and path.is_file():
            return path
    return None
