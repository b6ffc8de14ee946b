import numpy as np
import pytest
from tests.experiment.support import PMF42, TUNED

from ragtune_mcp.core.errors import Conflict
from ragtune_mcp.core.experiment.ramp import RampOutcome


@pytest.fixture
def won(world):
    """A world whose test was just won; the winner serves as champion."""
    world.start(duration_hours=24)
    world.rate_by_arm(120, 3, 5)
    world.clock.forward(hours=25)
    assert world.report.results().recommendation == "deploy_test_model"
    world.champion = TUNED
    return world


def test_the_ramp_gives_the_winner_four_fifths_of_new_units(won):
    trial = won.ramp.begin(won.trials.latest().test_id)
    assert (trial.status, trial.split, trial.ramp_phase) == ("ramping", 0.8, 1)
    arms = [won.arm_of(won.service.search(f"new {i}").query_id) for i in range(400)]
    assert arms.count("test") == pytest.approx(320, abs=30)
    assert won.report.results().status == "completed"


def test_nobody_moves_back_to_the_baseline(won):
    trial = won.trials.latest()
    rows = won.db.connection.execute("SELECT query, assigned FROM exposures").fetchall()
    won.ramp.begin(trial.test_id)
    for row in rows:
        again = won.arm_of(won.service.search(row["query"]).query_id)
        assert again == "test" or row["assigned"] == "baseline"


def test_a_quiet_day_completes_the_ramp_and_everyone_gets_the_winner(won):
    won.ramp.begin(won.trials.latest().test_id)
    won.rate_by_arm(60, 4, 4, prefix="ramp")
    assert won.ramp.check() is None
    won.clock.forward(hours=24)
    end = won.ramp.check()
    assert (end.outcome, end.trial.status) == (RampOutcome.COMPLETE, "completed")
    assert won.ramp.check() is None
    assert won.service.search("anything").hits[0].id == "tuned-0"


def test_harm_during_the_ramp_asks_for_the_roll_back_once(won):
    won.ramp.begin(won.trials.latest().test_id)
    won.rate_by_arm(150, 5, 2, prefix="ramp")
    end = won.ramp.check()
    assert end.outcome is RampOutcome.ROLL_BACK
    assert "harm on response_quality" in end.reasons[0]
    assert won.trials.active() is None
    assert won.ramp.check() is None
    log = won.db.connection.execute("SELECT recommendation FROM decisions ORDER BY seq").fetchall()
    assert [row[0] for row in log][-3:] == ["deploy_test_model", "ramp", "roll_back"]


def test_a_ramp_ends_only_as_the_caller_is_ready_for(won):
    won.ramp.begin(won.trials.latest().test_id)
    assert won.ramp.due() is None
    won.rate_by_arm(150, 5, 2, prefix="ramp")
    assert won.ramp.check(RampOutcome.COMPLETE) is None
    assert won.ramp.due().outcome is RampOutcome.ROLL_BACK
    assert won.ramp.check(RampOutcome.ROLL_BACK).outcome is RampOutcome.ROLL_BACK


def test_a_version_that_breaks_during_the_ramp_is_rolled_back(won):
    won.ramp.begin(won.trials.latest().test_id)
    won.broken.add(TUNED)
    for i in range(8):
        assert won.service.search(f"ramp {i}").hits[0].id == "base-0"
    end = won.ramp.check()
    assert end.outcome is RampOutcome.ROLL_BACK
    assert "circuit breaker" in end.reasons[0]


def test_the_ramp_leaves_the_decided_tests_numbers_alone(won):
    before = won.report.results()
    won.ramp.begin(before.test_id)
    won.rate_by_arm(100, 5, 1, prefix="ramp")
    repeated = won.service.search("q 1")
    won.outcomes.record(repeated.query_id, 1)
    after = won.report.results()
    assert (after.recommendation, after.p_value, after.p_anytime) == (
        before.recommendation, before.p_value, before.p_anytime
    )  # fmt: skip
    assert (after.baseline_metrics, after.test_metrics) == (before.baseline_metrics, before.test_metrics)


