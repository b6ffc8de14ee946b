"""A second process on a workspace's database: `python experiment_child.py DATABASE COMMAND [ARGUMENTS]`.

`die-searching QUERY` is killed while the variant answers, `die-recording QUERY_ID` while feedback is stored,
`work NAME N` searches, rates and reads N times, `arms N` prints the arm of N queries.
"""

import os
import signal
import sys
from pathlib import Path

from tests.experiment.support import World

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.experiment.outcomes import Outcomes


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_searching(world, query):
    world.service._search_version = die
    world.service.search(query)


def die_recording(world, query_id):
    Outcomes(world.db, world.trials, publish=die, clock=world.clock).record(query_id, 5)


def work(world, name, n):
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for i in range(int(n)):
        served = world.service.search(f"{name} {i}" if i % 3 else f"shared {i}")
        world.outcomes.record(served.query_id, 3 + i % 3, rater=name)
        world.report.results()


def arms(world, n):
    seen = [world.arm_of(world.service.search(f"question {i}").query_id) for i in range(int(n))]
    sys.stdout.write(" ".join(seen))


if __name__ == "__main__":
    database, command, *arguments = sys.argv[1:]
    commands = {"die-searching": die_searching, "die-recording": die_recording, "work": work, "arms": arms}
    commands[command](World(Database(Path(database))), *arguments)
