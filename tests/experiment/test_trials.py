from datetime import timedelta

import pytest
from tests.experiment.support import BASE, START, TUNED, World

from ragtune_mcp.core.errors import Conflict, DigestMismatch, GateBlocked, InvalidInput, UnknownId
from ragtune_mcp.core.experiment.metrics import QUALITY, RELEVANCE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": 0.0}, "traffic_split is 0.0"),
        ({"split": 1.0}, "traffic_split is 1.0"),
        ({"split": 1.5}, "traffic_split is 1.5"),
        ({"split": float("nan")}, "traffic_split is nan"),
        ({"split": True}, "traffic_split is True"),
        ({"duration_hours": 0.0}, "duration_hours is 0.0"),
        ({"duration_hours": -3}, "duration_hours is -3"),
        ({"duration_hours": float("inf")}, "duration_hours is inf"),
        ({"metrics": ("clicks",)}, "'clicks'"),
        ({"metrics": ()}, "empty"),
        ({"mode": "both"}, "mode is 'both'"),
        ({"stop_rule": "peek"}, "stop_rule is 'peek'"),
        ({"alpha": 0.5}, "0.5"),
    ],
)
def test_a_plan_out_of_range_is_refused_with_its_value_and_nothing_is_stored(world, options, words):
    with pytest.raises(InvalidInput) as refused:
        world.start(**options)
    assert words in refused.value.message
    assert world.counts("trials") == world.counts("trial_phases") == 0


def test_a_version_is_not_tested_against_itself(world):
    with pytest.raises(InvalidInput, match="same version 'base'"):
        world.trials.start(BASE, BASE)


def test_a_blocked_version_needs_a_reason_which_is_kept(world):
    gate = {"verdict": "block", "reasons": ["nDCG@10 fell by .05"]}
    with pytest.raises(GateBlocked, match=r"nDCG@10 fell by \.05"):
        world.start(gate=gate)
    trial = world.start(gate=gate, force_reason="the old model is broken")
    assert (trial.gate["verdict"], trial.force_reason) == ("block", "the old model is broken")


def test_a_version_that_fails_its_check_is_not_tested(world):
    def verify(version):
        if version == TUNED:
            raise DigestMismatch(f"model.safetensors of {version} changed")

    with pytest.raises(DigestMismatch):
        world.start(verify=verify)
    assert world.counts("trials") == 0


def test_a_second_test_is_refused_with_the_id_of_the_running_one(world):
    first = world.start()
    with pytest.raises(Conflict, match=first.test_id) as refused:
        world.start()
    assert refused.value.code == "test_running"
    world.trials.stop(first.test_id, "enough")
    assert world.start().test_id != first.test_id


def test_a_test_ends_at_its_planned_end_when_next_looked_at(world):
    trial = world.start(duration_hours=24)
    world.clock.forward(hours=23.9)
    assert world.trials.active() == trial
    world.clock.forward(hours=0.2)
    assert world.trials.active() is None
    ended = world.trials.get(trial.test_id)
    assert (ended.status, ended.end_reason, ended.ended_at) == ("completed", "planned_end", trial.ends_at)


def test_a_clock_set_back_never_un_ends_a_test(world):
    trial = world.start(duration_hours=24)
    world.clock.forward(hours=25)
    assert world.trials.active() is None
    world.clock.now = START
    assert world.trials.active() is None
    assert world.trials.get(trial.test_id).ended_as_planned


def test_a_stopped_test_keeps_its_reason_and_a_second_stop_changes_nothing(world):
    trial = world.start()
    stopped = world.trials.stop(trial.test_id, "wrong model")
    assert (stopped.status, stopped.end_reason) == ("stopped", "wrong model")
    world.clock.forward(hours=300)
    assert world.trials.stop(trial.test_id, "again") == stopped
    with pytest.raises(InvalidInput):
        world.trials.stop(trial.test_id, "  ")


def test_unknown_tests_are_named(world):
    for call in (
        lambda: world.trials.get("ab_1"),
        lambda: world.trials.stop("ab_1", "x"),
        world.trials.latest,
    ):
        with pytest.raises(UnknownId) as refused:
            call()
        assert refused.value.code == "unknown_test"


def test_a_changed_split_begins_a_phase_and_the_same_split_does_not(world):
    trial = world.start(split=0.2)
    assert world.trials.set_split(trial.test_id, 0.2).phase == 0
    changed = world.trials.set_split(trial.test_id, 0.5)
    assert (changed.phase, changed.split) == (1, 0.5)
    with pytest.raises(InvalidInput):
        world.trials.set_split(trial.test_id, 1.0)
    world.trials.stop(trial.test_id, "done")
    with pytest.raises(Conflict):
        world.trials.set_split(trial.test_id, 0.3)


def test_another_process_sees_the_same_test(world):
    trial = world.start()
    assert World(world.db).trials.get(trial.test_id) == trial


def test_the_alpha_is_split_between_the_early_looks_and_the_final_one(world):
    hybrid = world.start(alpha=0.05)
    assert (hybrid.early_alpha, hybrid.final_alpha) == pytest.approx((0.01, 0.04))
    world.trials.stop(hybrid.test_id, "next")
    anytime = world.start(stop_rule="anytime")
    assert (anytime.early_alpha, anytime.final_alpha) == (0.05, 0.0)
    world.trials.stop(anytime.test_id, "next")
    fixed = world.start(stop_rule="fixed", alpha=0.1)
    assert (fixed.early_alpha, fixed.final_alpha) == (0.0, 0.1)


def test_a_short_test_warns_of_what_it_cannot_find_and_a_long_one_does_not(world):
    short = world.start(duration_hours=24)
    assert short.minimum_detectable_effect == pytest.approx(
        1.25, abs=0.01
    )  # 20 rated queries a day, 10 an arm
    assert "1.25" in short.warnings[0]
    world.trials.stop(short.test_id, "too short")
    assert world.start(duration_hours=24 * 14).warnings == ()


def test_the_detectable_effect_follows_the_traffic_in_the_log(world):
    for i in range(120):
        served = world.service.search(f"query {i}")
        world.outcomes.record(served.query_id, 4 + i % 2)
        world.clock.forward(hours=0.4)
    busy = world.trials.traffic(QUALITY)
    assert busy.is_measured
    assert busy.rated_per_day == pytest.approx(60, rel=0.02)
    assert busy.sd == pytest.approx(0.5)
    assert not world.trials.traffic(RELEVANCE).is_measured  # nobody rated documents
    assert world.start(duration_hours=48).minimum_detectable_effect == pytest.approx(0.256, abs=0.01)


def test_one_busy_hour_does_not_count_as_a_busy_day(world):
    for i in range(60):
        world.rate(f"query {i}", 4)
    world.clock.forward(hours=1)
    assert world.trials.traffic(QUALITY).rated_per_day == 60


def test_the_grace_for_late_feedback_is_a_tenth_of_the_test_and_at_most_a_day(world):
    trial = world.start(duration_hours=24)
    assert trial.grace_ends_at - trial.ends_at == timedelta(hours=2.4)
    world.trials.stop(trial.test_id, "next")
    trial = world.start(duration_hours=24 * 30)
    assert trial.grace_ends_at - trial.ends_at == timedelta(hours=24)
