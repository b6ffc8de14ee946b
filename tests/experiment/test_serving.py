import json
from collections import Counter

import pytest
from tests.experiment.support import TUNED, World

from ragtune_mcp.core.errors import InvalidInput, NotReady
from ragtune_mcp.core.experiment.assignment import Variant, assign, unit_of
from ragtune_mcp.core.experiment.serving import SearchService


def exposures(world):
    return world.db.connection.execute("SELECT * FROM exposures ORDER BY seq").fetchall()


def answers(world):
    return world.db.connection.execute("SELECT * FROM answers ORDER BY seq").fetchall()


def query_of(world, arm, start=0):
    """A query that the running test assigns to an arm."""
    trial = world.trials.active()
    return next(
        q
        for i in range(start, start + 500)
        if assign(trial.salt, trial.assignment_key, unit_of(q := f"question {i}"), trial.split) == arm
    )


def test_without_a_test_the_champion_answers_and_the_search_is_logged(world):
    served = world.service.search("How?", k=3)
    assert [hit.id for hit in served.hits] == ["base-0", "base-1", "base-2"]
    (row,) = exposures(world)
    assert (row["query_id"], row["test_id"], row["assigned"]) == (served.query_id, None, None)
    assert answers(world)[0]["version"] == "base"


def test_each_unit_gets_its_assigned_version_with_propensity_and_phase_on_record(world):
    trial = world.start(split=0.3)
    for i in range(200):
        served = world.service.search(f"question {i}", k=1)
        expected = assign(trial.salt, trial.assignment_key, unit_of(f"question {i}"), 0.3)
        assert served.hits[0].id == ("tuned-0" if expected is Variant.TEST else "base-0")
    rows = exposures(world)
    assert {(row["propensity"], row["phase"], row["test_id"]) for row in rows} == {(0.3, 0, trial.test_id)}
    assert Counter(row["assigned"] for row in rows)["test"] == pytest.approx(60, abs=20)


def test_results_do_not_tell_which_variant_served(world):
    world.start()
    served = world.service.search("question", k=2)
    assert set(served.__slots__) == {"query_id", "hits"}
    assert served.hits[0].gap is None
    assert not {"variant", "version", "arm", "assigned"} & set(served.hits[0].__slots__)


def test_a_repeated_query_keeps_its_variant_after_a_restart_and_a_changed_split(world):
    trial = world.start(split=0.2)
    query = query_of(world, "baseline")
    world.service.search(query)
    world.trials.set_split(trial.test_id, 0.95)
    again = World(world.db)
    again.service.search(f"  {query.upper()}  ")
    first, second = exposures(world)
    assert first["assigned"] == second["assigned"] == "baseline"
    assert (second["propensity"], second["is_first"], second["phase"]) == (0.2, 0, 1)


def test_a_callers_unit_binds_all_its_queries_to_one_variant(world):
    world.start()
    for i in range(30):
        world.service.search(f"question {i}", unit_id="alice")
    rows = exposures(world)
    assert len({row["assigned"] for row in rows}) == 1
    assert [row["is_first"] for row in rows] == [1] + [0] * 29


def test_the_exposure_stands_before_the_variant_is_asked(world):
    world.start()
    seen = []

    def look(version, query, k):
        seen.append(world.counts("exposures"))
        return world.answer(version, query, k)

    SearchService(world.db, world.trials, look, lambda: "base", clock=world.clock).search("question")
    assert seen == [1]


def test_a_failing_test_version_is_answered_by_the_baseline_and_keeps_its_assignment(world):
    world.start()
    world.broken.add(TUNED)
    served = world.service.search(query_of(world, "test"), k=2)
    assert [hit.id for hit in served.hits] == ["base-0", "base-1"]
    assert exposures(world)[0]["assigned"] == "test"
    (answer,) = answers(world)
    assert (answer["served"], answer["version"], answer["failure"]) == ("baseline", "base", "RuntimeError")


def test_three_failures_in_a_row_end_the_test_as_keep_baseline(world):
    trial = world.start()
    world.broken.add(TUNED)
    start = 0
    for _ in range(3):
        assert world.trials.active() is not None
        query = query_of(world, "test", start)
        start = int(query.split()[1]) + 1
        world.service.search(query)
    assert world.trials.active() is None
    reading = world.report.results(trial.test_id)
    assert (reading.status, reading.recommendation) == ("completed", "keep_baseline")
    assert "circuit breaker" in reading.reasons[0]
    assert "3 in a row" in reading.reasons[0]


