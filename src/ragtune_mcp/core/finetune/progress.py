"""Progress with an estimate of the time left, from the first step on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

Report = Callable[[float, str, dict[str, Any]], None]

_EVERY_S = 1.0


class Progress:
    """Turns finished work into fractions and remaining seconds.

    Work is counted in tokens x layers, three times as much where gradients are computed, which is
    proportional to time on one machine; so phases of different kinds add up to one bar.

    Args:
        report: receives (fraction in [0, 1], message, fields); fields always hold `eta_s`.
        cancelled: raises when the job was cancelled; called on every advance.
    """

    def __init__(self, report: Report, cancelled: Callable[[], None]) -> None:
        self._report = report
        self._cancelled = cancelled
        self._planned: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._phase = ""
        self._started = time.monotonic()
        self._last = -_EVERY_S

    def plan(self, work: Mapping[str, float]) -> None:
        """Set the phases and their work; phases already finished keep what they did."""
        self._planned = {**work, **{name: done for name, done in self._done.items() if name not in work}}

    def start(self, phase: str) -> None:
        """Begin a phase; the one before counts as finished."""
        if self._phase:
            self._done[self._phase] = self._planned.get(self._phase, 0.0)
        self._phase = phase
        self._done.setdefault(phase, 0.0)
        self._emit(phase, {})

    def advance(self, work: float, message: str = "", **fields: Any) -> None:
        """Count work of the present phase; reports about once a second, and always when there are fields."""
        self._count(self._done.get(self._phase, 0.0) + work, message, fields)

    def reach(self, share: float, message: str, **fields: Any) -> None:
        """Count a share, in [0, 1], of the present phase as done, by whatever attempt did it."""
        self._count(share * self._planned.get(self._phase, 0.0), message, fields)

    def _count(self, done: float, message: str, fields: dict[str, Any]) -> None:
        self._cancelled()
        self._done[self._phase] = min(done, self._planned.get(self._phase, 0.0))
        if fields or time.monotonic() - self._last >= _EVERY_S:
            self._emit(message or self._phase, fields)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def _emit(self, message: str, fields: dict[str, Any]) -> None:
        self._last = time.monotonic()
        total = sum(self._planned.values())
        share = min(1.0, sum(self._done.values()) / total) if total else 0.0
        eta = round(self.elapsed_s * (1 - share) / share, 1) if share > 0 else None
        self._report(share, message, {**fields, "eta_s": eta})
