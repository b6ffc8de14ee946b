"""Feedback on a search: checked, logged once, and handed on in the form that trains the next model."""

from __future__ import annotations

import math
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from ragtune_mcp.core.clock import from_iso, to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import InvalidInput, UnknownId
from ragtune_mcp.core.experiment.decision_log import final_decision
from ragtune_mcp.core.experiment.entry import (
    Exposed,
    exposed_search,
    feedback_entry,
    known_opinions,
)
from ragtune_mcp.core.experiment.trials import Trial, TrialStore, add_tally

EDIT_WINDOW = timedelta(minutes=10)
CONTRADICTION = 3
_PANNED = 2
_NAMESPACE = uuid.UUID("6f2f9a52-55b0-4d51-9d0a-5f0c5f2c7a11")

Kind = Literal["answer", "satisfaction", "document", "helpful"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of one piece of feedback.

    Attributes:
        feedback_id: the same for every call with this query and rater; key of the ConPort entry.
        value: the entry in the form `ragtune.feedback/1`, with everything this rater has said on the query.
        is_duplicate: nothing new was said.
        is_late: it came after the test was decided; it trains, but does not count in the test.
    """

    feedback_id: str
    value: dict[str, Any]
    is_duplicate: bool
    is_late: bool


@dataclass(frozen=True, slots=True)
class _Opinion:
    kind: Kind
    item: str
    value: float


class Outcomes:
    """Records feedback by `query_id`, whether or not a test runs.

    Args:
        db: the workspace's database.
        trials: its tests.
        publish: called inside the transaction with what was recorded, so that the log and the outbox agree;
            not called for a duplicate.
        clock: the present moment.
    """

    def __init__(
        self,
        db: Database,
        trials: TrialStore,
        *,
        publish: Callable[[Recorded], None] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._db = db
        self._trials = trials
        self._publish = publish
        self._clock = clock

    def record(
        self,
        query_id: str,
        rating: int | None = None,
        document_ratings: Mapping[str, int] | None = None,
        user_satisfaction: int | None = None,
        comment: str = "",
        helpful_ids: Iterable[str] = (),
        rater: str = "",
    ) -> Recorded:
        """Record feedback on one search.

        Repeating a call changes nothing. A changed rating within 10 minutes replaces the first one unless the
        results have been read since; a later change counts in the fixed-horizon comparison only.

        Args:
            query_id: handle that `search` returned.
            rating: of the answer as a whole, 1..5.
            document_ratings: id of a shown document -> 1..5.
            user_satisfaction: 1..5.
            comment: free text.
            helpful_ids: shown documents that helped.
            rater: who rates; "" for the one unnamed rater.

        Returns:
            The feedback id and the entry for ConPort.

        Raises:
            InvalidInput: a rating that is no whole number 1..5, a document not shown, or nothing said.
            UnknownId: no such search (code `unknown_query`).
        """
        try:
            opinions = _opinions(rating, document_ratings or {}, user_satisfaction, helpful_ids)
            if not opinions and not comment.strip():
                raise InvalidInput(
                    "The feedback says nothing.", hint="Give a rating, document_ratings or a comment."
                )
            exposed = exposed_search(self._db.connection, query_id)
            _check_shown(exposed, opinions)
        except (InvalidInput, UnknownId) as error:
            self._count_refused(error)
            raise
        with self._db.transaction() as conn:
            recorded = self._store(conn, exposed, opinions, comment.strip(), rater)
            if self._publish is not None and not recorded.is_duplicate:
                self._publish(recorded)
        return recorded

    def _count_refused(self, error: InvalidInput | UnknownId) -> None:
        trial = self._trials.active()
        if trial is not None:
            with self._db.transaction() as conn:
                add_tally(conn, trial.test_id, "unknown_query" if isinstance(error, UnknownId) else "invalid")

    def _store(
        self, conn: sqlite3.Connection, exposed: Exposed, opinions: list[_Opinion], comment: str, rater: str
    ) -> Recorded:
        now = self._clock()
        feedback_id = str(uuid.uuid5(_NAMESPACE, f"{exposed.query_id}\x1f{rater}"))
        trial = self._trials.get(exposed.test_id) if exposed.test_id else None
        known = known_opinions(conn, exposed.query_id, rater)
        fresh = [
            o for o in opinions if (old := known.get((o.kind, o.item))) is None or old["value"] != o.value
        ]
        entry = conn.execute("SELECT comment FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
        says_more = bool(comment) and (entry is None or entry["comment"] != comment)
        state = "counted" if trial is None else _arrival_state(conn, trial, exposed, now)
        is_duplicate = not fresh and not says_more
        if trial is not None:
            _tally(conn, trial, fresh, known, state, is_duplicate=is_duplicate)
        if not is_duplicate:
            _log_opinions(conn, exposed, fresh, known, rater, trial, state, now)
            conn.execute(
                "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (feedback_id) DO UPDATE SET"
                " comment = CASE excluded.comment WHEN '' THEN comment ELSE excluded.comment END,"
                " updated_at = excluded.updated_at",
                (feedback_id, exposed.query_id, rater, comment, to_iso(now), to_iso(now)),
            )
        value = feedback_entry(conn, exposed, feedback_id)
        return Recorded(feedback_id, value, is_duplicate, is_late=state == "late")


def _opinions(
    rating: int | None,
    document_ratings: Mapping[str, int],
    satisfaction: int | None,
    helpful_ids: Iterable[str],
) -> list[_Opinion]:
    opinions = []
    if rating is not None:
        opinions.append(_Opinion("answer", "", _rating("rating", rating)))
    if satisfaction is not None:
        opinions.append(_Opinion("satisfaction", "", _rating("user_satisfaction", satisfaction)))
    for document_id, value in document_ratings.items():
        opinions.append(
            _Opinion("document", document_id, _rating(f"document_ratings[{document_id!r}]", value))
        )
    opinions += [_Opinion("helpful", document_id, 1.0) for document_id in dict.fromkeys(helpful_ids)]
    return opinions


def _rating(name: str, value: object) -> float:
    # bool is an int and 4.0 a whole number; only a plain int is a rating, so nothing is rounded silently.
    if type(value) is not int or not 1 <= value <= 5:
        raise InvalidInput(f"{name} is {value!r}; it must be a whole number from 1 to 5.")
    return float(value)


def _check_shown(exposed: Exposed, opinions: list[_Opinion]) -> None:
    foreign = [o.item for o in opinions if o.kind in ("document", "helpful") and o.item not in exposed.shown]
    if foreign:
        raise InvalidInput(
            f"The document {foreign[0]!r} was not among the results of {exposed.query_id}.",
            hint=f"Rate the documents shown: {', '.join(exposed.shown) or 'none'}.",
        )


def _arrival_state(conn: sqlite3.Connection, trial: Trial, exposed: Exposed, now: datetime) -> str:
    if trial.ramp_phase is not None:
        # A search from before the ramp tells of the test, which is decided.
        is_of_ramp = exposed.phase is not None and exposed.phase >= trial.ramp_phase
        return "ramp" if is_of_ramp and trial.status == "ramping" else "late"
    if trial.is_running:
        return "counted"
    is_open = trial.ended_as_planned and now <= trial.grace_ends_at
    return "counted" if is_open and final_decision(conn, trial.test_id) is None else "late"


def _log_opinions(
    conn: sqlite3.Connection,
    exposed: Exposed,
    fresh: list[_Opinion],
    known: Mapping[tuple[str, str], sqlite3.Row],
    rater: str,
    trial: Trial | None,
    state: str,
    now: datetime,
) -> None:
    submission = 0
    for opinion in fresh:
        old = known.get((opinion.kind, opinion.item))
        document = exposed.shown.get(opinion.item)
        rank, gap = (document.rank, document.gap) if document else (None, None)
        cursor = conn.execute(
            "INSERT INTO outcomes (submission, query_id, exposure_seq, test_id, unit, rater, kind, item,"
            " value, rank, gap, revision, replaces, state, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                submission, exposed.query_id, exposed.seq, exposed.test_id, exposed.unit, rater, opinion.kind,
                opinion.item, opinion.value, rank, gap, old["revision"] + 1 if old else 0,
                (old["replaces"] or old["seq"]) if old else None,
                _edit_state(conn, old, trial, now) if old and state == "counted" else state, to_iso(now),
            ),
        )  # fmt: skip
        if not submission:
            submission = int(cursor.lastrowid or 0)
            conn.execute("UPDATE outcomes SET submission = ? WHERE seq = ?", (submission, submission))


def _edit_state(conn: sqlite3.Connection, old: sqlite3.Row, trial: Trial | None, now: datetime) -> str:
    """`edit` replaces the original in the always-valid analysis; `late_edit` does not: it was read."""
    origin = conn.execute(
        "SELECT seq, at FROM outcomes WHERE seq = ?", (old["replaces"] or old["seq"],)
    ).fetchone()
    was_read = trial is not None and origin["seq"] <= trial.read_seq
    return "late_edit" if was_read or now - from_iso(origin["at"]) > EDIT_WINDOW else "edit"


def _tally(
    conn: sqlite3.Connection,
    trial: Trial,
    fresh: list[_Opinion],
    known: Mapping[tuple[str, str], sqlite3.Row],
    state: str,
    *,
    is_duplicate: bool,
) -> None:
    changed = [o for o in fresh if (o.kind, o.item) in known]
    flipped = [o for o in changed if abs(known[o.kind, o.item]["value"] - o.value) >= CONTRADICTION]
    said = {key: row["value"] for key, row in known.items()} | {(o.kind, o.item): o.value for o in fresh}
    panned_and_praised = {
        o.item
        for o in fresh
        if ("helpful", o.item) in said and said.get(("document", o.item), math.inf) <= _PANNED
    }
    counts = {
        "duplicate": int(is_duplicate),
        "edited": len(changed),
        "late": int(state == "late" and not is_duplicate),
        "contradictory": len(flipped) + len(panned_and_praised),
    }
    for name, count in counts.items():
        if count:
            add_tally(conn, trial.test_id, name, count)