def test_a_success_between_failures_resets_the_row_of_three(world):
    world.start()
    start = 0
    for broken in (True, True, False, True, True):
        world.broken = {TUNED} if broken else set()
        query = query_of(world, "test", start)
        start = int(query.split()[1]) + 1
        world.service.search(query)
    assert world.trials.active() is not None


def test_failures_in_over_five_percent_of_twenty_end_the_test(world):
    world.start(split=0.9)
    for i in range(40):
        world.broken = {TUNED} if i % 12 == 5 else set()
        world.service.search(f"question {i}")
    assert world.trials.active() is None
    assert "over 5%" in world.report.results().reasons[0]


def test_a_failing_baseline_raises_since_nothing_could_stand_in(world):
    world.start()
    world.broken.add("base")
    with pytest.raises(RuntimeError):
        world.service.search(query_of(world, "baseline"))
    assert len(answers(world)) == 0
    assert len(exposures(world)) == 1


def test_a_warming_encoder_is_not_a_failure_of_the_version(world):
    world.start()

    def warming(version, query, k):
        raise NotReady("The encoder is loading.")

    service = SearchService(world.db, world.trials, warming, lambda: "base", clock=world.clock)
    for i in range(10):
        with pytest.raises(NotReady):
            service.search(f"question {i}")
    assert world.trials.active() is not None


def test_while_the_test_version_is_not_ready_the_baseline_answers_and_the_test_goes_on(world):
    world.start()
    ready = world.answer

    def warming(version, query, k):
        if version == TUNED:
            raise NotReady("The encoder is loading.")
        return ready(version, query, k)

    service = SearchService(world.db, world.trials, warming, lambda: "base", clock=world.clock)
    for i in range(60):
        assert service.search(f"question {i}").hits[0].id == "base-0"
    assert world.trials.active() is not None
    assert world.report.results().health["fallback_rate"] == (0.0, 1.0)
    world.broken.add(TUNED)
    for i in range(20):
        world.service.search(f"broken {i}")
    assert world.trials.active() is None


@pytest.mark.parametrize(("query", "k"), [("", 5), (" \n", 5), ("how", 0)])
def test_blank_queries_and_no_results_are_refused_and_leave_nothing(world, query, k):
    with pytest.raises(InvalidInput):
        world.service.search(query, k=k)
    assert world.counts("exposures") == 0


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\udfff"])
@pytest.mark.parametrize("field", ["query", "unit_id"])
def test_a_text_that_the_log_could_not_find_again_is_refused_and_leaves_nothing(world, bad, field):
    world.start()
    with pytest.raises(InvalidInput) as refused:
        world.service.search(**{"query": "how", "unit_id": "me", field: f"a {bad} b"})
    assert field in refused.value.message
    assert repr(bad) in refused.value.message
    str(refused.value).encode()
    assert world.counts("exposures") == 0


def test_interleaving_shows_one_list_of_both_and_logs_each_documents_gap(world):
    world.rankings = {"base": ["a", "b", "c"], "tuned": ["c", "d", "a"]}
    world.start(mode="interleave")
    served = world.service.search("question", k=3)
    assert {hit.id for hit in served.hits} <= {"a", "b", "c", "d"}
    assert [hit.rank for hit in served.hits] == [1, 2, 3]
    (row,) = exposures(world)
    assert row["assigned"] == "both"
    logged = json.loads(answers(world)[0]["results"])
    assert [entry[0] for entry in logged] == [hit.id for hit in served.hits]
    assert all(entry[4] is not None for entry in logged)
    assert world.service.search("question", k=3).hits == served.hits


def test_interleaving_falls_back_to_the_baselines_list(world):
    world.start(mode="interleave")
    world.broken.add(TUNED)
    served = world.service.search("question", k=2)
    assert [hit.id for hit in served.hits] == ["base-0", "base-1"]
    assert answers(world)[0]["served"] == "baseline"


def test_the_text_of_a_document_is_stored_once_however_often_it_is_shown(world):
    for i in range(5):
        world.service.search(f"question {i}", k=2)
    assert world.counts("shown_documents") == 2


def test_the_last_queries_are_remembered_each_once(world):
    for query in ("one", "two", "one", "three"):
        world.service.search(query)
    assert world.service.recent_queries(2) == ["three", "one"]
    assert world.service.recent_queries(9) == ["three", "one", "two"]
