"""ConPort's own semantic search, made anew with a version of ours.

ConPort keeps no texts beside its vectors and never renews them, so vectors of another model mean embedding
every item again, as ConPort itself does: one vector an item, of the same text, under the same id and with the
same metadata. The new store is built beside the present one and takes its place by renames; what ConPort had
made itself stays as a backup.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragtune_mcp.core.clock import from_iso
from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.feedback.conport_file import ConPortFile
from ragtune_mcp.core.feedback.conport_launch import running
from ragtune_mcp.core.models.encoder import Vectors
from ragtune_mcp.core.workspace import Workspace

COLLECTION = "conport_semantic_store"
# The name ConPort loads its model by, and stores with its collection.
MODEL_NAME = "all-MiniLM-L6-v2"
_PAGE = 1000
_SNIPPET = 100
_REVISION = "0" * 40

_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One ConPort item as its semantic search holds it."""

    kind: str
    item_id: str
    text: str
    metadata: dict[str, str]

    @property
    def vector_id(self) -> str:
        """Its id in ConPort's collection."""
        return f"{self.kind}_{self.item_id}"


def read_items(file: ConPortFile) -> list[Item]:
    """Every item that ConPort would embed.

    Args:
        file: ConPort's database.

    Returns:
        The items, by kind.

    Raises:
        ConPortUnavailable: there is none, or of an unknown schema.
    """
    return [
        *(_decision(row) for row in file.items("decisions")),
        *(_progress(row) for row in file.items("progress")),
        *(_pattern(row) for row in file.items("patterns")),
        *_custom_data(file.custom_data()),
    ]


def count_by_kind(items: Sequence[Item]) -> dict[str, int]:
    """How many items of each kind."""
    return dict(sorted(Counter(item.kind for item in items).items()))


