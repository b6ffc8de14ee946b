"""The workspace's documents: the truth about what is indexed. Texts live here, vectors in Chroma."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import UnknownId
from ragtune_mcp.core.workspace import sha256_text

# SQLite allows 32,766 variables in one statement; a smaller batch keeps the statement cache useful.
_BATCH = 500


def storable(text: str) -> str:
    """Without NUL bytes and lone surrogates, which neither SQLite nor a tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


@dataclass(frozen=True, slots=True)
class Document:
    """One unit of retrieval: what is encoded, ranked, shown and rated.

    Attributes:
        doc_id: `path/to/file.md#heading-slug`, `conport:decision/12`, `chroma:<collection>/<id>`, or a
            corpus's own id.
        source: files, conport, or chroma:<collection>.
        origin: the file or item it was cut from.
        text: title and body as they are encoded.
    """

    doc_id: str
    source: str
    origin: str
    title: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text; a vector is made anew exactly when it changes."""
        return sha256_text(self.text)


@dataclass(frozen=True, slots=True)
class Scan:
    """What reading one source gave.

    Attributes:
        documents: in the order they were read.
        replaces: origins whose earlier documents this scan replaces; None for everything of the source.
        skipped: files or items that were not used, counted by reason.
    """

    source: str
    documents: tuple[Document, ...]
    replaces: frozenset[str] | None
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """What applying a scan changes, by document id.

    Attributes:
        moved: same text and id, another origin or title: stored, not encoded again.
    """

    scan: Scan
    new: tuple[Document, ...]
    changed: tuple[Document, ...]
    moved: tuple[Document, ...]
    unchanged: int
    removed: tuple[str, ...]
    skipped: Mapping[str, int]

    @property
    def changes(self) -> int:
        """Documents to encode or to forget."""
        return len(self.new) + len(self.changed) + len(self.removed)

    def counts(self) -> dict[str, object]:
        """The numbers shown to callers; `documents` are files or items, `chunks` the pieces cut from them."""
        kept = len(self.new) + len(self.changed) + len(self.moved) + self.unchanged
        return {
            "documents": len({document.origin for document in self.scan.documents}),
            "chunks": kept,
            "updated": len(self.new) + len(self.changed),
            "unchanged": self.unchanged + len(self.moved),
            "removed": len(self.removed),
            "skipped": dict(sorted(self.skipped.items())),
        }


class _Known(NamedTuple):
    source: str
    origin: str
    title: str
    sha256: str


class DocumentStore:
    """Documents in `ragtune.db`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def plan(self, scan: Scan) -> IndexPlan:
        """Compare a scan with what is stored; changes nothing."""
        known = {
            row["doc_id"]: _Known(row["source"], row["origin"], row["title"], row["sha256"])
            for row in self._db.connection.execute(
                "SELECT doc_id, source, origin, title, sha256 FROM documents"
            )
        }
        new, changed, moved, unchanged = [], [], [], 0
        skipped = Counter(scan.skipped)
        seen: set[str] = set()
        for document in scan.documents:
            old = known.get(document.doc_id)
            if document.doc_id in seen or (old and not _replaces(scan, old)):
                skipped["duplicate_id"] += 1
                continue
            seen.add(document.doc_id)
            if old is None:
                new.append(document)
            elif old.sha256 != document.sha256:
                changed.append(document)
            elif (old.origin, old.title) != (document.origin, document.title):
                moved.append(document)
            else:
                unchanged += 1
        removed = sorted(i for i, old in known.items() if i not in seen and _replaces(scan, old))
        return IndexPlan(scan, tuple(new), tuple(changed), tuple(moved), unchanged, tuple(removed), skipped)

    def apply(self, plan: IndexPlan) -> None:
        """Store a plan's documents and forget the removed ones, in one transaction."""
        now = to_iso(utc_now())
        rows = [
            (d.doc_id, d.source, d.origin, d.title, d.text, d.sha256, now)
            for d in (*plan.new, *plan.changed, *plan.moved)
        ]
        with self._db.transaction() as connection:
            connection.executemany("DELETE FROM documents WHERE doc_id = ?", [(i,) for i in plan.removed])
            connection.executemany(
                """INSERT INTO documents (doc_id, source, origin, title, text, sha256, changed_at)
                   VALUES (?, ?, ?, ?, ?, ?, ?)
                   ON CONFLICT (doc_id) DO UPDATE SET source = excluded.source, origin = excluded.origin,
                   title = excluded.title, text = excluded.text, sha256 = excluded.sha256,
                   changed_at = excluded.changed_at""",
                rows,
            )

    def get(self, doc_id: str) -> Document:
        """One document; raises UnknownId when none has this id."""
        found = self.documents([doc_id])
        if not found:
            raise UnknownId(
                f"No indexed document has the id {doc_id!r}.",
                hint="Take ids from search results; call index_documents when the file is new.",
                code="unknown_document",
            )
        return found[doc_id]

    def documents(self, ids: Iterable[str]) -> dict[str, Document]:
        """Id -> document, for the ids that exist."""
        found: dict[str, Document] = {}
        for batch in _batches(list(dict.fromkeys(ids))):
            marks = ",".join("?" * len(batch))
            rows = self._db.connection.execute(
                f"SELECT doc_id, source, origin, title, text FROM documents WHERE doc_id IN ({marks})", batch
            )
            found |= {row["doc_id"]: Document(*row) for row in rows}
        return found

    def texts(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> text, for the ids that exist."""
        return {doc_id: document.text for doc_id, document in self.documents(ids).items()}

    def all_texts(self) -> dict[str, str]:
        """Every document: id -> text, in the order of the ids."""
        rows = self._db.connection.execute("SELECT doc_id, text FROM documents ORDER BY doc_id")
        return {row["doc_id"]: row["text"] for row in rows}

    def origins(self, source: str) -> frozenset[str]:
        """The files or items of a source that have documents."""
        rows = self._db.connection.execute(
            "SELECT DISTINCT origin FROM documents WHERE source = ?", (source,)
        )
        return frozenset(row["origin"] for row in rows)

    def is_empty(self) -> bool:
        """True when nothing is indexed; unlike counting, as fast at any size."""
        return self._db.connection.execute("SELECT 1 FROM documents LIMIT 1").fetchone() is None

    def count(self) -> int:
        """How many documents are indexed."""
        return int(self._db.connection.execute("SELECT count(*) FROM documents").fetchone()[0])


def _replaces(scan: Scan, old: _Known) -> bool:
    return old.source == scan.source and (scan.replaces is None or old.origin in scan.replaces)


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]
