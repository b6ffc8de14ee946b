import pytest
from tests.experiment.support import World

from ragtune_mcp.core.errors import InvalidInput, UnknownId
from ragtune_mcp.core.experiment.outcomes import Outcomes
from ragtune_mcp.core.feedback.parsing import MAX_DOCUMENT_TEXT, parse_feedback
from ragtune_mcp.core.workspace import sha256_text


def states(world):
    return [
        (r["kind"], r["value"], r["state"])
        for r in world.db.connection.execute("SELECT * FROM outcomes ORDER BY seq")
    ]


def tallies(world):
    return dict(world.trials.latest().tallies)


def test_an_entry_carries_everything_shown_and_said_in_the_form_that_trains(world):
    trial = world.start()
    served = world.service.search("How do I start?", k=2, unit_id="alice")
    shown = [hit.id for hit in served.hits]
    recorded = world.outcomes.record(
        served.query_id, 4, {shown[0]: 5}, 3, "helped", helpful_ids=[shown[0]], rater="alice"
    )
    value = recorded.value
    assert (value["schema"], value["query"], value["rating"]) == ("ragtune.feedback/1", "How do I start?", 4)
    assert (value["user_satisfaction"], value["rater"]) == (3, "alice")
    assert value["detailed_feedback"]["comments"] == "helped"
    assert [d["id"] for d in value["documents"]] == value["document_ids"] == shown
    assert [d["rank"] for d in value["documents"]] == [1, 2]
    first, second = value["documents"]
    assert (first["rating"], first["helpful"], first["text"]) == (5, True, f"text of {shown[0]}")
    assert (second["rating"], second["helpful"]) == (None, None)
    assert len(first["text_sha256"]) == 64
    assert value["retrieval"]["ab_test_id"] == trial.test_id
    assert value["retrieval"]["arm"] == world.arm_of(served.query_id)
    assert value["retrieval"]["model_id"] in ("base", "tuned")


def test_the_reader_of_feedback_understands_the_entry(world):
    served = world.service.search("How do I start?", k=2)
    recorded = world.outcomes.record(
        served.query_id, 2, {"base-1": 5}, comment="second was right", rater="bob"
    )
    record = parse_feedback(recorded.feedback_id, recorded.value, None)
    assert (record.feedback_id, record.query, record.rating, record.rater) == (
        recorded.feedback_id, "How do I start?", 2, "bob"
    )  # fmt: skip
    assert [(d.id, d.rating, d.rank, d.text) for d in record.documents] == [
        ("base-0", None, 1, "text of base-0"),
        ("base-1", 5, 2, "text of base-1"),
    ]
    assert record.comment == "second was right"
    assert record.query_id == served.query_id


def test_a_long_text_is_cut_but_hashed_whole(world):
    world.rankings = {"base": ["x" * 10]}
    long = World(world.db)
    long.answer = lambda version, query, k: [
        type("H", (), {"id": "d", "text": "x" * 9000, "source": "s", "rank": 1, "score": 1.0})()
    ]
    long.__post_init__()
    served = long.service.search("question")
    assert served.hits[0].text == "x" * 9000
    document = long.outcomes.record(served.query_id, 4).value["documents"][0]
    assert document["text"] == "x" * MAX_DOCUMENT_TEXT
    assert document["text_sha256"] == sha256_text("x" * 9000)


def test_repeating_feedback_changes_nothing_and_is_counted(world):
    world.start()
    served = world.service.search("question", k=1)
    first = world.outcomes.record(served.query_id, 4, {served.hits[0].id: 2})
    again = world.outcomes.record(served.query_id, 4, {served.hits[0].id: 2})
    assert again.is_duplicate
    assert not first.is_duplicate
    assert (again.feedback_id, again.value) == (first.feedback_id, first.value)
    assert world.counts("outcomes") == 2
    assert tallies(world) == {"duplicate": 1}


