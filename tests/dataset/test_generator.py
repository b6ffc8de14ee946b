from __future__ import annotations

import json
from datetime import timedelta

import pytest
from tests.dataset.samples import BagCorpus, pair, question
from tests.feedback.samples import NOON

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.card import most_informative
from ragtune_mcp.core.dataset.export import find_dataset, load_dataset
from ragtune_mcp.core.dataset.generator import DatasetOptions, TrainingDataGenerator
from ragtune_mcp.core.dataset.lineage import Stale, descendants, mark_stale, rejections
from ragtune_mcp.core.dataset.validate import validate
from ragtune_mcp.core.errors import ConPortUnavailable, InvalidInput, NotEnoughData, PathOutsideWorkspace
from ragtune_mcp.core.feedback.fields import encode_json
from ragtune_mcp.core.feedback.outbox import Outbox
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import DatasetPaths, Workspace, sha256_text

SMALL = {"min_positive_samples": 10, "min_negative_samples": 10, "min_ratings": 20}


class Rows:
    """ConPort's read side in memory."""

    def __init__(self, values):
        self.values = values

    def get_custom_data(self, category, key=None, *, since=None):
        stored = NOON.isoformat()
        return [
            {"id": n, "timestamp": stored, "category": category, "key": k, "value": v}
            for n, (k, v) in enumerate(self.values.items())
        ]


class Gone:
    def get_custom_data(self, category, key=None, *, since=None):
        raise ConPortUnavailable("ConPort does not answer.")


def values(count=30, age_days=1.0):
    """One entry a query, with a good and a bad document."""
    return {
        f"key{i}": {
            "feedback_id": f"id{i}",
            "timestamp": (NOON - timedelta(days=age_days)).timestamp(),
            "query": question(i),
            "documents": [
                {"id": f"d{i}", "text": f"{question(i)} answered.", "rating": 5},
                {"id": f"d{(i + 7) % count}", "text": f"{question((i + 7) % count)} answered.", "rating": 1},
            ],
        }
        for i in range(count)
    }


@pytest.fixture
def workspace(tmp_path):
    return Workspace(
        tmp_path, Settings(training_data_min_samples=20, min_positive_samples=10, min_negative_samples=10)
    )


@pytest.fixture
def make(workspace):
    def build(entries=None, **parts):
        client = parts.pop("client", None) or Rows(values() if entries is None else entries)
        return TrainingDataGenerator(client, workspace, now=lambda: NOON, **parts)

    return build


def options(**fields):
    return DatasetOptions(**{**SMALL, **fields})


def test_a_data_set_is_written_with_all_that_belongs_to_it(make, workspace):
    told = []
    built = make().build(options(), lambda share, what: told.append(share))
    assert built.dataset_id.startswith("training_20260301_120000_")
    assert built.path == workspace.training_data / f"{built.dataset_id}.csv"
    paths = DatasetPaths(built.path)
    assert {p.name for p in workspace.training_data.iterdir()} == {
        built.path.name, paths.manifest.name, paths.rejected.name, paths.card.name
    }  # fmt: skip
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1
    dataset = load_dataset(built.path)
    assert validate(dataset).is_valid
    assert dataset.dataset_id == built.dataset_id
    assert dataset.manifest["statistics"] == built.statistics
    assert dataset.manifest["conport"]["entries"]["id3"]["key"] == "key3"
    assert find_dataset(workspace.training_data, built.dataset_id) == built.path


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "triplets"])
def test_every_format_can_be_built_and_validated(make, form):
    built = make().build(options(export_format=form))
    assert validate(load_dataset(built.path)).is_valid


def test_the_same_feedback_gives_the_same_bytes(make):
    first, second = make().build(options()), make().build(options())
    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes()


def test_nothing_is_left_behind_when_there_is_too_little(make, workspace):
    generator = make()
    with pytest.raises(NotEnoughData, match="have 30, need 31"):
        generator.build(options(min_positive_samples=31))
    assert not workspace.training_data.exists()
    db = Database(workspace.database)
    assert db.connection.execute("SELECT count(*) FROM query_slices").fetchone()[0] == 0
    db.close()


def test_an_unreachable_conport_is_an_error_not_an_empty_data_set(make):
    with pytest.raises(ConPortUnavailable):
        make(client=Gone()).build(options())


def test_entries_waiting_in_the_outbox_count(make, workspace):
    workspace.prepare()
    db = Database(workspace.database)
    outbox = Outbox(db)
    for key, value in values().items():
        outbox.put_custom_data("UserFeedback", key, value)
    assert make({}, outbox=outbox).build(options()).statistics["feedback_used"] == 30
    db.close()