class ConPortVectors:
    """The folder of ConPort's vectors; no ConPort may run meanwhile."""

    def __init__(self, workspace: Workspace) -> None:
        self._vectors = workspace.conport_vectors
        self._backup = workspace.conport_vectors_backup
        self._cache = workspace.conport_model_cache
        self._database = workspace.conport_database
        self._workspace_id = workspace.id

    def users(self) -> list[int]:
        """Processes that serve this workspace's ConPort or hold its database or its vectors open."""
        import psutil

        found = set(running(self._workspace_id))
        for process in psutil.process_iter():
            with suppress(psutil.AccessDenied, psutil.NoSuchProcess):
                if any(self._is_conports(Path(file.path)) for file in process.open_files()):
                    found.add(process.pid)
        return sorted(found - {os.getpid()})

    def require_stopped(self) -> None:
        """Raise Conflict while a process uses ConPort's folder."""
        users = self.users()
        if users:
            raise Conflict(
                f"ConPort is running for this workspace (processes {', '.join(map(str, users))}).",
                hint="Close the programs that use it, then repeat.",
            )

    def replace(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Put vectors in the place of those that are there; the first time those become the backup.

        The model laid for the vectors before goes first: killed on the way, ConPort finds no model and says so,
        where the model of other vectors would mislead it without a word. `provide_model` comes next.

        Args:
            items: what they stand for.
            vectors: (n, dimension) float32 in the same order.

        Raises:
            Conflict: a ConPort of this workspace is running by now; nothing is changed.
        """
        fresh = self._vectors.with_name(f"{self._vectors.name}.{secrets.token_hex(4)}")
        try:
            _write(fresh, items, vectors)
            # Encoding may have taken minutes, in which somebody opened their editor again.
            self.require_stopped()
            self._remove_model()
            self._put_aside()
            fresh.rename(self._vectors)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def restore(self) -> None:
        """Put the backup back in its place.

        Raises:
            Conflict: there is none, or a ConPort of this workspace is running.
        """
        self.require_stopped()
        if not self._backup.is_dir():
            raise Conflict(
                f"There is no backup {self._backup}.",
                hint=f"conport-reindex {MODEL_NAME} makes the vectors of the base model anew.",
            )
        self._remove_model()
        replaced = self._vectors.with_name(f"{self._vectors.name}.{secrets.token_hex(4)}")
        if self._vectors.exists():
            self._vectors.rename(replaced)
        self._backup.rename(self._vectors)
        shutil.rmtree(replaced, ignore_errors=True)

    def provide_model(self, folder: Path) -> dict[str, str]:
        """Lay a model where ConPort looks for its own.

        Args:
            folder: the version's.

        Returns:
            The environment variables with which ConPort loads it.
        """
        self._remove_model()
        shutil.copytree(folder, self._reference.parents[1] / "snapshots" / _REVISION)
        self._reference.parent.mkdir()
        self._reference.write_text(_REVISION, encoding="utf-8")
        return {"HF_HOME": str(self._cache), "HF_HUB_OFFLINE": "1"}

    def _is_conports(self, file: Path) -> bool:
        # SQLite's write-ahead log and its index lie beside the database.
        database, vectors = self._database.resolve(), self._vectors.resolve()
        is_database = file.parent == database.parent and file.name.startswith(database.name)
        return is_database or file.is_relative_to(vectors)

    @property
    def _reference(self) -> Path:
        """The file without which a laid model is not found."""
        return self._cache / "hub" / f"models--sentence-transformers--{MODEL_NAME}" / "refs" / "main"

    def _remove_model(self) -> None:
        # First what the model is found by, so that a half-removed one is never loaded.
        self._reference.unlink(missing_ok=True)
        shutil.rmtree(self._cache, ignore_errors=True)

    def _put_aside(self) -> None:
        if self._backup.exists():
            shutil.rmtree(self._vectors, ignore_errors=True)
        elif self._vectors.exists():
            self._vectors.rename(self._backup)
        else:
            # ConPort had made none; the next time, ours must not be taken for what it had.
            self._backup.mkdir()


def _write(folder: Path, items: Sequence[Item], vectors: Vectors) -> None:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(
        str(folder), settings=Settings(anonymized_telemetry=False, allow_reset=True)
    )
    try:
        with _conports_embedding_function() as named:
            collection = client.get_or_create_collection(COLLECTION, embedding_function=named)
            for start in range(0, len(items), _PAGE):
                page = items[start : start + _PAGE]
                collection.upsert(
                    ids=[item.vector_id for item in page],
                    embeddings=np.asarray(vectors[start : start + _PAGE], dtype=np.float32),
                    metadatas=[item.metadata for item in page],
                )
    finally:
        client.close()  # type: ignore[attr-defined]


@contextmanager
def _conports_embedding_function() -> Iterator[Any]:
    """What ConPort stores with its collection, and refuses it without; its model is not loaded."""
    from chromadb.utils.embedding_functions import SentenceTransformerEmbeddingFunction

    # Chroma makes the function anew from what is stored, also for each upsert, and looks here before it loads a
    # model.
    loaded = SentenceTransformerEmbeddingFunction.models
    loaded[MODEL_NAME] = None
    try:
        yield SentenceTransformerEmbeddingFunction(model_name=MODEL_NAME)
    finally:
        del loaded[MODEL_NAME]


def _decision(row: _Row) -> Item:
    parts = (
        f"Decision Summary: {row['summary']}",
        f"Rationale: {row['rationale']}" if row["rationale"] else "",
        f"Implementation Details: {row['implementation_details']}" if row["implementation_details"] else "",
    )
    return _item("decision", row, "\n".join(filter(None, parts)), summary=row["summary"], tags=_tags(row))


def _progress(row: _Row) -> Item:
    parent = str(row["parent_id"]) if row["parent_id"] else None
    description = row["description"]
    text = f"Progress: {row['status']} - {description}"
    snippet = description[:_SNIPPET]
    return _item(
        "progress_entry", row, text, status=row["status"], description_snippet=snippet, parent_id=parent
    )


def _pattern(row: _Row) -> Item:
    text = f"System Pattern: {row['name']}\nDescription: {row['description'] or ''}"
    return _item("system_pattern", row, text, name=row["name"], tags=_tags(row))


def _custom_data(rows: Sequence[_Row]) -> Iterator[Item]:
    for row in rows:
        value = row["value"]
        text = value if isinstance(value, str) else json.dumps(value)
        if text and isinstance(value, str | dict | list):
            category, key = row["category"], row["key"]
            text = f"Category: {category}\nKey: {key}\nValue: {text}"
            yield _item("custom_data", row, text, category=category, key=key)


def _item(kind: str, row: _Row, text: str, **metadata: str | None) -> Item:
    given = {name: value for name, value in metadata.items() if value is not None}
    common = {
        "conport_item_type": kind,
        "conport_item_id": str(row["id"]),
        "timestamp_created": from_iso(row["timestamp"]).isoformat(),
    }
    return Item(kind, str(row["id"]), text.strip(), {**common, **given})


def _tags(row: _Row) -> str | None:
    return ", ".join(row["tags"]) if row["tags"] else None
