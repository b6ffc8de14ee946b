"""How often an A/B test is wrong and how often it finds an effect, through the real service path.

Every stream is one test: searches are assigned and logged, feedback is recorded, and the results are read
after every single rating, all through the database. No shortcut. Run it, one process, with:

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ab_operating_characteristics.py --streams 2000

It prints one Markdown row a scenario as soon as that is done; docs/ab-testing.md holds the table it printed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.experiment.support import PMF38, PMF42, World, stream, tilted

from ragtune_mcp.core.database import Database

SKEWED = np.array([0.02, 0.02, 0.05, 0.16, 0.75])
HOURS = 240.0
STREAMS_PER_DATABASE = 100


@dataclass(frozen=True)
class Scenario:
    """One row: what the arms are rated like, and how the test is run."""

    name: str
    pmfs: tuple[np.ndarray, np.ndarray]
    start: dict[str, object] = field(default_factory=dict)
    stream: dict[str, object] = field(default_factory=dict)


SCENARIOS = {
    "aa": Scenario("A/A, split .5", (PMF38, PMF38)),
    "aa-drift": Scenario("A/A, drift", (PMF38, PMF38), stream={"drift": 0.6}),
    "aa-split": Scenario("A/A, split .2", (PMF38, PMF38), start={"split": 0.2}),
    "aa-change": Scenario(
        "A/A, drift, split .2 -> .5 in mid test",
        (PMF38, PMF38),
        start={"split": 0.2},
        stream={"drift": 0.6, "change_split": (150, 0.5)},
    ),
    "aa-skewed": Scenario("A/A, skewed ratings", (SKEWED, SKEWED)),
    "win": Scenario("3.8 -> 4.2", (PMF38, PMF42)),
    "win-tilted": Scenario("3.8 -> 4.2, tilted", (PMF38, tilted(0.4))),
    "harm": Scenario("3.8 -> 3.4, tilted", (PMF38, tilted(-0.4))),
}


def outcome_of(reading) -> str:
    """deploy, worse, equivalent, inconclusive or another recommendation."""
    if reading.recommendation == "keep_baseline":
        return "equivalent" if "equivalent" in reading.reasons[0] else "worse"
    return {"deploy_test_model": "deploy"}.get(reading.recommendation, reading.recommendation)


def simulate(
    scenario: Scenario, streams: int, ratings: int, seed: int, folder: Path
) -> tuple[Counter, float]:
    """Outcomes of independent streams and the mean number of ratings used."""
    outcomes: Counter = Counter()
    used = 0
    for first in range(0, streams, STREAMS_PER_DATABASE):
        path = folder / f"{first}.db"
        world = World(Database(path))
        # The log of a simulation need not survive a power cut.
        world.db.connection.execute("PRAGMA synchronous=OFF")
        for number in range(first, min(first + STREAMS_PER_DATABASE, streams)):
            world.start(duration_hours=HOURS, salt=f"{seed}/{number}", **scenario.start)
            rng = np.random.default_rng([seed, number])
            reading, n = stream(
                world, ratings, scenario.pmfs, rng, hours=HOURS, prefix=f"{number} ", **scenario.stream
            )
            outcomes[outcome_of(reading)] += 1
            used += n
        world.db.close()
        for leftover in folder.glob(f"{path.name}*"):
            leftover.unlink()
    return outcomes, used / streams


def row(scenario: Scenario, streams: int, outcomes: Counter, used: float) -> str:
    """One line of the table: shares, with the standard error of the wrong decisions."""
    deploy, worse = outcomes["deploy"] / streams, outcomes["worse"] / streams
    wrong = deploy + worse
    error = math.sqrt(max(wrong * (1 - wrong), 1e-12) / streams)
    shares = [deploy, worse, outcomes["equivalent"] / streams, outcomes["inconclusive"] / streams]
    cells = " | ".join(f"{share:.4f}" for share in shares)
    return f"| {scenario.name} | {streams} | {cells} | {wrong:.4f} ± {error:.4f} | {used:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--ratings", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append")
    options = parser.parse_args()
    print(f"N = {options.ratings} ratings a stream, read after every rating, seed {options.seed}\n")
    print(
        "| scenario | streams | deploy | worse | equivalent | inconclusive | deploy or worse | mean ratings |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in options.scenario or SCENARIOS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            result = simulate(SCENARIOS[name], options.streams, options.ratings, options.seed, place)
        print(row(SCENARIOS[name], options.streams, *result), flush=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