def test_rejected_entries_stand_beside_the_data_set_with_their_reason(make):
    entries = {
        **values(),
        "bad": "{",
        "five": {"query": "q q q", "rating": "five"},
        "alone": {"query": "a question", "rating": 5},
    }
    built = make(entries).build(options())
    lines = DatasetPaths(built.path).rejected.read_text().splitlines()
    reasons = {row["feedback_id"]: row["reason"] for row in map(json.loads, lines)}
    assert reasons == {"bad": "invalid_json", "five": "invalid_rating", "alone": "no_documents"}
    assert built.statistics["skipped"] == {"invalid_json": 1, "invalid_rating": 1, "no_documents": 1}
    assert any("1 ratings name no documents" in w for w in built.warnings)


def test_without_an_index_a_warning_says_so(make):
    assert any("Nothing is indexed" in w for w in make().build(options()).warnings)


def test_with_an_index_hard_negatives_are_mined_and_the_margin_is_on_record(make):
    corpus = BagCorpus(
        {f"d{i}": f"{question(i)} answered." for i in range(30)}
        | {f"x{i}": f"{question(i)[:20]} else" for i in range(30)}
    )
    built = make(corpus=corpus, documents=corpus).build(options())
    assert built.statistics["hard_negative_pairs"] > 0
    assert load_dataset(built.path).manifest["mining"]["margin"] > 0
    assert "margin of the hard negatives" in DatasetPaths(built.path).card.read_text()


def test_the_card_tells_counts_ratings_and_examples(make):
    card = DatasetPaths(make().build(options()).path).card.read_text()
    assert "60 pairs of 30 queries, made of 30 of 30 feedback entries" in card
    assert "5  ########################################" in card
    assert card.count("rated 5, weight") == 10
    assert question(0) in card or question(1) in card


def test_the_most_informative_examples_are_the_surest_contrasts():
    pairs = [pair(question(i), "Good.", weight=0.1 * i) for i in range(1, 6)]
    pairs += [pair(question(i), "Bad.", kind="negative", weight=0.5) for i in range(1, 5)]
    found = most_informative(pairs, count=2)
    assert [e.positive.query for e in found] == [question(4), question(3)]
    assert [e.negative.document for e in found] == ["Bad.", "Bad."]


def test_with_scores_the_contrast_the_serving_model_gets_wrong_comes_first():
    pairs = [pair(question(i), f"Good {i}.", document_id=f"g{i}", weight=0.5) for i in range(3)]
    pairs += [
        pair(question(i), f"Bad {i}.", kind="negative", document_id=f"b{i}", weight=0.5) for i in range(3)
    ]
    pairs.append(pair(question(3), "Held out.", document_id="g3", split="test"))
    pairs.append(pair(question(3), "Held out too.", document_id="b3", split="test", kind="negative"))
    scores = {(question(0), "g0"): 0.8, (question(0), "b0"): 0.3, (question(1), "b1"): 0.6}
    found = most_informative(pairs, scores | {(question(1), "g1"): 0.5, (question(2), "g2"): 0.9})
    assert [e.positive.document_id for e in found] == ["g1", "g0", "g2"]
    assert found[0].scores == (0.5, 0.6)


def test_the_manifest_says_by_what_rules_it_was_made(make):
    manifest = load_dataset(make().build(options()).path).manifest
    assert manifest["made_by"].startswith("ragtune-mcp ")
    assert manifest["rules"]["pairs"] == {"positive": 4.0, "negative": 2.0, "per_query": 10}
    assert manifest["rules"]["cleaning"]["duplicate_window"] == 600


def test_test_queries_stay_test_queries_when_feedback_is_added(make):
    first = make().build(options())
    held_out = {p.query for p in load_dataset(first.path).pairs if p.split == "test"}
    later = {
        **values(),
        **{f"n{k}": {**v, "feedback_id": f"n{k}", "query": v["query"] + " now"} for k, v in values().items()},
    }
    second = load_dataset(make(later).build(options()).path)
    assert held_out <= {p.query for p in second.pairs if p.split == "test"}


def test_the_specifications_calls_work(make, workspace):
    generator = make()
    feedback = generator.get_feedback_data(days_back=90, min_samples=20)
    assert len(feedback) == 30
    assert len(generator.generate_training_data_from_feedback(feedback)) == 60
    assert len(generator.generate_training_data_from_feedback(feedback.records[:3])) == 6
    pairs = generator.generate_training_data(
        min_positive_samples=5, min_negative_samples=5, include_hard_negatives=True
    )
    for name, form in (("training_data.csv", "csv"), ("training_data.json", "json")):
        path = generator.export_training_data(pairs, name, format_type=form)
        assert load_dataset(path).pairs == tuple(pairs)
        assert path == workspace.root / name


def test_test_queries_of_an_export_stay_test_queries_when_feedback_is_added(make):
    few = make(values(12))
    pairs = few.generate_training_data(1, 1)
    few.export_training_data(pairs, "own.csv")
    held_out, trained = ({p.query for p in pairs if (p.split == "test") == test} for test in (True, False))
    for more in (
        make(values(60)).generate_training_data(),
        load_dataset(make(values(60)).build(options()).path).pairs,
    ):
        assert not held_out & {p.query for p in more if p.split != "test"}
        assert not trained & {p.query for p in more if p.split == "test"}