def test_units_whose_variant_the_test_revealed_do_not_count_in_the_ramp(won):
    won.ramp.begin(won.trials.latest().test_id)
    for i in range(120):
        served = won.service.search(f"q {i}", k=1)
        won.outcomes.record(
            served.query_id, 1 if won.arm_of(served.query_id) == "test" else 5, rater="second"
        )
    assert won.ramp.check() is None


def test_only_a_won_test_is_ramped_and_only_once(won):
    test_id = won.trials.latest().test_id
    won.ramp.begin(test_id)
    with pytest.raises(Conflict, match="ramped before"):
        won.ramp.begin(test_id)
    won.trials.stop(test_id, "rolled back by hand")
    assert won.trials.get(test_id).status == "completed"
    running = won.start()
    with pytest.raises(Conflict, match="not won"):
        won.ramp.begin(running.test_id)


def test_a_test_cannot_start_while_a_ramp_runs(won):
    won.ramp.begin(won.trials.latest().test_id)
    with pytest.raises(Conflict, match="ramping"):
        won.start()


@pytest.fixture
def interleaved(world):
    """A world whose interleaved test was just won."""
    world.rankings = {"base": list("abcde"), "tuned": list("edcba")}
    world.start(mode="interleave", duration_hours=24)
    for i in range(120):
        served = world.service.search(f"question {i}", k=5)
        world.outcomes.record(
            served.query_id, document_ratings={h.id: 1 + "abcde".index(h.id) for h in served.hits}
        )
    world.clock.forward(hours=25)
    assert world.report.results().recommendation == "deploy_test_model"
    return world


def test_an_interleaved_win_is_ramped_by_splitting(interleaved):
    interleaved.ramp.begin(interleaved.trials.latest().test_id)
    served = [interleaved.service.search(f"question {i}", k=1) for i in range(100)]
    assert {s.hits[0].id for s in served} == {"a", "e"}
    for s in served:
        interleaved.outcomes.record(s.query_id, 5 if interleaved.arm_of(s.query_id) == "baseline" else 1)
    assert interleaved.ramp.check().outcome is RampOutcome.ROLL_BACK


def test_ratings_of_lists_shown_before_the_ramp_do_not_count_in_it(interleaved):
    before = interleaved.db.connection.execute("SELECT query_id, query FROM exposures").fetchall()
    interleaved.ramp.begin(interleaved.trials.latest().test_id)
    for row in before:
        again = interleaved.service.search(row["query"], k=1)
        in_test = interleaved.arm_of(again.query_id) == "test"
        assert interleaved.outcomes.record(row["query_id"], 1 if in_test else 5).is_late
    assert interleaved.ramp.check() is None


def test_a_harmless_ramp_is_rarely_rolled_back(won):
    won.ramp.begin(won.trials.latest().test_id)
    rng = np.random.default_rng(1)
    for i in range(200):
        served = won.service.search(f"ramp {i}")
        won.outcomes.record(served.query_id, int(rng.choice(5, p=PMF42)) + 1)
        assert won.ramp.check() is None


def test_a_ramp_is_due_only_for_the_versions_of_the_latest_won_test(won):
    test_id = won.trials.latest().test_id
    assert won.ramp.due_for("base", TUNED) == test_id
    assert won.ramp.due_for(TUNED, "base") == won.ramp.due_for("base", "other") == ""
    won.ramp.begin(test_id)
    assert won.ramp.due_for("base", TUNED) == ""


def test_no_ramp_is_due_without_any_test(world):
    assert world.ramp.due_for("base", TUNED) == ""


def test_the_results_tell_how_the_ramp_went(won):
    test_id = won.trials.latest().test_id
    won.ramp.begin(test_id)
    assert "80%" in won.report.results().next_step
    assert won.report.results().need == {}
    won.clock.forward(hours=25)
    won.ramp.check()
    assert "ramp is over" in won.report.results().next_step
