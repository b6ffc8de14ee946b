"""A small version of scripts/bench/ab_operating_characteristics.py, through the same service path."""

import math

import numpy as np
import pytest
from scripts.bench.ab_operating_characteristics import SCENARIOS, simulate
from tests.experiment.support import stream

RATINGS = 80


def wrong_share_limit(streams):
    """0.05 plus three standard errors."""
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / streams)


@pytest.mark.parametrize(
    ("name", "streams"), [("aa", 200), ("aa-drift", 20), ("aa-split", 20), ("aa-change", 20)]
)
def test_equal_models_are_rarely_told_apart_although_read_after_every_rating(name, streams, tmp_path):
    _, outcomes, used = simulate(SCENARIOS[name], range(streams), RATINGS, 5, tmp_path)
    assert sum(outcomes.values()) == streams
    assert (outcomes["deploy"] + outcomes["worse"]) / streams <= wrong_share_limit(streams)
    assert outcomes["stop_investigate"] == 0
    assert used > 0.8 * RATINGS * streams


def test_the_split_changes_in_the_middle_of_a_stream_of_any_length(world):
    scenario = SCENARIOS["aa-change"]
    world.start(duration_hours=240.0, **scenario.start)
    stream(world, 20, scenario.pmfs, np.random.default_rng(1), hours=240.0, **scenario.stream)
    phases = world.db.connection.execute("SELECT propensity, count(*) FROM exposures GROUP BY phase")
    assert [tuple(row) for row in phases] == [(0.2, 10), (0.5, 10)]


def test_a_worse_model_is_never_deployed_and_often_stopped(tmp_path):
    _, outcomes, _ = simulate(SCENARIOS["harm"], range(30), RATINGS, 5, tmp_path)
    assert outcomes["deploy"] == 0
    assert outcomes["worse"] / 30 > 0.15


def test_a_better_model_is_mostly_deployed(tmp_path):
    _, outcomes, _ = simulate(SCENARIOS["win-tilted"], range(20), 300, 5, tmp_path)
    assert outcomes["deploy"] >= 16
    assert outcomes["worse"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aa", "aa-drift", "aa-split", "aa-change"])
def test_long_streams_hold_the_level(name, tmp_path):
    _, outcomes, _ = simulate(SCENARIOS[name], range(200), 300, 1, tmp_path)
    assert (outcomes["deploy"] + outcomes["worse"]) / 200 <= wrong_share_limit(200)


@pytest.mark.slow
def test_long_streams_find_the_effect_and_never_deploy_harm(tmp_path):
    _, outcomes, _ = simulate(SCENARIOS["win"], range(200), 300, 1, tmp_path)
    # The reference's power and three standard errors.
    assert outcomes["deploy"] / 200 == pytest.approx(0.914, abs=3 * math.sqrt(0.914 * 0.086 / 200))
    _, outcomes, _ = simulate(SCENARIOS["harm"], range(200), 300, 1, tmp_path)
    assert outcomes["deploy"] == 0