def test_an_export_that_fails_is_not_remembered(make, workspace):
    with pytest.raises(InvalidInput):
        make().export_training_data([pair("a\ud800b", split="test")], "own.csv")
    with pytest.raises(InvalidInput):
        make().export_training_data([pair(split="test")], "own.xml", "xml")
    db = Database(workspace.database)
    assert db.connection.execute("SELECT count(*) FROM query_slices").fetchone()[0] == 0
    db.close()


def test_the_specifications_calls_refuse_too_little(make):
    with pytest.raises(NotEnoughData, match="have 30, need 31"):
        make().get_feedback_data(min_samples=31)
    with pytest.raises(NotEnoughData):
        make().generate_training_data(min_positive_samples=1000)


def test_old_feedback_is_left_out(make):
    assert len(make(values(age_days=91)).get_feedback_data(days_back=90)) == 0
    assert len(make(values(age_days=91)).get_feedback_data(days_back=92)) == 30


def test_an_export_stays_inside_the_workspace(make):
    with pytest.raises(PathOutsideWorkspace):
        make().export_training_data([pair()], "../x.csv")
    with pytest.raises(InvalidInput):
        make().export_training_data([pair()], "x.csv", format_type="parquet")


def test_a_rating_is_followed_to_its_data_sets_and_pairs(make, workspace):
    first, second = make().build(options()), make().build(options())
    found = descendants(workspace.training_data, "key4")
    assert [d.dataset_id for d in found] == sorted([first.dataset_id, second.dataset_id])
    assert {p.query for p in found[0].pairs} == {question(4)}
    assert descendants(workspace.training_data, "id4") == found
    assert descendants(workspace.training_data, "nobody") == []


def states(entries):
    return {key: sha256_text(encode_json(value)) for key, value in entries.items()}


def test_a_deleted_or_changed_rating_marks_its_data_sets_stale(make, workspace):
    built = make().build(options())
    now = values()
    del now["key4"]
    now["key6"]["documents"][0]["rating"] = 4
    assert mark_stale(workspace.training_data, states(now)) == {
        built.dataset_id: Stale(deleted=("id4",), changed=("id6",))
    }
    found = [descendants(workspace.training_data, f"id{i}")[0].stale for i in (4, 5, 6)]
    assert found == ["deleted", "", "changed"]
    assert load_dataset(built.path).manifest["stale"] == {"deleted": ["id4"], "changed": ["id6"]}
    assert mark_stale(workspace.training_data, states(values())) == {}
    assert load_dataset(built.path).manifest["stale"] == {}


def test_a_rating_that_was_not_used_is_found_with_its_reason(make, workspace):
    entries = values()
    entries["key9"] = {**entries["key9"], "query": "what about it?"}
    built = make(entries).build(options())
    found = rejections(workspace.training_data, "id9")
    assert {i: r.reason for i, r in found.items()} == {built.dataset_id: "follow_up_without_context"}
    assert rejections(workspace.training_data, "id8") == {}


def undecided_values():
    """Ratings with a document between the thresholds, and twelve positives of one query."""
    asked = {"query": question(0), "timestamp": NOON.timestamp()}
    more = {
        f"more{i}": {**asked, "documents": [{"id": f"p{i:02}", "text": f"Positive {i}.", "rating": 5}]}
        for i in range(12)
    }
    neutral = {**asked, "documents": [{"id": "n", "text": "Neither good nor bad.", "rating": 3}]}
    return values() | more | {"neutral": neutral}


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "triplets"])
def test_a_data_set_names_what_must_not_be_a_negative_and_its_margin(make, form):
    index = BagCorpus({f"d{i}": f"{question(i)} answered." for i in range(30)})
    built = make(undecided_values(), corpus=index).build(options(export_format=form))
    dataset = load_dataset(built.path)
    (group,) = {p.query_group for p in dataset.pairs if p.query == question(0)}
    assert dataset.excluded_negatives(group) == {"n", "d0", "p10", "p11"}
    assert dataset.excluded_negatives("another group") == frozenset()
    assert dataset.mining_margin == 0.1


def test_without_an_index_or_a_manifest_there_is_no_margin(make, tmp_path):
    built = make().build(options())
    assert load_dataset(built.path).mining_margin is None
    bare = load_dataset(built.path.rename(tmp_path / "bare.csv"))
    assert bare.mining_margin is None
    assert bare.excluded_negatives(bare.pairs[0].query_group) == frozenset()


def test_as_triplets_a_data_set_keeps_its_test_slice(make):
    entries = {key: {**value, "documents": value["documents"][:1]} for key, value in values().items()}
    index = BagCorpus({f"d{i}": f"{question(i)} answered." for i in range(30)})
    built = make(entries, corpus=index).build(options(min_negative_samples=0, export_format="triplets"))
    dataset = load_dataset(built.path)
    assert len(dataset.pairs) == built.statistics["total_pairs"]
    assert sum(p.split == "test" for p in dataset.pairs) == built.statistics["test_pairs"] > 0
