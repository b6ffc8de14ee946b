import json
import math
import subprocess
import sys

import numpy as np
import pytest
from tests.experiment.support import PMF38, PMF42, World, stream

from ragtune_mcp.core.experiment.decision import Guard
from ragtune_mcp.core.experiment.findings import findings_of
from ragtune_mcp.core.experiment.report import summary


def decisions(world):
    return world.db.connection.execute("SELECT * FROM decisions ORDER BY seq").fetchall()


def expose_only(world, n, keep=lambda arm, i: True, split=0.5):
    """n searches of the running test; those not kept are lost from the log, as a broken logger would."""
    for i in range(n):
        served = world.service.search(f"lost {i}", k=1)
        if not keep(world.arm_of(served.query_id), i):
            with world.db.transaction() as conn:
                conn.execute("DELETE FROM answers WHERE exposure_seq = (SELECT max(seq) FROM exposures)")
                conn.execute("DELETE FROM exposures WHERE query_id = ?", (served.query_id,))


def test_a_fresh_test_says_continue_and_how_much_is_missing(world):
    trial = world.start()
    reading = world.report.results()
    assert (reading.test_id, reading.status, reading.recommendation) == (trial.test_id, "active", "continue")
    assert (reading.p_value, reading.p_anytime, reading.p_value_valid) == (None, 1.0, False)
    assert reading.statistical_significance is False
    assert reading.effect.difference is None
    assert reading.effect.ci95_anytime == (-4, 4)
    assert reading.need == {"baseline": 99, "test": 99}
    assert "240.0 h left" in reading.reasons[0]


@pytest.mark.parametrize("rated", [0, 1, 2])
def test_empty_and_nearly_empty_tests_end_as_insufficient_without_nan(world, rated):
    world.start(duration_hours=24)
    for i in range(rated):
        world.rate(f"question {i}", 5)
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert (reading.status, reading.recommendation) == ("completed", "inconclusive")
    assert "insufficient_data" in reading.reasons[0]
    assert "NaN" not in json.dumps(
        [reading.effect.difference, reading.p_value, dict(reading.srm), reading.health]
    )


def test_equal_constant_ratings_are_p_one_and_different_ones_have_no_p(world):
    world.start(duration_hours=24)
    for i in range(80):
        world.rate(f"question {i}", 4)
    assert world.report.results().p_value == 1.0
    assert world.report.results().p_anytime > 0.5
    world.trials.stop(world.trials.latest().test_id, "next")
    world.start(duration_hours=24)
    for i in range(20):
        served = world.service.search(f"again {i}")
        world.outcomes.record(served.query_id, 5 if world.arm_of(served.query_id) == "test" else 4)
    reading = world.report.results()
    assert reading.p_value is None
    assert 0 < reading.p_anytime < 1


def test_a_better_model_is_deployed_before_the_end_but_not_before_a_day(world):
    world.start()
    world.rate_by_arm(120, 3, 5)
    first_day = world.report.results()
    assert first_day.p_anytime <= 0.01
    assert first_day.statistical_significance
    assert first_day.recommendation == "continue"
    world.clock.forward(hours=24)
    reading = world.report.results()
    assert (reading.recommendation, reading.status) == ("deploy_test_model", "completed")
    assert reading.next_step == "promote_model(version='tuned')"
    assert reading.p_value_valid is False
    assert world.trials.active() is None


def test_a_worse_model_is_stopped_at_once(world):
    world.start()
    world.rate_by_arm(60, 5, 2)
    reading = world.report.results()
    assert (reading.recommendation, reading.status) == ("keep_baseline", "completed")
    assert "harm stop" in reading.reasons[0]


def test_the_reasons_say_why_there_is_no_p_value(world):
    world.start()
    assert any("no rated unit" in reason for reason in world.report.results().reasons)
    for i in range(20):
        served = world.service.search(f"question {i}")
        world.outcomes.record(served.query_id, 5 if world.arm_of(served.query_id) == "test" else 4)
    reading = world.report.results()
    assert reading.p_value is None
    assert "no p_value: no variance in either arm" in reading.reasons


