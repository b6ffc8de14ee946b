"""From a rating to the data sets it went into, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ragtune_mcp.core.dataset.export import SCHEMA, load_dataset
from ragtune_mcp.core.dataset.pairs import TrainingPair
from ragtune_mcp.core.feedback.records import Rejected
from ragtune_mcp.core.workspace import DatasetPaths


@dataclass(frozen=True, slots=True)
class Descendant:
    """A data set that one feedback entry went into, with the pairs that stand on it.

    Attributes:
        feedback_id: of the entry; `key` is its ConPort key.
        stale: what became of the entry since: "" nothing, else deleted or changed.
    """

    dataset_id: str
    path: Path
    feedback_id: str
    key: str
    pairs: tuple[TrainingPair, ...]
    stale: str


class Stale(NamedTuple):
    """Feedback ids of a data set whose entries are no longer what it was made of."""

    deleted: tuple[str, ...]
    changed: tuple[str, ...]


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
        entries = _entries(manifest)
        ids = [i for i, entry in entries.items() if feedback_id in (i, entry["key"])]
        if not ids:
            continue
        path = _data_file(manifest_path, manifest)
        pairs = load_dataset(path).pairs if path is not None else ()
        found.append(
            Descendant(
                manifest["dataset_id"],
                path or manifest_path,
                ids[0],
                entries[ids[0]]["key"],
                tuple(pair for pair in pairs if ids[0] in pair.feedback_ids),
                next((how for how, stale in manifest.get("stale", {}).items() if ids[0] in stale), ""),
            )
        )
    return sorted(found, key=lambda d: d.dataset_id)


def rejections(folder: Path, *identifiers: str) -> dict[str, Rejected]:
    """Why data sets did not use an entry.

    Args:
        folder: where data sets lie.
        *identifiers: feedback id and ConPort key: what cannot be read is rejected under its key.

    Returns:
        Data set id -> the reason, for the data sets that read the entry and did not use it; by data set id.
    """
    found = {}
    for manifest_path, manifest in _manifests(folder):
        path = DatasetPaths(manifest_path.with_name(manifest["dataset_id"])).rejected
        for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
            if any(identifier in line for identifier in identifiers):
                rejected = Rejected(**json.loads(line))
                if rejected.feedback_id in identifiers:
                    found[manifest["dataset_id"]] = rejected
    return dict(sorted(found.items()))


def mark_stale(folder: Path, states: Mapping[str, str]) -> dict[str, Stale]:
    """Note in every manifest which of its entries were deleted or changed in ConPort since.

    Args:
        folder: where data sets lie.
        states: key -> sha256 of every entry that exists now.

    Returns:
        Data set id -> what became of its entries; only data sets where something did.
    """
    found: dict[str, Stale] = {}
    for path, manifest in _manifests(folder):
        deleted, changed = [], []
        for feedback_id, entry in sorted(_entries(manifest).items()):
            now = states.get(entry["key"])
            if now is None:
                deleted.append(feedback_id)
            elif now != entry["sha256"]:
                changed.append(feedback_id)
        stale = {how: ids for how, ids in (("deleted", deleted), ("changed", changed)) if ids}
        if stale != manifest.get("stale", {}):
            manifest["stale"] = stale
            scratch = path.with_name(f".{path.name}.new")
            scratch.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            os.replace(scratch, path)
        if stale:
            found[manifest["dataset_id"]] = Stale(tuple(deleted), tuple(changed))
    return found


def _entries(manifest: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    entries: dict[str, dict[str, str]] = manifest.get("conport", {}).get("entries", {})
    return entries


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