def test_two_raters_are_two_opinions_on_one_unit(world):
    world.start()
    served = world.service.search("question")
    ids = {world.outcomes.record(served.query_id, 5, rater=r).feedback_id for r in ("alice", "bob")}
    assert len(ids) == 2
    assert (
        world.report.results().baseline_metrics["n_rated"] + world.report.results().test_metrics["n_rated"]
        == 1
    )


@pytest.mark.parametrize("rating", [0, 6, -1, 3.5, 4.0, True, "4", float("nan"), float("inf")])
def test_a_rating_that_is_not_a_whole_number_from_1_to_5_is_refused_and_counted(world, rating):
    world.start()
    served = world.service.search("question", k=1)
    for arguments in (
        {"rating": rating},
        {"user_satisfaction": rating},
        {"document_ratings": {served.hits[0].id: rating}},
    ):
        with pytest.raises(InvalidInput) as refused:
            world.outcomes.record(served.query_id, **arguments)
        assert repr(rating) in refused.value.message
    assert world.counts("outcomes") == world.counts("feedback") == 0
    assert tallies(world) == {"invalid": 3}


def test_a_document_rating_of_none_is_refused(world):
    served = world.service.search("question", k=1)
    with pytest.raises(InvalidInput, match="None"):
        world.outcomes.record(served.query_id, document_ratings={served.hits[0].id: None})


def test_feedback_that_says_nothing_is_refused(world):
    served = world.service.search("question")
    with pytest.raises(InvalidInput):
        world.outcomes.record(served.query_id, comment="  ")


def test_an_unknown_query_is_refused_and_counted(world):
    world.start()
    with pytest.raises(UnknownId) as refused:
        world.outcomes.record("q_none", 4)
    assert refused.value.code == "unknown_query"
    assert tallies(world) == {"unknown_query": 1}


def test_a_document_that_was_not_shown_is_refused_with_those_that_were(world):
    world.start()
    served = world.service.search("question", k=1)
    for arguments in ({"document_ratings": {"foreign": 5}}, {"helpful_ids": ["foreign"]}):
        with pytest.raises(InvalidInput) as refused:
            world.outcomes.record(served.query_id, **arguments)
        assert "'foreign'" in refused.value.message
        assert served.hits[0].id in refused.value.hint


def test_a_quick_correction_replaces_a_rating_nobody_has_read(world):
    world.start()
    served = world.service.search("question")
    world.outcomes.record(served.query_id, 1)
    world.clock.forward(minutes=9)
    corrected = world.outcomes.record(served.query_id, 5)
    assert states(world) == [("answer", 1.0, "counted"), ("answer", 5.0, "edit")]
    assert corrected.value["rating"] == 5
    assert tallies(world) == {"contradictory": 1, "edited": 1}
    evidence = world.report.evidence(world.trials.latest().test_id).metrics["response_quality"]
    assert sum(arm.total for arm in evidence.frozen) == 5.0


def test_a_correction_after_ten_minutes_counts_only_at_the_fixed_horizon(world):
    trial = world.start()
    served = world.service.search("question")
    world.outcomes.record(served.query_id, 1)
    world.clock.forward(minutes=11)
    world.outcomes.record(served.query_id, 5)
    assert states(world)[1] == ("answer", 5.0, "late_edit")
    evidence = world.report.evidence(trial.test_id).metrics["response_quality"]
    assert sum(arm.total for arm in evidence.frozen) == 1.0
    assert sum(arm.v for arm in evidence.totals()) == 5.0


def test_a_correction_after_the_results_were_read_counts_only_at_the_fixed_horizon(world):
    trial = world.start()
    served = world.service.search("question")
    world.outcomes.record(served.query_id, 1)
    world.report.results()
    world.outcomes.record(served.query_id, 5)
    assert states(world)[1] == ("answer", 5.0, "late_edit")
    evidence = world.report.evidence(trial.test_id).metrics["response_quality"]
    assert sum(arm.total for arm in evidence.frozen) == 1.0
    assert sum(arm.v for arm in evidence.totals()) == 5.0


