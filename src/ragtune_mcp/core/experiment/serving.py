"""Search under a test: assign, log the exposure, answer, fall back, break the circuit."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import InvalidInput, RagTuneError
from ragtune_mcp.core.experiment.assignment import Variant, assign, check_text, coin_flips, unit_of
from ragtune_mcp.core.experiment.decision_log import break_circuit
from ragtune_mcp.core.experiment.interleaving import MIDPOINT_RATING, discount_gap, team_draft
from ragtune_mcp.core.experiment.trials import Trial, TrialStore
from ragtune_mcp.core.feedback.parsing import MAX_DOCUMENT_TEXT
from ragtune_mcp.core.workspace import new_handle, sha256_text

_logger = logging.getLogger(__name__)


class Hit(Protocol):
    """A search result as retrieval returns it."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Shown:
    """One result as shown: rank from 1; nothing tells which variant it came from."""

    id: str
    text: str
    source: str
    rank: int
    score: float
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """An answered search; `query_id` is the handle that feedback is given by."""

    query_id: str
    hits: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class _Exposure:
    seq: int
    query_id: str
    unit: str
    assigned: Variant | None


@dataclass(frozen=True, slots=True)
class _Answer:
    served: Variant | None
    version: str
    failure: str
    latency_ms: float
    hits: tuple[Shown, ...]


class SearchService:
    """Answers searches, by the running test's assignment where one runs, by the champion otherwise.

    Args:
        db: the workspace's database.
        trials: its tests.
        search_version: (version, query, k) -> results, best first.
        champion: the version that serves while no test runs.
        clock: the present moment.
        timer: seconds of a monotonic clock, for latencies.
    """

    def __init__(
        self,
        db: Database,
        trials: TrialStore,
        search_version: Callable[[str, str, int], Sequence[Hit]],
        champion: Callable[[], str],
        *,
        clock: Callable[[], datetime] = utc_now,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._db = db
        self._trials = trials
        self._search_version = search_version
        self._champion = champion
        self._clock = clock
        self._timer = timer

    def search(self, query: str, k: int = 5, unit_id: str = "") -> Served:
        """Answer one query.

        The exposure is committed before a variant runs, so that a crash on the way leaves it in the log. If
        the test version fails, the baseline answers; the exposure keeps its assignment, the fallback counts.

        Args:
            query: the question, not blank.
            k: number of results, >= 1.
            unit_id: unit of assignment (a user, a session); "" for the query itself.

        Returns:
            The handle for feedback and the results.

        Raises:
            InvalidInput: a blank query, k < 1, or a text that the log cannot hold.
        """
        if not query.strip():
            raise InvalidInput(f"The query {query!r} is blank.")
        if k < 1:
            raise InvalidInput(f"k is {k}; it must be at least 1.")
        check_text("query", query)
        check_text("unit_id", unit_id)
        trial = self._trials.active()
        exposure = self._expose(trial, query, k, unit_of(query, unit_id))
        answer = self._answer(trial, exposure, query, k)
        self._log_answer(trial, exposure, answer)
        return Served(exposure.query_id, answer.hits)

    def recent_queries(self, limit: int) -> list[str]:
        """The last queries asked here, each once, newest first."""
        rows = self._db.connection.execute(
            "SELECT query FROM exposures GROUP BY query ORDER BY max(seq) DESC LIMIT ?", (limit,)
        )
        return [row["query"] for row in rows]

    def _expose(self, trial: Trial | None, query: str, k: int, unit: str) -> _Exposure:
        query_id = new_handle("q")
        with self._db.transaction() as conn:
            row: tuple[Any, ...] = (None, None, None, None, 0, 0.0)
            assigned: Variant | None = None
            if trial is not None:
                assigned, propensity, covariate, is_first = _assignment(conn, trial, unit)
                row = (trial.test_id, trial.phase, propensity, assigned, int(is_first), covariate)
            cursor = conn.execute(
                "INSERT INTO exposures (query_id, query, k, unit, at, test_id, phase, propensity, assigned,"
                " is_first, covariate) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (query_id, query, k, unit, to_iso(self._clock()), *row),
            )
        return _Exposure(int(cursor.lastrowid or 0), query_id, unit, assigned)

    def _answer(self, trial: Trial | None, exposure: _Exposure, query: str, k: int) -> _Answer:
        started = self._timer()
        served: Variant | None = None
        failure = ""
        if trial is None or exposure.assigned is None:
            version = self._champion()
            hits = _shown(self._search_version(version, query, k))
        elif exposure.assigned is Variant.BASELINE:
            served, version = Variant.BASELINE, trial.baseline_version
            hits = _shown(self._search_version(version, query, k))
        else:
            served, version = exposure.assigned, trial.test_version
            baseline = (
                self._search_version(trial.baseline_version, query, k) if served is Variant.BOTH else ()
            )
            test, failure = self._try_test_version(trial, query, k)
            if failure:
                served, version = Variant.BASELINE, trial.baseline_version
                hits = _shown(baseline or self._search_version(version, query, k))
            elif served is Variant.BOTH:
                hits = _interleaved(trial, exposure, baseline, test, k)
            else:
                hits = _shown(test)
        return _Answer(served, version, failure, (self._timer() - started) * 1e3, hits)

    def _try_test_version(self, trial: Trial, query: str, k: int) -> tuple[Sequence[Hit], str]:
        try:
            return self._search_version(trial.test_version, query, k), ""
        # Whatever a model or its index raises, the user gets the baseline's answer; it is logged, counted
        # and, if it repeats, ends the test, unless the version was only not ready yet.
        except Exception as error:
            _logger.warning("test version %s failed on a query", trial.test_version, exc_info=True)
            return (), error.code if isinstance(error, RagTuneError) else type(error).__name__

    def _log_answer(self, trial: Trial | None, exposure: _Exposure, answer: _Answer) -> None:
        shown = [(sha256_text(hit.text), hit) for hit in answer.hits]
        results = [[hit.id, sha, hit.source, hit.score, hit.gap] for sha, hit in shown]
        with self._db.transaction() as conn:
            conn.executemany(
                "INSERT OR IGNORE INTO shown_documents VALUES (?, ?)",
                [(sha, hit.text[:MAX_DOCUMENT_TEXT]) for sha, hit in shown],
            )
            conn.execute(
                "INSERT INTO answers (exposure_seq, test_id, at, served, version, failure, latency_ms,"
                " results) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    exposure.seq, trial.test_id if trial else None, to_iso(self._clock()), answer.served,
                    answer.version, answer.failure, answer.latency_ms, json.dumps(results),
                ),
            )  # fmt: skip
            if trial is not None and answer.failure:
                break_circuit(conn, trial, self._clock())


