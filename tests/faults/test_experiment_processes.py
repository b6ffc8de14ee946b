"""Tests under fire: killed processes, restarts, two servers at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.experiment.support import World

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import UnknownId
from ragtune_mcp.core.experiment.live import LiveEvidence

CHILD = Path(__file__).with_name("experiment_child.py")


@pytest.fixture
def world(tmp_path):
    db = Database(tmp_path / "ragtune.db")
    yield World(db)
    db.close()


def child(world, *arguments, hash_seed="1"):
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(world.db.path), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(CHILD.parents[2])},
    )


def killed(process):
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_a_server_killed_between_exposure_and_answer_leaves_a_counted_exposure(world):
    world.start()
    assert killed(child(world, "die-searching", "question"))
    (row,) = world.db.connection.execute("SELECT * FROM exposures").fetchall()
    assert (row["query"], row["is_first"]) == ("question", 1)
    assert world.counts("answers") == 0
    reading = world.report.results()
    assert reading.baseline_metrics["n_exposed"] + reading.test_metrics["n_exposed"] == 1
    with pytest.raises(UnknownId):
        world.outcomes.record(row["query_id"], 5)
    again = world.service.search("question")
    assert world.arm_of(again.query_id) == row["assigned"]
    after = world.report.results()
    assert after.baseline_metrics["n_exposed"] + after.test_metrics["n_exposed"] == 1


def test_a_server_killed_while_it_stores_feedback_leaves_nothing_and_the_call_can_be_repeated(world):
    world.start()
    served = world.service.search("question")
    assert killed(child(world, "die-recording", served.query_id))
    assert world.counts("outcomes") == world.counts("feedback") == 0
    assert not world.outcomes.record(served.query_id, 5).is_duplicate


def test_a_restart_with_another_hash_seed_keeps_every_arm_the_salt_and_the_phase(world):
    trial = world.start(split=0.3)
    printed = [child(world, "arms", 40, hash_seed=seed).communicate()[0] for seed in ("1", "99")]
    assert printed[0] == printed[1]
    assert "test" in printed[0]
    assert world.trials.get(trial.test_id) == trial
    assert world.report.results().baseline_metrics["n_exposed"] < 40


def test_two_servers_on_one_workspace_lose_and_double_nothing(world):
    trial = world.start()
    servers = [child(world, "work", name, 90) for name in ("left", "right")]
    for server in servers:
        assert server.stdout.readline() == "ready\n"
    for server in servers:
        server.stdin.write("\n")
        server.stdin.flush()
    for server in servers:
        server.communicate(timeout=120)
        assert server.returncode == 0
    assert world.counts("exposures") == world.counts("answers") == world.counts("outcomes") == 180
    units = world.db.connection.execute("SELECT count(*), sum(is_first) FROM exposures").fetchone()
    assert tuple(units) == (180, 150)  # 30 queries were asked by both
    arms = world.db.connection.execute(
        "SELECT count(DISTINCT assigned) FROM exposures GROUP BY unit"
    ).fetchall()
    assert all(count == 1 for (count,) in arms)
    kept = world.report.evidence(trial.test_id)
    world.db.connection.execute("DELETE FROM trial_checkpoints")
    with world.db.transaction():
        fresh = LiveEvidence(world.db).advance(world.trials.get(trial.test_id), None)
    assert [arm.rated_units for arm in kept.arms.values()] == [arm.rated_units for arm in fresh.arms.values()]
    for name in kept.metrics:
        for ours, theirs in zip(kept.metrics[name].totals(), fresh.metrics[name].totals(), strict=True):
            assert ours == pytest.approx(theirs)
        assert kept.metrics[name].process.p_anytime == pytest.approx(fresh.metrics[name].process.p_anytime)


def test_a_clock_set_back_changes_neither_the_order_nor_the_end(world):
    world.start(duration_hours=24)
    values = [5, 4, 1, 2]
    for i, value in enumerate(values):
        world.rate(f"question {i}", value)
        world.clock.forward(hours=-5)
    rows = world.db.connection.execute("SELECT value, at FROM outcomes ORDER BY seq").fetchall()
    assert [row["value"] for row in rows] == values
    assert rows[0]["at"] > rows[-1]["at"]
    world.clock.forward(hours=200)
    ended = world.report.results()
    world.clock.forward(hours=-200)
    assert world.report.results() == ended
    assert ended.status == "completed"


def test_a_lost_or_outdated_checkpoint_costs_time_and_nothing_else(world, monkeypatch):
    monkeypatch.setattr("ragtune_mcp.core.experiment.live._CHECKPOINT_EVENTS", 10)
    world.start()
    world.rate_by_arm(30, 3, 4)
    before = world.report.results()
    old_format = "UPDATE trial_checkpoints SET state = json_set(state, '$.format', 0, '$.arms', 'gone')"
    for damage in ("DELETE FROM trial_checkpoints", old_format):
        world.report.results()
        world.db.connection.execute(damage)
        assert World(world.db, clock=world.clock).report.results() == before