def test_the_watch_leaves_ratings_that_can_still_be_corrected_alone(world):
    trial = world.start()
    served = world.service.search("question")
    world.outcomes.record(served.query_id, 1)
    world.clock.forward(minutes=5)
    world.report.monitor()
    world.outcomes.record(served.query_id, 4)
    world.clock.forward(minutes=6)
    world.report.monitor()
    evidence = world.report.evidence(trial.test_id).metrics["response_quality"]
    assert sum(arm.total for arm in evidence.frozen) == 4.0


def test_a_helpful_mark_on_a_document_rated_bad_is_kept_and_counted_as_contradictory(world):
    world.start()
    served = world.service.search("question", k=1)
    world.outcomes.record(
        served.query_id, document_ratings={served.hits[0].id: 1}, helpful_ids=[served.hits[0].id]
    )
    assert tallies(world) == {"contradictory": 1}
    assert world.counts("outcomes") == 2


@pytest.mark.parametrize("marked_first", [True, False])
def test_a_contradiction_across_calls_is_counted_once(world, marked_first):
    world.start()
    served = world.service.search("question", k=1)
    shown = served.hits[0].id
    calls = [{"document_ratings": {shown: 1}}, {"helpful_ids": [shown]}]
    for said in reversed(calls) if marked_first else calls:
        world.outcomes.record(served.query_id, **said)
    assert tallies(world) == {"contradictory": 1}
    world.outcomes.record(served.query_id, rating=3)
    assert tallies(world) == {"contradictory": 1}


def test_feedback_within_the_grace_counts_and_after_it_only_trains(world):
    world.start(duration_hours=24)
    early, late = (world.service.search(q) for q in ("one", "two"))
    world.clock.forward(hours=24 + 2.3)
    assert not world.outcomes.record(early.query_id, 4).is_late
    world.clock.forward(hours=0.2)
    recorded = world.outcomes.record(late.query_id, 4)
    assert recorded.is_late
    assert recorded.value["rating"] == 4
    assert [state for *_, state in states(world)] == ["counted", "late"]
    assert tallies(world) == {"late": 1}


def test_feedback_after_the_final_look_only_trains(world):
    world.start(duration_hours=24)
    served = world.service.search("one")
    world.clock.forward(hours=24.1)
    before = world.report.results()
    assert world.outcomes.record(served.query_id, 5).is_late
    after = world.report.results()
    assert after.baseline_metrics == before.baseline_metrics
    assert after.test_metrics == before.test_metrics


def test_feedback_on_a_stopped_test_only_trains(world):
    trial = world.start()
    served = world.service.search("one")
    world.trials.stop(trial.test_id, "wrong model")
    assert world.outcomes.record(served.query_id, 5).is_late


def test_feedback_on_a_search_outside_any_test_is_recorded(world):
    served = world.service.search("question")
    world.start()
    recorded = world.outcomes.record(served.query_id, 5)
    assert recorded.value["retrieval"]["ab_test_id"] is None
    assert world.report.results().baseline_metrics["n_rated"] == 0


def test_what_is_published_and_what_is_logged_stand_or_fall_together(world):
    def refuse(recorded):
        raise OSError("disk full")

    outcomes = Outcomes(world.db, world.trials, publish=refuse, clock=world.clock)
    served = world.service.search("question")
    with pytest.raises(OSError, match="disk full"):
        outcomes.record(served.query_id, 5)
    assert world.counts("outcomes") == world.counts("feedback") == 0


def test_a_duplicate_is_not_published_again(world):
    published = []
    outcomes = Outcomes(world.db, world.trials, publish=published.append, clock=world.clock)
    served = world.service.search("question")
    for rating in (5, 5, 4):
        outcomes.record(served.query_id, rating)
    assert [entry.value["rating"] for entry in published] == [5, 4]
    assert len({entry.feedback_id for entry in published}) == 1
