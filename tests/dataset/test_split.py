from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dataset.samples import pair

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.split import SliceLedger, SplitShares, assign_splits, check_split
from ragtune_mcp.core.errors import LeakySplit


def groups(count, scorable=True):
    return {f"g{i:04d}": scorable for i in range(count)}


def test_large_data_sets_have_the_shares_asked_for():
    shares = Counter(assign_splits(groups(5000)).values())
    assert shares["test"] == pytest.approx(1000, abs=100)
    assert shares["validation"] == pytest.approx(500, abs=75)


@pytest.mark.parametrize("count", range(3, 60))
def test_from_three_groups_on_every_split_holds_one(count):
    counts = Counter(assign_splits(groups(count)).values())
    assert min(counts["train"], counts["validation"], counts["test"]) >= 1
    assert counts["test"] <= max(1, 0.3 * count + 1)
    assert counts["validation"] <= max(1, 0.15 * count + 1)


@pytest.mark.parametrize("count", [60, 75, 90])
def test_the_gate_gets_queries_enough_as_soon_as_its_share_allows(count):
    assert Counter(assign_splits(groups(count)).values())["test"] >= 18


@pytest.mark.parametrize(("count", "expected"), [(0, {}), (1, {"train": 1}), (2, {"train": 1, "test": 1})])
def test_fewer_groups_train_first_then_test(count, expected):
    assert Counter(assign_splits(groups(count)).values()) == expected


def test_only_groups_with_a_positive_count_toward_the_minimum():
    splits = assign_splits({**groups(4), **{f"n{i}": False for i in range(50)}})
    assert {splits[g] for g in groups(4)} == {"train", "validation", "test"}


@given(st.sets(st.text(max_size=8), min_size=1, max_size=80), st.sets(st.text(max_size=8), max_size=80))
def test_groups_added_later_never_move_a_test_group_into_training(first, later):
    before = assign_splits(dict.fromkeys(first, True))
    held_out = {g for g, split in before.items() if split == "test"}
    trained = first - held_out
    after = assign_splits(dict.fromkeys(first | later, True), held_out=held_out, trained=trained)
    assert all(after[g] == "test" for g in held_out)
    assert all(after[g] != "test" for g in trained)


def test_in_a_large_data_set_the_test_slice_is_stable_without_any_memory():
    before, after = assign_splits(groups(2000)), assign_splits(groups(4000))
    assert all(after[g] == "test" for g, split in before.items() if split == "test")


def test_the_splits_do_not_depend_on_the_order_of_the_groups():
    assert assign_splits(dict(reversed(groups(50).items()))) == assign_splits(groups(50))


def test_shares_can_be_changed():
    counts = Counter(assign_splits(groups(2000), SplitShares(validation=0.3, test=0.4)).values())
    assert counts["test"] == pytest.approx(800, abs=80)
    assert counts["validation"] == pytest.approx(600, abs=80)


def test_by_an_order_the_first_groups_are_tested_on():
    newest_first = [f"g{i:04d}" for i in reversed(range(100))]
    splits = assign_splits(groups(100), order=newest_first)
    assert [g for g in newest_first if splits[g] == "test"] == newest_first[:20]
    assert [g for g in newest_first if splits[g] == "validation"] == newest_first[20:30]


@pytest.mark.parametrize(
    "second",
    [
        {"query": "another question", "query_group": "g1", "split": "test"},
        {"query": "How is the CACHE reset?", "query_group": "g2", "split": "test"},
    ],
    ids=["same group", "same query"],
)
def test_a_group_or_query_in_two_splits_is_refused(second):
    with pytest.raises(LeakySplit, match="stands in train and in test"):
        check_split([pair(), pair(**second)])


def test_the_ledger_remembers_slices_over_data_sets(tmp_path):
    db = Database(tmp_path / "ragtune.db")
    SliceLedger(db).record(
        [pair("first query", split="test"), pair("second query"), pair("third", split="validation")], "t1"
    )
    SliceLedger(db).record([pair("second query", split="test"), pair("first query")], "t2")
    held_out, trained = SliceLedger(db).slices(
        {"First query!": "a", "second query": "b", "third": "c", "new": "d"}
    )
    assert (held_out, trained) == ({"a", "b"}, {"c"})
    db.close()


def test_synthetic_queries_are_not_remembered(tmp_path):
    db = Database(tmp_path / "ragtune.db")
    SliceLedger(db).record([pair("made up", kind="synthetic")], "t1")
    assert SliceLedger(db).slices({"made up": "a"}) == (set(), set())
    db.close()