def test_the_watch_stops_a_harmful_test_without_anyone_asking(world):
    world.start()
    world.rate_by_arm(60, 5, 2)
    assert world.report.monitor()[0].status == "active"  # nothing is settled yet
    world.clock.forward(minutes=11)
    assert world.report.monitor()[0].recommendation == "keep_baseline"
    assert world.report.monitor() == ()


def test_the_watch_leaves_the_final_look_until_late_feedback_cannot_come(world):
    world.start(duration_hours=24)
    world.rate_by_arm(80, 4, 5)
    world.clock.forward(hours=25)
    assert world.report.monitor() == ()
    world.clock.forward(hours=2)
    assert world.report.monitor()[0].recommendation == "deploy_test_model"


def test_the_watch_decides_an_ended_test_also_after_the_next_one_has_started(world):
    first = world.start(duration_hours=24)
    world.rate_by_arm(80, 4, 5)
    world.clock.forward(hours=25)
    second = world.start()
    world.clock.forward(hours=2)
    readings = world.report.monitor()
    assert [(r.test_id, r.recommendation) for r in readings] == [
        (first.test_id, "deploy_test_model"),
        (second.test_id, "continue"),
    ]


def test_the_one_final_look_uses_the_fixed_horizon_test(world):
    world.start(duration_hours=24)
    rng = np.random.default_rng(1)
    for i in range(300):
        served = world.service.search(f"question {i}")
        pmf = PMF42 if world.arm_of(served.query_id) == "test" else PMF38
        world.outcomes.record(served.query_id, int(rng.choice(5, p=pmf)) + 1)
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert reading.p_value_valid
    assert 0.01 < reading.p_anytime
    assert reading.p_value <= 0.04
    assert reading.recommendation == "deploy_test_model"
    assert reading.statistical_significance


def test_a_final_decision_is_latched_whatever_comes_later(world):
    trial = world.start(duration_hours=24)
    world.rate_by_arm(80, 4, 5)
    world.clock.forward(hours=25)
    first = world.report.results()
    world.db.connection.execute("UPDATE outcomes SET value = 1 WHERE kind = 'answer'")
    fresh = World(world.db, clock=world.clock)
    fresh.db.connection.execute("DELETE FROM trial_checkpoints")
    later = fresh.report.results(trial.test_id)
    assert (later.recommendation, later.reasons) == (first.recommendation, first.reasons)
    assert sum(row["is_final"] for row in decisions(world)) == 1


def test_the_decision_log_gets_a_row_only_when_the_recommendation_changes(world):
    world.start()
    for _ in range(5):
        world.report.results()
    world.rate_by_arm(120, 3, 5)
    world.report.results()
    world.clock.forward(hours=24)
    world.report.results()
    world.report.results()
    assert [row["recommendation"] for row in decisions(world)] == ["continue", "deploy_test_model"]
    assert decisions(world)[1]["n"] == 120


def test_reading_twice_gives_the_same_answer(world):
    world.start()
    world.rate_by_arm(50, 3, 4)
    assert (
        world.report.results()
        == world.report.results()
        == World(world.db, clock=world.clock).report.results()
    )


def test_a_stopped_test_does_not_use_the_fixed_horizon_p(world):
    trial = world.start()
    world.rate_by_arm(75, 3, 4)
    world.trials.stop(trial.test_id, "impatient")
    reading = world.report.results()
    assert reading.status == "stopped"
    assert reading.p_value < 0.001
    assert not reading.p_value_valid
    assert reading.recommendation == ("deploy_test_model" if reading.p_anytime <= 0.01 else "inconclusive")


