import json

import numpy as np
import pytest
from tests.experiment.support import World

from ragtune_mcp.core.experiment.evidence import Evidence, next_point
from ragtune_mcp.core.experiment.live import LiveEvidence


def flat(value, path=""):
    """Every number of a state with its path."""
    if isinstance(value, dict):
        return {k: v for name, entry in value.items() for k, v in flat(entry, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, entry in enumerate(value) for k, v in flat(entry, f"{path}/{i}").items()}
    return {path: value}


def recomputed(world, trial):
    """From the log alone: no memory, no checkpoint."""
    world.db.connection.execute("DELETE FROM trial_checkpoints")
    with world.db.transaction():
        return LiveEvidence(world.db).advance(world.trials.get(trial.test_id), None)


def assert_same(a: Evidence, b: Evidence):
    ours, theirs = flat(a.to_state()), flat(b.to_state())
    assert ours.keys() == theirs.keys()
    assert {k: v for k, v in ours.items() if v is not None} == pytest.approx(
        {k: v for k, v in theirs.items() if v is not None}, rel=1e-9, abs=1e-9
    )


def busy_stream(world, n, rng, mode="split"):
    """A test with repeated searches, several raters, corrections, document ratings and a changed split."""
    world.rankings = {"base": list("abcdef"), "tuned": list("cafgbh")}
    trial = world.start(mode=mode, metrics=("response_quality", "relevance_score", "user_satisfaction"))
    served = []
    for i in range(n):
        if i == n // 2 and mode == "split":
            world.trials.set_split(trial.test_id, 0.3)
        served.append(
            world.service.search(f"question {int(rng.integers(n))}", k=4, unit_id="u" if i % 17 == 0 else "")
        )
        world.clock.forward(minutes=float(rng.integers(1, 8)))
        if rng.random() < 0.7:
            chosen = served[int(rng.integers(max(0, len(served) - 5), len(served)))]
            rated = {h.id: int(rng.integers(1, 6)) for h in chosen.hits if rng.random() < 0.5}
            world.outcomes.record(
                chosen.query_id,
                int(rng.integers(1, 6)),
                rated,
                int(rng.integers(1, 6)) if rng.random() < 0.3 else None,
                helpful_ids=[chosen.hits[0].id] if rng.random() < 0.2 else (),
                rater=str(rng.integers(2)),
            )
        yield


@pytest.mark.parametrize("mode", ["split", "interleave"])
def test_statistics_kept_up_to_date_equal_a_recomputation_from_the_log(world, mode):
    rng = np.random.default_rng(17)
    other = World(world.db, clock=world.clock)
    for _ in busy_stream(world, 300, rng, mode):
        if rng.random() < 0.2:
            world.report.results()
        if rng.random() < 0.1:
            world.report.monitor()
        if rng.random() < 0.05:
            other.report.results()
    trial = world.trials.latest()
    kept = world.report.evidence(trial.test_id)
    assert kept.seqs[2] > 200
    assert_same(kept, recomputed(world, trial))
    assert_same(other.report.evidence(trial.test_id), kept)


def test_a_new_process_continues_from_the_checkpoint(world, monkeypatch):
    monkeypatch.setattr("ragtune_mcp.core.experiment.live._CHECKPOINT_EVENTS", 50)
    rng = np.random.default_rng(3)
    for _ in busy_stream(world, 200, rng):
        if rng.random() < 0.3:
            world = World(world.db, clock=world.clock, rankings=world.rankings)
            world.report.results()
    trial = world.trials.latest()
    assert world.counts("trial_checkpoints") == 1
    assert_same(world.report.evidence(trial.test_id), recomputed(world, trial))


def test_a_state_survives_json(world):
    for _ in busy_stream(world, 60, np.random.default_rng(5)):
        pass
    evidence = world.report.evidence(world.trials.latest().test_id)
    state = json.loads(json.dumps(evidence.to_state()))
    assert (
        Evidence.from_state("response_quality", state, is_interleaved=False).to_state() == evidence.to_state()
    )


def test_a_transaction_rolled_back_leaves_nothing_in_memory(world):
    world.start()
    world.rate("one", 5)
    with pytest.raises(RuntimeError), world.db.transaction():
        world.rate("two", 1)
        assert (
            world.report.results().baseline_metrics["n_rated"]
            + world.report.results().test_metrics["n_rated"]
            == 2
        )
        raise RuntimeError
    world.rate("three", 4)
    trial = world.trials.latest()
    assert_same(world.report.evidence(trial.test_id), recomputed(world, trial))


def test_a_unit_is_counted_once_at_its_first_rating_and_averaged_at_the_horizon(world):
    trial = world.start()
    first, second = world.service.search("question"), world.service.search("QUESTION")
    world.outcomes.record(first.query_id, 5)
    world.report.results()
    world.outcomes.record(second.query_id, 2)
    evidence = world.report.evidence(trial.test_id).metrics["response_quality"]
    assert sum(arm.n for arm in evidence.frozen) == sum(arm.n for arm in evidence.totals()) == 1
    assert sum(arm.total for arm in evidence.frozen) == 5.0
    assert sum(arm.v for arm in evidence.totals()) == 3.5


def test_relevance_is_taken_from_the_ranks_and_ratings_of_judged_documents(world):
    trial = world.start()
    served = world.service.search("question", k=3)
    world.outcomes.record(served.query_id, document_ratings={served.hits[0].id: 5, served.hits[2].id: 1})
    reading = world.report.results(trial.test_id)
    values = [reading.baseline_metrics["avg_relevance_score"], reading.test_metrics["avg_relevance_score"]]
    assert [v for v in values if v is not None] == [pytest.approx(1 / 1.5)]


def test_earlier_ratings_of_a_unit_become_its_covariate_and_sharpen_the_test(world):
    """Units that differ a lot among themselves but little between the arms."""
    rng = np.random.default_rng(4)
    level = {i: int(rng.integers(1, 5)) for i in range(80)}
    for i in level:
        world.rate(f"question {i}", level[i])
    world.start()
    for i in level:
        served = world.service.search(f"question {i}")
        in_test = world.arm_of(served.query_id) == "test"
        world.outcomes.record(served.query_id, level[i] + in_test)
    reading = world.report.results()
    raw = reading.test_metrics["avg_response_quality"] - reading.baseline_metrics["avg_response_quality"]
    low, high = reading.effect.ci95_fixed
    assert reading.effect.difference == pytest.approx(1.0, abs=0.1)
    assert high - low < 0.4  # about .9 without the covariate
    assert abs(raw - 1.0) > 0.0


def test_the_trajectory_gets_a_point_a_unit_at_first_and_then_every_twentieth(world):
    sizes, n = [], 0
    while n < 1000:
        n = next_point(n)
        sizes.append(n)
    assert sizes[:40] == list(range(1, 41))
    assert all(b > a for a, b in zip(sizes, sizes[1:], strict=False))
    assert len(sizes) < 120


def test_a_correction_of_a_rating_not_yet_settled_is_not_counted_before_it(world):
    trial = world.start()
    world.rate("settled", 3)
    world.clock.forward(minutes=1)
    served = world.service.search("corrected")
    world.outcomes.record(served.query_id, 1)
    world.clock.forward(minutes=5)
    world.outcomes.record(served.query_id, 5)
    world.clock.forward(minutes=4, seconds=30)
    (watched,) = world.report.monitor()
    assert watched.baseline_metrics["n_rated"] + watched.test_metrics["n_rated"] == 1
    world.clock.forward(minutes=10)
    world.report.monitor()
    frozen = world.report.evidence(trial.test_id).metrics["response_quality"].frozen
    assert (sum(arm.n for arm in frozen), sum(arm.total for arm in frozen)) == (2, 8.0)


@pytest.mark.parametrize("is_read_between", [True, False])
def test_marks_are_what_an_interleaved_list_is_credited_by_also_when_ratings_follow(world, is_read_between):
    world.rankings = {"base": list("abcd"), "tuned": list("dcba")}
    trial = world.start(mode="interleave")
    served = world.service.search("question", k=4)
    world.outcomes.record(served.query_id, helpful_ids=["d"])
    if is_read_between:
        world.report.results()
    world.outcomes.record(served.query_id, document_ratings={"a": 5, "d": 1})
    kept = world.report.evidence(trial.test_id)
    assert kept.credit.credits.total > 0.0
    assert_same(kept, recomputed(world, trial))


def test_ratings_count_before_marks_given_with_them(world):
    world.rankings = {"base": list("abcd"), "tuned": list("dcba")}
    trial = world.start(mode="interleave")
    served = world.service.search("question", k=4)
    world.outcomes.record(served.query_id, document_ratings={"d": 1}, helpful_ids=["d"])
    assert world.report.evidence(trial.test_id).credit.credits.total < 0.0
