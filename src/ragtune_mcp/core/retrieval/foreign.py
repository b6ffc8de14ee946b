"""Documents of a Chroma collection that belongs to the user's own retrieval, read and never written."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtune_mcp.core.errors import ChromaUnavailable, InvalidInput, UnknownId
from ragtune_mcp.core.retrieval.documents import Document, Scan, storable
from ragtune_mcp.core.retrieval.store import connect, parse_url
from ragtune_mcp.core.workspace import Workspace

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_VARIABLE = "RAGTUNE_SOURCE_CHROMA"
_DATABASE = "chroma.sqlite3"
_PAGE = 1000
_TITLE_KEYS = ("title", "source", "file_path", "url")


def scan_chroma(workspace: Workspace, collection: str) -> Scan:
    """Read the documents of a collection in the Chroma that RAGTUNE_SOURCE_CHROMA names.

    Args:
        workspace: whose settings say where: a folder inside the workspace, or a URL.
        collection: its name there.

    Returns:
        One document an entry, not cut again: the user's pieces are theirs. Entries without text are skipped
        as `no_text`.

    Raises:
        InvalidInput: the variable is not set or names no Chroma.
        UnknownId: there is no such collection.
        ChromaUnavailable: the server does not answer.
    """
    from chromadb.errors import NotFoundError

    source = f"chroma:{collection}"
    documents: list[Document] = []
    skipped = 0
    with _open(workspace) as client:
        try:
            found = client.get_collection(collection, embedding_function=None)
        except (NotFoundError, ValueError) as error:
            names = sorted(c.name for c in client.list_collections())
            raise UnknownId(
                f"The Chroma at {_VARIABLE} has no collection {collection!r}.",
                hint=f"It has: {', '.join(names) or 'none'}.",
                code="unknown_collection",
            ) from error
        offset = 0
        while (page := found.get(limit=_PAGE, offset=offset, include=["documents", "metadatas"]))["ids"]:
            texts, metadatas = page["documents"] or [], page["metadatas"] or []
            for entry, text, metadata in zip(page["ids"], texts, metadatas, strict=True):
                if not (text or "").strip():
                    skipped += 1
                    continue
                doc_id = storable(f"{source}/{entry}")
                documents.append(Document(doc_id, source, doc_id, _title(metadata or {}), storable(text)))
            offset += len(page["ids"])
    return Scan(source, tuple(documents), None, {"no_text": skipped} if skipped else {})


def _title(metadata: Mapping[str, Any]) -> str:
    return next((storable(str(metadata[key])) for key in _TITLE_KEYS if metadata.get(key)), "")


@contextmanager
def _open(workspace: Workspace) -> Iterator[ClientAPI]:
    where = workspace.settings.ragtune_source_chroma
    if not where:
        raise InvalidInput(
            f"{_VARIABLE} is not set.",
            hint=f"Set {_VARIABLE} to the folder or the URL of your Chroma, then repeat.",
        )
    if "://" in where:
        with _answering(where):
            yield connect(*parse_url(where, _VARIABLE))
        return
    database = workspace.inside(where) / _DATABASE
    if not database.is_file():
        raise InvalidInput(f"{_VARIABLE}={where!r} holds no {_DATABASE}.", hint=f"Correct {_VARIABLE}.")
    with tempfile.TemporaryDirectory(prefix="ragtune-") as folder:
        # Opening a Chroma folder writes to it, and its owner may be running; texts are all in the SQLite
        # file, of which the backup interface gives a consistent copy.
        _snapshot(database, Path(folder) / _DATABASE)
        with _embedded(folder) as client:
            yield client


@contextmanager
def _answering(url: str) -> Iterator[None]:
    import httpx
    from chromadb.errors import ChromaError

    try:
        yield
    except (httpx.HTTPError, ChromaError) as error:
        raise ChromaUnavailable(f"The Chroma at {url} stopped answering: {error}.") from error


def _snapshot(database: Path, copy: Path) -> None:
    with (
        closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as theirs,
        closing(sqlite3.connect(copy)) as ours,
    ):
        theirs.backup(ours)


@contextmanager
def _embedded(folder: str) -> Iterator[ClientAPI]:
    import chromadb
    from chromadb.config import Settings as ChromaSettings

    client = chromadb.PersistentClient(path=folder, settings=ChromaSettings(anonymized_telemetry=False))
    try:
        yield client
    finally:
        client.close()  # type: ignore[attr-defined]
