"""A world with movable time and two versions that answer from a table, over the real database."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.experiment.outcomes import Outcomes
from ragtune_mcp.core.experiment.ramp import Ramp
from ragtune_mcp.core.experiment.report import AbReport
from ragtune_mcp.core.experiment.serving import SearchService
from ragtune_mcp.core.experiment.trials import TrialStore

BASE, TUNED = "base", "tuned"
START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
PMF38 = np.array([0.03, 0.07, 0.22, 0.43, 0.25])
PMF42 = np.array([0.03, 0.04, 0.13, 0.30, 0.50])
RATINGS = np.arange(1, 6)


def tilted(effect: float) -> np.ndarray:
    """PMF38 tilted exponentially to the mean 3.8 + effect, as in the simulations of the full rule."""
    low, high = -3.0, 3.0
    for _ in range(80):
        middle = (low + high) / 2
        weights = PMF38 * np.exp(middle * RATINGS)
        if (weights / weights.sum()) @ RATINGS < PMF38 @ RATINGS + effect:
            low = middle
        else:
            high = middle
    weights = PMF38 * np.exp(low * RATINGS)
    return weights / weights.sum()


@dataclass(frozen=True)
class FakeHit:
    id: str
    text: str
    source: str
    rank: int
    score: float


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@dataclass
class World:
    """Everything of the stage on one database file."""

    db: Database
    clock: Clock = field(default_factory=Clock)
    rankings: dict[str, list[str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    champion: str = BASE

    def __post_init__(self) -> None:
        self.trials = TrialStore(self.db, clock=self.clock)
        self.service = SearchService(
            self.db, self.trials, self.answer, lambda: self.champion, clock=self.clock, timer=lambda: 0.0
        )
        self.outcomes = Outcomes(self.db, self.trials, clock=self.clock)
        self.report = AbReport(self.db, self.trials, clock=self.clock)
        self.ramp = Ramp(self.db, self.trials, clock=self.clock)

    def answer(self, version: str, query: str, k: int) -> list[FakeHit]:
        if version in self.broken:
            raise RuntimeError(f"{version} does not load")
        ids = self.rankings.get(version) or [f"{version}-{i}" for i in range(k)]
        return [FakeHit(d, f"text of {d}", "s", r, 1 - r / 100) for r, d in enumerate(ids[:k], 1)]

    def start(self, **options):
        """A test whose assignment is the same in every run: the salt is its number."""
        defaults = {
            "duration_hours": 240.0,
            "metrics": ("response_quality",),
            "salt": f"test {self.counts('trials')}",
        }
        options = {**defaults, **options}
        return self.trials.start(BASE, TUNED, **options)

    def arm_of(self, query_id: str) -> str:
        row = self.db.connection.execute("SELECT assigned FROM exposures WHERE query_id = ?", (query_id,))
        return row.fetchone()[0]

    def rate(self, query: str, rating: int, **options):
        served = self.service.search(query, k=1)
        return self.outcomes.record(served.query_id, rating, **options)

    def rate_by_arm(self, n: int, baseline: int, test: int, prefix: str = "q") -> None:
        """n further queries, each rated by its arm's number or one less, in turn."""
        for i in range(n):
            served = self.service.search(f"{prefix} {i}", k=1)
            centre = test if self.arm_of(served.query_id) == "test" else baseline
            self.outcomes.record(served.query_id, max(1, min(5, centre - i % 2)))

    def counts(self, table: str) -> int:
        return self.db.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def stream(
    world: World,
    n: int,
    pmfs: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    *,
    hours: float,
    drift: float = 0.0,
    change_split: tuple[float, float] | None = None,
    prefix: str = "",
):
    """One test through the service path, read after every rating, until it decides or n ratings are in.

    Args:
        world: with a running test.
        n: number of ratings.
        pmfs: distribution over 1..5 of (baseline, test).
        rng: of the ratings.
        hours: planned duration; ratings come evenly spread over it.
        drift: in each half of the stream a share of ratings is moved down, then up, by one.
        change_split: (after which share of the ratings, new split).
        prefix: of the queries, so that streams on one database share no unit.

    Returns:
        (last reading, number of ratings used).
    """
    reading = None
    for i in range(n):
        if change_split and i == round(change_split[0] * n):
            world.trials.set_split(world.trials.latest().test_id, change_split[1])
        served = world.service.search(f"{prefix}query {i}", k=1)
        in_test = world.arm_of(served.query_id) == "test"
        value = int(rng.choice(RATINGS, p=pmfs[in_test]))
        shift = drift * math.sin(2 * math.pi * i / n)
        if rng.random() < abs(shift):
            value = max(1, min(5, value + (1 if shift > 0 else -1)))
        world.outcomes.record(served.query_id, value)
        world.clock.forward(hours=hours / (n + 1))
        reading = world.report.results()
        if reading.status != "active":
            return reading, i + 1
    world.clock.forward(hours=hours)
    return world.report.results(), n