def test_a_better_model_that_is_rated_more_often_is_not_deployed(world):
    world.start(duration_hours=48)
    for i in range(400):
        served = world.service.search(f"question {i}")
        if world.arm_of(served.query_id) == "test":
            world.outcomes.record(served.query_id, 4 + i % 2)
        elif i % 3 == 0:
            world.outcomes.record(served.query_id, 3)
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert (reading.recommendation, reading.status) == ("continue", "active")
    assert "rated unequally often" in reading.reasons[0]
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert reading.p_anytime <= 0.01
    assert reading.recommendation == "inconclusive"
    assert "rated unequally often" in reading.reasons[0]


def test_equal_models_end_as_equivalent(world):
    world.start(duration_hours=24)
    rng = np.random.default_rng(2)
    for i in range(800):
        world.rate(f"question {i}", int(rng.choice(5, p=PMF38)) + 1)
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert reading.recommendation == "keep_baseline"
    assert "equivalent" in reading.reasons[0]


def test_lost_test_exposures_raise_the_sample_ratio_alarm(world):
    world.start()
    rng = np.random.default_rng(7)
    expose_only(world, 1200, keep=lambda arm, i: arm == "baseline" or rng.random() > 0.3)
    reading = world.report.results()
    assert reading.srm["alarm"]
    assert reading.recommendation == "stop_investigate"
    assert reading.status == "active"


def test_a_sound_assignment_raises_no_alarm(world):
    world.start(split=0.2)
    expose_only(world, 400)
    assert not world.report.results().srm["alarm"]


def test_a_reused_salt_is_investigated(world):
    first = world.start(salt="fixed")
    world.trials.stop(first.test_id, "next")
    world.start(salt="fixed")
    reading = world.report.results()
    assert reading.recommendation == "stop_investigate"
    assert "salt" in reading.reasons[0]


def test_units_seen_in_both_arms_are_investigated(world):
    world.start()
    expose_only(world, 20)
    world.service.search("lost 3")
    world.db.connection.execute(
        "UPDATE exposures SET assigned = CASE assigned WHEN 'test' THEN 'baseline' ELSE 'test' END"
        " WHERE is_first = 0"
    )
    reading = world.report.results()
    assert reading.recommendation == "stop_investigate"
    assert "both arms" in reading.reasons[0]


def test_a_harmed_guardrail_stops_a_test_that_wins_on_its_primary_metric(world):
    world.start(metrics=("response_quality", "user_satisfaction"))
    for i in range(80):
        served = world.service.search(f"question {i}")
        in_test = world.arm_of(served.query_id) == "test"
        world.outcomes.record(served.query_id, 5 if in_test else 4, user_satisfaction=1 if in_test else 5)
    reading = world.report.results()
    assert reading.recommendation == "keep_baseline"
    assert "user_satisfaction is harmed" in reading.reasons[0]
    assert reading.guardrails["user_satisfaction"] == "harmed"


def test_a_guardrail_passes_only_when_shown_to_be_no_worse(world):
    world.start(metrics=("response_quality", "user_satisfaction"))
    rng = np.random.default_rng(1)
    for i in range(70):
        served = world.service.search(f"question {i}")
        world.outcomes.record(served.query_id, 4, user_satisfaction=int(rng.choice(5, p=PMF38)) + 1)
    trial = world.trials.latest()
    assert (
        findings_of(trial, world.report.evidence(trial.test_id)).guardrails["user_satisfaction"]
        is Guard.UNCLEAR
    )
    for i in range(70, 700):
        served = world.service.search(f"question {i}")
        world.outcomes.record(served.query_id, 4, user_satisfaction=int(rng.choice(5, p=PMF38)) + 1)
    assert (
        findings_of(trial, world.report.evidence(trial.test_id)).guardrails["user_satisfaction"] is Guard.OK
    )


def test_a_much_slower_version_fails_the_latency_guardrail(world):
    world.start()
    now = [0.0]
    world.service._timer = lambda: now[0]
    answer = world.answer
    rng = np.random.default_rng(1)

    def slow(version, query, k):
        now[0] += rng.lognormal(math.log(0.04 if version == "tuned" else 0.01), 0.2)
        return answer(version, query, k)

    world.service._search_version = slow
    expose_only(world, 400)
    reading = world.report.results()
    assert reading.guardrails["latency_p95"] == "failed"
    baseline, test = reading.health["latency_p95_ms"]
    assert test / baseline == pytest.approx(4, rel=0.25)


