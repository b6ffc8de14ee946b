"""The outbox: what ConPort is to hold is stored here first, then delivered in order.

So a stopped ConPort delays and never loses.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from filelock import FileLock, Timeout

from ragtune_mcp.core.clock import from_iso, to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import ConPortUnavailable, InvalidInput
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.conport_file import find_decision
from ragtune_mcp.core.feedback.conport_session import ConPortRefused
from ragtune_mcp.core.feedback.fields import encode_json

log = logging.getLogger(__name__)

# What concerns the one row that was sent; anything else that ConPort may raise stops the delivery.
_REFUSED = (ConPortRefused, InvalidInput)
# Rows that were sent, and id -> error of those that ConPort refused.
_Sent = tuple[Sequence[sqlite3.Row], Mapping[int, str]]
# Delivered and marked together; of an interrupted delivery at most this many are sent again.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class FlushResult:
    """Outcome of one delivery: `error` says why something still waits, None when nothing does."""

    delivered: int
    pending: int
    error: str | None = None


class Outbox:
    """Writes on their way to ConPort, in the workspace's database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put_custom_data(
        self, category: str, key: str, value: Any, conn: sqlite3.Connection | None = None
    ) -> None:
        """Queue a custom data entry; it replaces one of the same category and key that still waits.

        Args:
            category: ConPort category.
            key: ConPort key; the same key later overwrites the row in ConPort.
            value: JSON-able value.
            conn: a transaction to be part of; None for one of its own.

        Raises:
            InvalidInput: the category or key is empty, or the value cannot be written as JSON.
        """
        if not category or not key:
            raise InvalidInput(f"Custom data needs a category and a key; got {category!r} and {key!r}.")
        body = encode_json(value)
        if conn is not None:
            self._put(conn, category, key, body)
            return
        with self._db.transaction() as own:
            self._put(own, category, key, body)

    def put_custom_data_many(self, category: str, values: Iterable[tuple[str, Any]]) -> int:
        """Queue many (key, value) entries of a category in one transaction; returns how many."""
        count = 0
        with self._db.transaction() as conn:
            for key, value in values:
                self.put_custom_data(category, key, value, conn)
                count += 1
        return count

    def put_decision(
        self,
        summary: str,
        rationale: str = "",
        tags: Sequence[str] = (),
        link_to: tuple[str, str] | None = None,
        dedupe_key: str = "",
    ) -> None:
        """Queue a decision, and optionally a link from it to another item.

        Joins the transaction that is open on this thread.

        Args:
            summary: one line.
            rationale: why.
            tags: ConPort tags.
            link_to: (item type, item id) the decision is linked to.
            dedupe_key: a decision with the key of an earlier one is that decision and is not logged again;
                the summary where empty.
        """
        body = encode_json(
            {"summary": summary, "rationale": rationale, "tags": list(tags), "link_to": link_to}
        )
        with self._db.transaction() as conn:
            conn.execute(
                "INSERT INTO outbox (kind, category, key, body, created_at) VALUES ('decision', '', ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (dedupe_key or summary, body, to_iso(utc_now())),
            )

    def pending(self, category: str = "") -> int:
        """How many writes wait; of one category of custom data where given."""
        row = self._db.connection.execute(
            "SELECT count(*) FROM outbox WHERE delivered_at IS NULL AND ? IN ('', category)", (category,)
        ).fetchone()
        return int(row[0])

    def last_error(self) -> str | None:
        """Why the first waiting write was not delivered; None when none waits or none was tried."""
        row = self._db.connection.execute(
            "SELECT last_error FROM outbox WHERE delivered_at IS NULL AND last_error IS NOT NULL "
            "ORDER BY id LIMIT 1"
        ).fetchone()
        return row["last_error"] if row else None

    def pending_custom_data(self, category: str) -> list[dict[str, Any]]:
        """Waiting entries of a category as rows {id, timestamp, category, key, value}; the id is None."""
        rows = self._db.connection.execute(
            "SELECT key, body, created_at FROM outbox "
            "WHERE kind = 'custom_data' AND category = ? AND delivered_at IS NULL ORDER BY id",
            (category,),
        )
        return [
            {
                "id": None,
                "timestamp": row["created_at"],
                "category": category,
                "key": row["key"],
                "value": json.loads(row["body"]),
            }
            for row in rows
        ]

    def flush(self, client: ConPortClient, progress: Callable[[int, int], None] | None = None) -> FlushResult:
        """Deliver what waits, oldest first; stops when ConPort does not answer or its database stays locked.

        An entry that ConPort refuses, in whatever words, keeps waiting with its error and does not hold up the
        others. Of several processes only one delivers at a time.

        Args:
            client: where to deliver.
            progress: called with (delivered so far, waiting at the start) now and then.

        Returns:
            How many were delivered, how many wait, and why.
        """
        waiting = self.pending()
        if not waiting:
            return FlushResult(0, 0)
        report = (lambda done: progress(done, waiting)) if progress else None
        lock = FileLock(self._db.path.with_suffix(".delivery"), timeout=0)
        try:
            with lock:
                delivered, error = self._deliver_all(client, report)
        except Timeout:
            return FlushResult(0, self.pending(), "Another process is delivering.")
        pending = self.pending()
        return FlushResult(delivered, pending, error if pending else None)

    def _deliver_all(
        self, client: ConPortClient, report: Callable[[int], None] | None
    ) -> tuple[int, str | None]:
        # Again while it gets on: an entry may be replaced while its old value is under way.
        total = 0
        while True:
            delivered, error = self._deliver(client, total, report)
            total += delivered
            if error or not delivered or not self.pending():
                return total, error

    def _deliver(
        self, client: ConPortClient, before: int, report: Callable[[int], None] | None
    ) -> tuple[int, str | None]:
        delivered, last, error = 0, 0, None
        while rows := self._db.connection.execute(
            "SELECT * FROM outbox WHERE delivered_at IS NULL AND id > ? ORDER BY id LIMIT ?", (last, _BATCH)
        ).fetchall():
            for kind, group in groupby(rows, key=lambda row: row["kind"]):
                batch, settled = list(group), 0
                send = _send_custom_data if kind == "custom_data" else self._send_decisions
                try:
                    for sent, refused in send(client, batch):
                        settled += len(sent)
                        delivered += self._settle(sent, refused)
                        error = next(iter(refused.values()), error)
                        if report:
                            report(before + delivered)
                except ConPortUnavailable as failure:
                    self._update(batch[settled]["id"], "last_error", str(failure))
                    return delivered, str(failure)
            last = rows[-1]["id"]
        return delivered, error

    def _put(self, conn: sqlite3.Connection, category: str, key: str, body: str) -> None:
        # A replaced entry keeps its place in the order.
        conn.execute(
            "INSERT INTO outbox (kind, category, key, body, created_at) VALUES ('custom_data', ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET body = excluded.body, created_at = excluded.created_at, "
            "revision = revision + 1, last_error = NULL",
            (category, key, body, to_iso(utc_now())),
        )

    def _settle(self, rows: Sequence[sqlite3.Row], refused: Mapping[int, str]) -> int:
        """Mark delivered what is still as it was sent; returns how many were."""
        now = to_iso(utc_now())
        done = [(row["id"], row["revision"]) for row in rows if row["id"] not in refused]
        with self._db.transaction() as conn:
            conn.executemany(
                "DELETE FROM outbox WHERE id = ? AND revision = ? AND kind = 'custom_data'", done
            )
            conn.executemany(
                "UPDATE outbox SET delivered_at = ?, last_error = NULL WHERE id = ? AND kind = 'decision'",
                [(now, id_) for id_, _ in done],
            )
            for id_, error in refused.items():
                conn.execute("UPDATE outbox SET last_error = ? WHERE id = ?", (error, id_))
        return len(done)

    def _send_decisions(self, client: ConPortClient, rows: Sequence[sqlite3.Row]) -> Iterator[_Sent]:
        """Log and link decisions, one after the other."""
        for row in rows:
            refused = {}
            try:
                self._send_decision(client, row)
            except _REFUSED as error:
                refused[row["id"]] = str(error)
            yield [row], refused

    def _send_decision(self, client: ConPortClient, row: sqlite3.Row) -> None:
        decision = json.loads(row["body"])
        if "conport_id" not in decision:
            decision["conport_id"] = self._log(client, row["id"], decision)
            # At once: if linking fails, the next delivery must not log the decision again.
            self._update(row["id"], "body", encode_json(decision))
        if decision["link_to"]:
            item_type, item_id = decision["link_to"]
            client.link_items("decision", decision["conport_id"], item_type, item_id, "concerns")

    def _log(self, client: ConPortClient, id_: int, decision: dict[str, Any]) -> str:
        summary, rationale = decision["summary"], decision["rationale"]
        if "sent_at" in decision:
            # An earlier delivery ended between sending it and noting its id: it may be in ConPort.
            sent_at = from_iso(decision["sent_at"])
            found = find_decision(client.get_decisions(), summary, rationale, sent_at)
            if found:
                return str(found["id"])
        else:
            decision["sent_at"] = to_iso(utc_now())
            self._update(id_, "body", encode_json(decision))
        return str(client.log_decision(summary, rationale, tags=decision["tags"])["id"])

    def _update(self, id_: int, column: Literal["last_error", "body"], value: str) -> None:
        with self._db.transaction() as conn:
            conn.execute(f"UPDATE outbox SET {column} = ? WHERE id = ?", (value, id_))


def _send_custom_data(client: ConPortClient, rows: Sequence[sqlite3.Row]) -> Iterator[_Sent]:
    """Write entries, several at once."""
    entries = [{"category": r["category"], "key": r["key"], "value": json.loads(r["body"])} for r in rows]
    if len(rows) > 1:
        try:
            failed = client.log_custom_data_many(entries).failed
        except _REFUSED as error:
            # Which of them is not told.
            log.info("Entries are sent one by one: %s", error)
        else:
            yield rows, {rows[failure.row]["id"]: failure.error for failure in failed}
            return
    for row, entry in zip(rows, entries, strict=True):
        refused = {}
        try:
            client.log_custom_data(entry)
        except _REFUSED as error:
            refused[row["id"]] = str(error)
        yield [row], refused
