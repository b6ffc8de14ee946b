"""What `ragtune.db` knows of the vector collections: which serve, and of which text each vector is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Collection as AbstractCollection
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database

CollectionState = Literal["building", "ready", "retired"]

_PENDING = """
    FROM documents d LEFT JOIN vectors v ON v.collection = ? AND v.doc_id = d.doc_id
    WHERE v.sha256 IS NOT d.sha256
"""
_ORPHANS = """
    FROM vectors v WHERE v.collection = ?
    AND NOT EXISTS (SELECT 1 FROM documents d WHERE d.doc_id = v.doc_id)
"""


@dataclass(frozen=True, slots=True)
class Collection:
    """One Chroma collection: the vectors of one model version.

    Attributes:
        name: Chroma's name.
        digest: of the model that made the vectors.
        state: only `ready` ones answer searches.
        encoded: texts encoded for it, in `encode_s` seconds.
    """

    name: str
    version: str
    digest: str
    dimension: int
    state: CollectionState
    created_at: str
    ready_at: str | None
    encoded: int
    encode_s: float


class VectorId(NamedTuple):
    """Names a vector by its document and the hash of the text it was made from."""

    doc_id: str
    sha256: str

    def __str__(self) -> str:
        """Its id in Chroma."""
        return f"{self.doc_id}@{self.sha256[:16]}"


class Twin(NamedTuple):
    """A vector of a text, and the collection it is stored in."""

    collection: str
    vector: VectorId


class Catalog:
    """The rows of `collections` and `vectors`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def workspace_id(self) -> str:
        """A random name of this workspace, made with its database and never changed."""
        return str(self._db.connection.execute("SELECT workspace_id FROM identity").fetchone()[0])

    def find(self, version: str, state: CollectionState) -> Collection | None:
        """The collection of a version in a state; at most one is building and one ready."""
        row = self._db.connection.execute(
            "SELECT * FROM collections WHERE version = ? AND state = ?", (version, state)
        ).fetchone()
        return None if row is None else Collection(**row)

    def all(self) -> list[Collection]:
        """Every collection, oldest first."""
        rows = self._db.connection.execute("SELECT * FROM collections ORDER BY created_at, name")
        return [Collection(**row) for row in rows]

    def has(self, name: str) -> bool:
        """True when the collection is recorded."""
        return bool(self._one("SELECT count(*) FROM collections WHERE name = ?", name))

    def insert(self, name: str, version: str, digest: str, dimension: int) -> Collection:
        """Record a collection that is about to be built."""
        with self._db.transaction() as connection:
            connection.execute(
                """INSERT INTO collections (name, version, digest, dimension, state, created_at)
                   VALUES (?, ?, ?, ?, 'building', ?)""",
                (name, version, digest, dimension, to_iso(utc_now())),
            )
            row = connection.execute("SELECT * FROM collections WHERE name = ?", (name,)).fetchone()
        return Collection(**row)

    def delete(self, name: str) -> None:
        """Forget a collection and its vectors' rows."""
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM collections WHERE name = ?", (name,))

    def delete_superseded(self, name: str, keep: Callable[[], AbstractCollection[str]]) -> bool:
        """Forget a collection that is retired or of none of the versions to keep; tells whether it was.

        `keep` is asked in the transaction that deletes: who makes a version serve meanwhile, in a transaction
        that looks at its collection, either comes first and keeps it or finds it gone.
        """
        with self._db.transaction() as connection:
            row = connection.execute(
                "SELECT version, state FROM collections WHERE name = ?", (name,)
            ).fetchone()
            if row is None or (row["state"] != "retired" and row["version"] in keep()):
                return False
            self.delete(name)
        return True

    def pending(self, name: str) -> list[str]:
        """Ids whose text has no vector in the collection, longest text first."""
        sql = f"SELECT d.doc_id {_PENDING} ORDER BY length(d.text) DESC, d.doc_id"
        return [row["doc_id"] for row in self._db.connection.execute(sql, (name,))]

    def orphans(self, name: str) -> list[VectorId]:
        """Vectors of documents that no longer exist."""
        rows = self._db.connection.execute(f"SELECT v.doc_id, v.sha256 {_ORPHANS}", (name,))
        return [VectorId(*row) for row in rows]

    def is_complete(self, name: str) -> bool:
        """True when every document has the vector of its present text, and nothing else has one."""
        row = self._db.connection.execute(
            f"SELECT EXISTS (SELECT 1 {_PENDING}) OR EXISTS (SELECT 1 {_ORPHANS})", (name, name)
        ).fetchone()
        return not row[0]

    def count(self, name: str) -> int:
        """Vectors in the collection."""
        return int(self._one("SELECT count(*) FROM vectors WHERE collection = ?", name))

    def count_pending(self, name: str) -> int:
        """Documents whose text has no vector in the collection."""
        return int(self._one(f"SELECT count(*) {_PENDING}", name))

    def count_documents(self) -> int:
        """Documents of the workspace."""
        return int(self._db.connection.execute("SELECT count(*) FROM documents").fetchone()[0])

    def recorded(self, name: str, ids: Sequence[str] | None = None) -> dict[str, str]:
        """Id -> hash of the text its vector was made from, for these documents or for all."""
        sql, values = "SELECT doc_id, sha256 FROM vectors WHERE collection = ?", [name]
        if ids is not None:
            sql += f" AND doc_id IN ({','.join('?' * len(ids))})"
            values += ids
        return {row["doc_id"]: row["sha256"] for row in self._db.connection.execute(sql, values)}

    def current(self, ids: Sequence[str]) -> dict[str, str]:
        """Id -> hash of the document's present text, for the ids that exist."""
        marks = ",".join("?" * len(ids))
        rows = self._db.connection.execute(
            f"SELECT doc_id, sha256 FROM documents WHERE doc_id IN ({marks})", ids
        )
        return {row["doc_id"]: row["sha256"] for row in rows}

    def twins(self, digest: str, hashes: Sequence[str]) -> list[Twin]:
        """One stored vector for each of these texts that the model has already encoded."""
        marks = ",".join("?" * len(hashes))
        rows = self._db.connection.execute(
            f"""SELECT v.collection, v.doc_id, v.sha256 FROM vectors v
                JOIN collections c ON c.name = v.collection
                WHERE c.digest = ? AND c.state != 'retired' AND v.sha256 IN ({marks})
                ORDER BY v.collection, v.doc_id""",
            (digest, *hashes),
        )
        twins = (Twin(name, VectorId(doc_id, sha256)) for name, doc_id, sha256 in rows)
        return list({twin.vector.sha256: twin for twin in twins}.values())

    def wrote(self, name: str, vectors: Iterable[VectorId], encoded: int, seconds: float) -> None:
        """Record vectors that Chroma confirmed, in place of their documents' former ones, and their cost."""
        with self._db.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO vectors (collection, doc_id, sha256) VALUES (?, ?, ?)",
                [(name, *vector) for vector in vectors],
            )
            connection.execute(
                "UPDATE collections SET encoded = encoded + ?, encode_s = encode_s + ? WHERE name = ?",
                (encoded, seconds, name),
            )

    def forgot(self, name: str, vectors: Iterable[VectorId]) -> None:
        """Take back what was recorded of these vectors."""
        with self._db.transaction() as connection:
            connection.executemany(
                "DELETE FROM vectors WHERE collection = ? AND doc_id = ? AND sha256 = ?",
                [(name, *vector) for vector in vectors],
            )

    def flip(self, collection: Collection) -> bool:
        """Make a complete collection the one that serves its version, in one transaction.

        Args:
            collection: one that is being built.

        Returns:
            False, and nothing is changed, when documents changed meanwhile and it is not complete.
        """
        with self._db.transaction() as connection:
            if not self.is_complete(collection.name):
                return False
            connection.execute(
                "UPDATE collections SET state = 'retired' WHERE version = ? AND state = 'ready'",
                (collection.version,),
            )
            connection.execute(
                "UPDATE collections SET state = 'ready', ready_at = ? WHERE name = ?",
                (to_iso(utc_now()), collection.name),
            )
        return True

    def seconds_per_text(self) -> float | None:
        """What encoding one text has cost in this workspace so far; None before the first."""
        row: sqlite3.Row = self._db.connection.execute(
            "SELECT sum(encode_s) / sum(encoded) FROM collections WHERE encoded > 0"
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def _one(self, sql: str, name: str) -> int:
        return int(self._db.connection.execute(sql, (name,)).fetchone()[0])
