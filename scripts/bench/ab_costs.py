"""What an A/B test costs: time added to a search, and time of ab_results over a long log.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/bench/ab_costs.py

Everything goes through the service path on a database file with the settings of production. "same process"
reads after one more rating, "new process" starts from the stored checkpoint, "from the log" without one. The
three give the same results, which is checked.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.experiment.support import PMF38, PMF42, World

from ragtune_mcp.core.database import Database

SIZES = (1_000, 10_000, 100_000)
RATED_SHARE = 0.3
RESULTS = 5


def timed(call):
    """(result, milliseconds)."""
    started = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - started) * 1e3


def fill(world: World, first: int, last: int, rng: np.random.Generator) -> list[float]:
    """Searches first..last with ratings on a share of them; milliseconds that each search took."""
    spent = []
    for i in range(first, last):
        served, took = timed(lambda i=i: world.service.search(f"question number {i}", k=RESULTS))
        spent.append(took)
        if rng.random() < RATED_SHARE:
            pmf = PMF42 if world.arm_of(served.query_id) == "test" else PMF38
            rating = int(rng.choice(5, p=pmf)) + 1
            world.outcomes.record(served.query_id, rating, {served.hits[0].id: rating})
    return spent


def read_costs(world: World) -> list[float]:
    """Milliseconds of a reading: same process, new process, from the log."""
    world.report.results()
    world.rate("one more question", 4)
    first, warm = timed(world.report.results)
    second, fresh = timed(World(world.db, clock=world.clock).report.results)
    world.db.connection.execute("DELETE FROM trial_checkpoints")
    third, whole = timed(World(world.db, clock=world.clock).report.results)
    same = [r.effect.difference for r in (first, second, third)]
    if max(same) - min(same) > 1e-9 or not first.p_anytime == second.p_anytime:
        raise SystemExit(f"readings differ: {same}")
    return [warm, fresh, whole]


def main() -> None:
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores, load {load:.1f}; {RATED_SHARE:.0%} of searches rated, {RESULTS} results\n"
    )
    print(
        "| searches | rated | search adds, median (p95) | same process | new process | from the log | file |"
    )
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ragtune.db"
        world = World(Database(path))
        # So long a test that nothing decides it while it is measured.
        world.start(duration_hours=8760, stop_rule="fixed")
        done = 0
        for size in SIZES:
            spent = fill(world, done, size, rng)
            done = size
            costs = " | ".join(f"{ms:.0f} ms" for ms in read_costs(world))
            added = f"{statistics.median(spent):.2f} ms ({np.percentile(spent, 95):.2f})"
            megabytes = path.stat().st_size / 1e6
            rated = world.counts("feedback")
            print(f"| {size} | {rated} | {added} | {costs} | {megabytes:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
