from __future__ import annotations

from dataclasses import replace

import pytest
from tests.dataset.samples import pair, question

from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.dataset.validate import refuse_leaks, validate
from ragtune_mcp.core.errors import LeakySplit


def fine():
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    pairs = []
    for i in range(12):
        common = {"query_group": f"g{i}", "split": splits[i % 10], "feedback_ids": (f"f{i}",)}
        pairs.append(pair(question(i), f"Good {i}.", rating=5.0, **common))
        pairs.append(pair(question(i), f"Bad {i}.", kind="negative", rating=1.0, **common))
    statistics = {
        "total_pairs": 24, "positive_pairs": 12, "negative_pairs": 12,
        "hard_negative_pairs": 0, "synthetic_pairs": 0,
        "feedback_read": 15, "feedback_used": 12, "skipped": {"too_old": 3},
    }  # fmt: skip
    return Dataset("t", tuple(pairs), {"statistics": statistics, "files": {}})


def test_a_fine_data_set_has_neither_problems_nor_warnings():
    assert validate(fine()).is_valid
    assert validate(fine()).warnings == ()


@pytest.mark.parametrize(
    ("number", "change", "problem"),
    [
        (0, {"split": "test"}, "stands in test and in train"),
        (1, {"document": "Good  0."}, "as a positive and as a negative"),
        (2, {"query": question(0), "query_group": "g0", "document": "Good 0."}, "the same document 2 times"),
        (0, {"weight": 0.0}, "weight 0.0"),
        (0, {"label": 1.5}, "label 1.5"),
        (0, {"rating": 6.0}, "rating 6.0 is out of range"),
        (0, {"label": 0.25}, "does not go with the kind positive"),
        (16, {"kind": "synthetic"}, "a synthetic pair stands in test"),
        (0, {"feedback_ids": ()}, "without the feedback"),
    ],
)
def test_a_broken_pair_is_a_problem(number, change, problem):
    dataset = fine()
    pairs = list(dataset.pairs)
    pairs[number] = replace(pairs[number], **change)
    found = validate(replace(dataset, pairs=tuple(pairs)))
    assert not found.is_valid
    assert any(problem in p for p in found.problems), found.problems


def test_near_duplicate_queries_in_two_splits_are_a_problem():
    dataset = fine()
    twin = replace(dataset.pairs[0], query=f"{question(16)} now", query_group="other", document="Twin.")
    first = replace(
        dataset.pairs[0], query=f"{question(16)} no", query_group="g16", document="First.", split="test"
    )
    found = validate(replace(dataset, pairs=(*dataset.pairs, first, twin)))
    assert any("near-duplicate" in p for p in found.problems)


def test_a_leaking_data_set_is_refused_for_training():
    dataset = fine()
    refuse_leaks(dataset)
    twin = replace(dataset.pairs[0], query=f"{question(16)} now", query_group="other", document="Twin.")
    first = replace(twin, query=f"{question(16)} no", query_group="g16", document="First.", split="test")
    with pytest.raises(LeakySplit, match="near-duplicate"):
        refuse_leaks(replace(dataset, pairs=(*dataset.pairs, first, twin)))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("feedback_read", 16, "16 entries were read"),
        ("positive_pairs", 11, "do not make the total"),
        ("feedback_used", 11, "15 entries were read"),
    ],
)
def test_counts_that_do_not_add_up_are_a_problem(name, value, problem):
    dataset = fine()
    statistics = {**dataset.manifest["statistics"], name: value}
    found = validate(replace(dataset, manifest={**dataset.manifest, "statistics": statistics}))
    assert any(problem in p for p in found.problems)


def test_an_entry_said_to_be_used_must_stand_on_a_pair():
    dataset = fine()
    statistics = {**dataset.manifest["statistics"], "feedback_used": 13, "skipped": {"too_old": 2}}
    found = validate(replace(dataset, manifest={**dataset.manifest, "statistics": statistics}))
    assert found.problems == ("13 entries are said to be used, but the pairs name 12.",)


@pytest.mark.parametrize(
    ("pairs", "warning"),
    [
        (fine().pairs[:4], "4 pairs"),
        ([p for p in fine().pairs if p.kind == "positive"], "100% of the pairs are positives"),
        ([p for p in fine().pairs if p.split != "test"], "The test split holds no positive pair"),
        (
            [*fine().pairs, *(pair(question(0), f"More {i}.", query_group="g0") for i in range(12))],
            "One group of",
        ),
    ],
)
def test_lopsided_data_sets_are_warned_about(pairs, warning):
    found = validate(Dataset("t", tuple(pairs), {}))
    assert found.is_valid
    assert any(warning in w for w in found.warnings)