def test_secondary_metrics_are_corrected_and_never_decide(world):
    world.start(metrics=("response_quality", "relevance_score", "user_satisfaction"))
    rng = np.random.default_rng(3)
    for i in range(120):
        served = world.service.search(f"question {i}", k=2)
        in_test = world.arm_of(served.query_id) == "test"
        document = {served.hits[0].id: int(rng.integers(3, 6)) if in_test else int(rng.integers(1, 4))}
        world.outcomes.record(
            served.query_id, int(rng.choice(5, p=PMF38)) + 1, document, int(rng.integers(3, 6))
        )
    world.clock.forward(hours=30)
    reading = world.report.results()
    assert reading.secondary["relevance_score"] < 0.001
    assert reading.secondary["user_satisfaction"] >= reading.secondary["relevance_score"]
    assert reading.recommendation == "continue"


def test_unequal_feedback_rates_are_warned_of(world):
    world.start()
    for i in range(300):
        served = world.service.search(f"question {i}")
        if world.arm_of(served.query_id) == "baseline" or i % 2:
            world.outcomes.record(served.query_id, 4)
    assert "feedback rates differ" in world.report.results().warnings[0]


def test_an_effect_that_fades_is_warned_of_at_the_end(world):
    world.start(duration_hours=24)
    rng = np.random.default_rng(1)
    for i in range(200):
        served = world.service.search(f"question {i}")
        lift = 1 if world.arm_of(served.query_id) == "test" and i < 100 else 0
        world.outcomes.record(served.query_id, int(rng.integers(2, 5)) + lift)
    assert not world.report.results().warnings
    world.clock.forward(hours=25)
    assert any("between the halves" in warning for warning in world.report.results().warnings)


def test_interleaving_finds_the_better_ranking_from_document_ratings(world):
    world.rankings = {"base": list("abcde"), "tuned": list("edcba")}
    world.start(mode="interleave")
    for i in range(120):
        served = world.service.search(f"question {i}", k=5)
        world.outcomes.record(
            served.query_id, document_ratings={h.id: 1 + "abcde".index(h.id) for h in served.hits}
        )
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert reading.recommendation == "deploy_test_model"
    assert reading.effect.metric == "interleaving_credit"
    low, high = reading.effect.ci95_anytime
    assert 0 < low < reading.effect.difference <= high


def test_interleaving_without_document_feedback_learns_nothing(world):
    world.rankings = {"base": list("abcde"), "tuned": list("edcba")}
    world.start(mode="interleave", duration_hours=24)
    for i in range(60):
        served = world.service.search(f"question {i}", k=5)
        world.outcomes.record(served.query_id, 5)
    world.clock.forward(hours=25)
    reading = world.report.results()
    assert reading.recommendation == "inconclusive"
    assert reading.p_anytime == 1.0


def test_helpful_marks_stand_in_for_ratings_in_interleaving(world):
    world.rankings = {"base": list("abcde"), "tuned": list("edcba")}
    world.start(mode="interleave")
    for i in range(150):
        served = world.service.search(f"question {i}", k=5)
        marked = [h.id for h in served.hits if h.id in "de"]
        if marked:
            world.outcomes.record(served.query_id, helpful_ids=marked)
    assert world.report.results().p_anytime < 0.01


def test_the_effect_survives_a_split_that_changes_with_the_trend(world):
    """10 -> 50 % while ratings rise for both arms: a pooled comparison would call the test better."""
    trial = world.start(split=0.1, duration_hours=24)
    rng = np.random.default_rng(5)
    for i in range(600):
        if i == 300:
            world.trials.set_split(trial.test_id, 0.5)
        served = world.service.search(f"question {i}")
        world.outcomes.record(served.query_id, int(rng.integers(1, 4)) + 2 * (i >= 300))
    reading = world.report.results()
    raw = reading.test_metrics["avg_response_quality"] - reading.baseline_metrics["avg_response_quality"]
    assert raw > 0.5
    assert abs(reading.effect.difference) < 0.25
    assert reading.p_anytime > 0.01


