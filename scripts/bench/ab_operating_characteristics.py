"""How often an A/B test is wrong and how often it finds an effect, through the real service path.

Every stream is one test: searches are assigned and logged, feedback is recorded, and the results are read
after every single rating, all through the database. No shortcut. Run it, one process, with:

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ab_operating_characteristics.py --streams 2000

It prints one Markdown row a scenario as soon as that is done; docs/ab-testing.md holds the table it printed.
With --results FILE a run can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.experiment.support import PMF38, PMF42, World, stream, tilted

from ragtune_mcp.core.database import Database

SKEWED = np.array([0.02, 0.02, 0.05, 0.16, 0.75])
HOURS = 240.0
STREAMS_PER_CHUNK = 100


class Chunk(NamedTuple):
    """Streams done, how they ended, and the ratings they used."""

    streams: int
    outcomes: Counter[str]
    used: int


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
        stream={"drift": 0.6, "change_split": (0.5, 0.5)},
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


def simulate(scenario: Scenario, numbers: range, ratings: int, seed: int, folder: Path) -> Chunk:
    """Independent streams, one after the other on one database."""
    outcomes: Counter[str] = Counter()
    used = 0
    path = folder / "streams.db"
    world = World(Database(path))
    # The log of a simulation need not survive a power cut.
    world.db.connection.execute("PRAGMA synchronous=OFF")
    for number in numbers:
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
    return Chunk(len(numbers), outcomes, used)


def stored(path: Path | None, key: str) -> Chunk | None:
    """A chunk that an earlier run wrote, so that a run can be stopped and repeated."""
    if path is None or not path.exists():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = next((row for row in rows if row["key"] == key), None)
    return Chunk(found["streams"], Counter(found["outcomes"]), found["used"]) if found else None


def run(name: str, options: argparse.Namespace) -> Chunk:
    """All streams of a scenario, in chunks that are stored as they are done."""
    total = Chunk(0, Counter(), 0)
    for first in range(0, options.streams, STREAMS_PER_CHUNK):
        numbers = range(first, min(first + STREAMS_PER_CHUNK, options.streams))
        key = f"{name}/{options.ratings}/{options.seed}/{numbers.start}-{numbers.stop}"
        chunk = stored(options.results, key)
        if chunk is None:
            with tempfile.TemporaryDirectory() as folder:
                chunk = simulate(SCENARIOS[name], numbers, options.ratings, options.seed, Path(folder))
            if options.results:
                line = {"key": key, **chunk._asdict()}
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        total = Chunk(total.streams + chunk.streams, total.outcomes + chunk.outcomes, total.used + chunk.used)
    return total


def row(name: str, done: Chunk) -> str:
    """One line of the table: shares, with the standard error of the wrong decisions."""
    deploy, worse, equivalent, inconclusive = (
        done.outcomes[o] / done.streams for o in ("deploy", "worse", "equivalent", "inconclusive")
    )
    wrong = deploy + worse
    error = math.sqrt(max(wrong * (1 - wrong), 1e-12) / done.streams)
    cells = " | ".join(f"{share:.4f}" for share in (deploy, worse, equivalent, inconclusive))
    mean = done.used / done.streams
    return f"| {name} | {done.streams} | {cells} | {wrong:.4f} ± {error:.4f} | {mean:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--ratings", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", choices=list(SCENARIOS), action="append")
    parser.add_argument("--results", type=Path, help="JSON lines; what is in it is not run again")
    options = parser.parse_args()
    print(f"N = {options.ratings} ratings a stream, read after every rating, seed {options.seed}\n")
    print("| scenario | streams | deploy | worse | equivalent | inconclusive | deploy or worse | mean n |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.scenario or SCENARIOS:
        print(row(SCENARIOS[name].name, run(name, options)), flush=True)


if __name__ == "__main__":
    main()
