"""Who changed what, when and why. Entries are only ever added; the database refuses anything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: `subject` went from `before` to `after`, either of which may be nothing."""

    entry_id: int
    at: str
    action: str
    subject: str
    before: str | None
    after: str | None
    actor: str
    reason: str
    details: Mapping[str, Any]


class AuditLog:
    """The audit log of one workspace."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(
        self,
        action: str,
        subject: str,
        *,
        actor: str,
        reason: str,
        before: str | None = None,
        after: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add an entry, in the caller's transaction where one is open; returns its id."""
        cursor = self._db.connection.execute(
            "INSERT INTO audit_log (at, action, subject, before, after, actor, reason, details)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (to_iso(utc_now()), action, subject, before, after, actor, reason, json.dumps(details or {})),
        )
        return int(cursor.lastrowid or 0)

    def entries(self, subject: str = "", limit: int | None = None) -> tuple[AuditEntry, ...]:
        """Entries, oldest first; of one subject where given, and only the last `limit`."""
        rows = self._db.connection.execute(
            "SELECT * FROM audit_log WHERE subject=? OR ?='' ORDER BY entry_id DESC LIMIT ?",
            (subject, subject, -1 if limit is None else limit),
        ).fetchall()
        return tuple(
            AuditEntry(**{**dict(row), "details": json.loads(row["details"])}) for row in reversed(rows)
        )

    def ever(self, subject: str) -> frozenset[str]:
        """Everything a subject ever was or became: with "champion", where a roll-back may lead."""
        return frozenset(
            value
            for entry in self.entries(subject)
            for value in (entry.before, entry.after)
            if value is not None
        )