def test_a_summary_for_the_project_memory_is_plain_json(world):
    trial = world.start(gate={"verdict": "pass"})
    told = json.loads(json.dumps(summary(trial)))
    assert (told["test_id"], told["status"], told["gate"]) == (trial.test_id, "active", {"verdict": "pass"})


def test_reading_results_loads_neither_scipy_stats_nor_pandas():
    code = (
        "import sys\n"
        "from ragtune_mcp.core.experiment.statistics import Moments, welch, fisher_exact\n"
        "import ragtune_mcp.core.experiment.report, ragtune_mcp.core.experiment.serving\n"
        "assert 'scipy' not in sys.modules\n"
        "assert welch(Moments.of([1, 2, 3]), Moments.of([2, 3, 4])).p and fisher_exact(1, 5, 3, 6)\n"
        "assert 'scipy.stats' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_long_stream_read_after_every_rating_ends_in_one_decision(world):
    world.start()
    reading, used = stream(world, 200, (PMF38, PMF42), np.random.default_rng(9), hours=240.0)
    assert reading.status == "completed"
    assert 60 <= used <= 200
    assert sum(row["is_final"] for row in decisions(world)) == 1


def test_a_look_that_fails_leaves_nothing_half_counted(world, monkeypatch):
    world.start()
    world.rate_by_arm(20, 3, 4)

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr("ragtune_mcp.core.experiment.report.log_decision", fail)
        with pytest.raises(OSError, match="disk full"):
            world.report.results()
    world.rate("one more", 5)
    assert world.report.results() == World(world.db, clock=world.clock).report.results()


def test_a_higher_mean_with_fewer_happy_searches_is_warned_of(world):
    """Unhappy users of the test version keep silent: its mean rises while fewer of its searches end well."""
    world.start()
    for i in range(400):
        served = world.service.search(f"question {i}")
        if world.arm_of(served.query_id) == "baseline":
            world.outcomes.record(served.query_id, 5 if i % 2 else 3)
        elif i % 3 == 0:
            world.outcomes.record(served.query_id, 5)
    assert any("disagree in sign" in warning for warning in world.report.results().warnings)


def test_a_page_for_people_names_every_number_with_its_n_and_interval(world):
    world.start(metrics=("response_quality", "user_satisfaction"), duration_hours=24)
    for i in range(90):
        served = world.service.search(f"question {i}")
        world.outcomes.record(served.query_id, 3 + i % 3, user_satisfaction=2 + i % 4)
        world.outcomes.record(served.query_id, 3 + i % 3, user_satisfaction=2 + i % 4)
    world.clock.forward(hours=25)
    reading = world.report.results()
    page = world.report.document(reading.test_id)
    assert page.startswith(f"# A/B test {reading.test_id}: {reading.recommendation}")
    for name in ("n_exposed", "n_rated"):
        assert f"| {reading.baseline_metrics[name]} | {reading.test_metrics[name]} |" in page
    assert "Holm-adjusted p: user_satisfaction" in page
    assert "duplicate 90" in page
    assert "95 % always valid" in page
    assert f"| {reading.recommendation} | 90 |" in page


def test_the_page_gives_the_chance_that_a_search_is_rated_higher(world):
    world.start(duration_hours=24)
    baseline = []
    for i in range(60):
        served = world.service.search(f"question {i}")
        if world.arm_of(served.query_id) == "test":
            world.outcomes.record(served.query_id, 5)
        else:
            baseline.append(4 + i % 2)
            world.outcomes.record(served.query_id, baseline[-1])
    expected = 1 - sum(v == 5 for v in baseline) / len(baseline) / 2
    page = world.report.document(world.trials.latest().test_id)
    assert f"rated higher with the test version {expected:.4g}" in page
