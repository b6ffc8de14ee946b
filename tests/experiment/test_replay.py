import pytest
from tests.experiment.support import START

from ragtune_mcp.core.experiment.replay import keep_replay, kept_replay, rated_queries, replay


def rate_documents(world, query, ratings, rater=""):
    served = world.service.search(query, k=4)
    world.outcomes.record(served.query_id, document_ratings=ratings, rater=rater)


def test_rated_queries_pool_what_was_said_with_the_newest_opinion_of_each_rater(world):
    world.rankings = {"base": list("abcd")}
    rate_documents(world, "How?", {"a": 5, "b": 1})
    rate_documents(world, " how? ", {"a": 3}, rater="bob")
    served = world.service.search("Why?", k=4)
    world.outcomes.record(served.query_id, document_ratings={"c": 1})
    world.outcomes.record(served.query_id, document_ratings={"c": 5})
    assert rated_queries(world.db.connection) == {"Why?": {"c": 1.0}, " how? ": {"a": 0.75, "b": 0.0}}
    assert list(rated_queries(world.db.connection, limit=1)) == ["Why?"]


def test_queries_without_a_good_document_say_nothing(world):
    world.rankings = {"base": list("abcd")}
    rate_documents(world, "How?", {"a": 1, "b": 1})
    assert rated_queries(world.db.connection) == {}


def test_a_replay_compares_both_versions_on_judged_documents_only(world):
    world.rankings = {"base": list("xaby"), "tuned": list("bxya")}
    gains = {"one": {"a": 1.0, "b": 0.25}, "two": {"a": 1.0}}
    result = replay(gains, "base", "tuned", world.answer)
    assert result.queries == 2
    assert result.baseline == 1.0
    assert result.test < 1.0
    assert result.difference == pytest.approx(result.test - 1.0)
    assert (result.judged_baseline, result.judged_test) == pytest.approx((0.3, 0.3))


def test_a_replay_of_nothing_is_empty_and_a_kept_one_stands_beside_the_test(world):
    empty = replay({}, "base", "tuned", world.answer)
    assert (empty.queries, empty.difference) == (0, None)
    trial = world.start()
    assert kept_replay(world.db.connection, trial.test_id) == {}
    keep_replay(
        world.db.connection,
        trial.test_id,
        replay({"q": {"base-0": 1.0}}, "base", "tuned", world.answer),
        START,
    )
    kept = kept_replay(world.db.connection, trial.test_id)
    assert (kept["queries"], kept["baseline"], kept["test"]) == (1, 1.0, 0.0)
    text = world.report.document(trial.test_id)
    assert "not causal" in text
    assert "| continue |" in text