def _assignment(conn: sqlite3.Connection, trial: Trial, unit: str) -> tuple[Variant, float, float, bool]:
    """(variant, propensity, covariate, first exposure of the unit): a unit seen before keeps what it had.

    A ramp assigns anew, by the same bucket; a unit whose bucket the test has revealed is then no new unit.
    """
    seen = conn.execute(
        "SELECT assigned, propensity, covariate, phase FROM exposures WHERE test_id = ? AND unit = ?"
        " ORDER BY seq DESC LIMIT 1",
        (trial.test_id, unit),
    ).fetchone()
    if seen is not None and seen["phase"] >= (trial.ramp_phase or 0):
        return Variant(seen["assigned"]), seen["propensity"], seen["covariate"], False
    if trial.mode == "interleave" and trial.ramp_phase is None:
        return Variant.BOTH, 0.5, 0.0, True
    assigned = assign(trial.salt, trial.assignment_key, unit, trial.split)
    is_first = seen is None or seen["assigned"] == Variant.BOTH
    return assigned, trial.split, _history(conn, trial, unit), is_first


def _history(conn: sqlite3.Connection, trial: Trial, unit: str) -> float:
    """The covariate: the unit's mean answer rating before this test, from the midpoint, shrunk a little.

    Known before the assignment, so it cannot depend on the arm; 0 for a unit never rated.
    """
    mean, n = conn.execute(
        "SELECT avg(value), count(*) FROM outcomes WHERE unit = ? AND kind = 'answer' AND test_id IS NOT ?",
        (unit, trial.test_id),
    ).fetchone()
    return float((mean - MIDPOINT_RATING) * n / (n + 1)) if n else 0.0


def _shown(hits: Sequence[Hit]) -> tuple[Shown, ...]:
    return tuple(Shown(h.id, h.text, h.source, rank, float(h.score)) for rank, h in enumerate(hits, 1))


def _interleaved(
    trial: Trial, exposure: _Exposure, baseline: Sequence[Hit], test: Sequence[Hit], k: int
) -> tuple[Shown, ...]:
    ids_a, ids_b = [h.id for h in baseline], [h.id for h in test]
    by_id = {h.id: h for h in (*test, *baseline)}
    picks = team_draft(ids_a, ids_b, k, coin_flips(trial.salt, trial.assignment_key, exposure.unit))
    chosen = [by_id[pick.document_id] for pick in picks]
    return tuple(
        Shown(h.id, h.text, h.source, rank, float(h.score), discount_gap(h.id, ids_a, ids_b, k))
        for rank, h in enumerate(chosen, 1)
    )
