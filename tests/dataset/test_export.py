from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.dataset.samples import PAIRS, TEXTS, pair, question

from ragtune_mcp.core.dataset.export import FORMATS, export_pairs, find_dataset, load_dataset
from ragtune_mcp.core.errors import DigestMismatch, IntegrityError, InvalidInput
from ragtune_mcp.core.feedback.records import Rejected
from ragtune_mcp.core.workspace import DatasetPaths, sha256_file

ANY_TMP = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANY_TMP
@given(st.lists(PAIRS, min_size=1, max_size=8), st.sampled_from(["csv", "json", "jsonl"]))
def test_every_format_of_pairs_returns_what_was_written(tmp_path, pairs, form):
    path = tmp_path / f"x.{form}"
    export_pairs(pairs, path, form)
    assert load_dataset(path).pairs == tuple(pairs)


@ANY_TMP
@given(TEXTS, st.lists(PAIRS, min_size=1, max_size=8))
def test_triplets_return_every_pair_of_every_query(tmp_path, query, pairs):
    # Most share a query, so that some have both sides and some have one.
    pairs = [replace(p, query=query) if n % 3 else p for n, p in enumerate(pairs)]
    manifest = export_pairs(pairs, tmp_path / "x.jsonl", "triplets")
    assert set(load_dataset(tmp_path / "x.jsonl").pairs) == set(pairs)
    assert manifest["files"]["x.jsonl"]["pairs"] == len(pairs)


def test_the_side_a_query_has_not_is_null_in_a_triplet(tmp_path):
    pairs = [
        pair(question(1), "A."),
        pair(question(1), "B.", kind="negative"),
        pair(question(2), "C.", query_group="g2", split="test"),
        pair(question(3), "D.", query_group="g3", kind="negative"),
    ]
    export_pairs(pairs, tmp_path / "x.jsonl", "triplets")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [(line["query"], line["positive"], line["negative"]) for line in lines] == [
        (question(1), "A.", "B."),
        (question(2), "C.", None),
        (question(3), None, "D."),
    ]
    assert set(load_dataset(tmp_path / "x.jsonl").pairs) == set(pairs)


def test_formulas_are_neutralised_in_csv(tmp_path):
    export_pairs([pair("=HYPERLINK(1)", "@SUM(1)")], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as handle:
        row = list(csv.DictReader(handle))[0]
    assert (row["query"], row["document"]) == ("'=HYPERLINK(1)", "'@SUM(1)")


@pytest.mark.parametrize("form", FORMATS)
def test_a_lone_surrogate_is_refused_and_nothing_is_written(tmp_path, form):
    with pytest.raises(InvalidInput, match=r"U\+D800"):
        export_pairs([pair("a\ud800")], tmp_path / "x.csv", form)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="'xml' is not one of csv, json, jsonl, triplets"):
        export_pairs([pair()], tmp_path / "x.xml", "xml")


def test_the_manifest_describes_every_file(tmp_path):
    path = tmp_path / "training_1.csv"
    manifest = export_pairs(
        [pair()], path, details={"seed": 42}, rejected=[Rejected("f9", "too_old", "x")], card="# Card\n"
    )
    paths = DatasetPaths(path)
    assert json.loads(paths.manifest.read_text()) == manifest
    assert manifest["schema"] == "ragtune.dataset/1"
    assert (manifest["dataset_id"], manifest["seed"], manifest["pairs"]) == ("training_1", 42, 1)
    for file in (path, paths.rejected, paths.card):
        assert manifest["files"][file.name]["sha256"] == sha256_file(file)
    assert json.loads(paths.rejected.read_text()) == {"feedback_id": "f9", "reason": "too_old", "detail": "x"}


def test_two_formats_of_one_stem_share_a_manifest(tmp_path):
    pairs = [pair()]
    export_pairs(pairs, tmp_path / "training_data.csv", "csv")
    export_pairs(pairs, tmp_path / "training_data.json", "json")
    assert (
        load_dataset(tmp_path / "training_data.csv").pairs
        == load_dataset(tmp_path / "training_data.json").pairs
    )
    assert load_dataset(tmp_path / "training_data.csv").manifest["files"].keys() == {
        "training_data.csv",
        "training_data.json",
    }


@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_file_is_refused(tmp_path, form):
    path = tmp_path / "x.csv"
    export_pairs([pair(), pair(document="Other.", kind="negative")], path, form)
    path.write_bytes(path.read_bytes().replace(b"noon", b"dawn"))
    with pytest.raises(DigestMismatch, match=r"x\.csv is not the file its manifest describes"):
        load_dataset(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "other/1"}'])
def test_a_broken_manifest_is_refused(tmp_path, content):
    path = tmp_path / "x.csv"
    export_pairs([pair()], path)
    DatasetPaths(path).manifest.write_text(content)
    with pytest.raises(IntegrityError, match=r"x\.manifest\.json"):
        load_dataset(path)


def test_a_failed_write_leaves_the_old_files(tmp_path):
    path = tmp_path / "x.csv"
    export_pairs([pair()], path)
    with pytest.raises(TypeError):
        export_pairs([pair()], path, details={"not": object()})
    assert load_dataset(path).pairs == (pair(),)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.csv", "x.manifest.json"]


def test_a_csv_written_by_hand_is_loaded_with_groups_and_splits(tmp_path):
    rows = "".join(f'"{question(i)}","Doc {i}",{i % 2}\n' for i in range(40))
    (tmp_path / "own.csv").write_text("\ufeffQuery,Document,Label\n" + rows, encoding="utf-8")
    dataset = load_dataset(tmp_path / "own.csv")
    assert (dataset.dataset_id, dataset.manifest, len(dataset.pairs)) == ("own", {}, 40)
    assert {p.split for p in dataset.pairs} == {"train", "validation", "test"}
    assert dataset.pairs[1] == replace(
        dataset.pairs[1],
        query=question(1),
        document="Doc 1",
        label=1.0,
        kind="positive",
        weight=1.0,
        rating=None,
    )
    assert dataset.pairs[0].kind == "negative"


def _own_csv(path, groups, splits):
    rows = "".join(
        f'"{question(i)}","Doc {i}",1,{group},{split}\n'
        for i, (group, split) in enumerate(zip(groups, splits, strict=True))
    )
    path.write_text("query,document,label,query_group,split\n" + rows, encoding="utf-8")
    return path


def test_splits_of_ones_own_are_kept_without_groups(tmp_path):
    splits = ["train", "test", "validation", "test", *["train"] * 20]
    dataset = load_dataset(_own_csv(tmp_path / "own.csv", [""] * 24, splits))
    assert [p.split for p in dataset.pairs] == splits
    assert all(p.query_group for p in dataset.pairs)


def test_one_missing_group_is_named_and_does_not_cost_the_splits_of_all(tmp_path):
    path = _own_csv(tmp_path / "own.csv", ["a", "", "b"], ["train", "test", "validation"])
    with pytest.raises(InvalidInput, match=f"the query '{question(1)}' has no query_group"):
        load_dataset(path)


def test_a_jsonl_of_bare_triplets_is_loaded(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"query": "q", "positive": "p", "negative": "n"}\n')
    assert {(p.document, p.label, p.kind) for p in load_dataset(tmp_path / "own.jsonl").pairs} == {
        ("p", 1.0, "positive"),
        ("n", 0.0, "negative"),
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "query,document\nq,d\n", "needs the columns query, document and label"),
        ("x.csv", "query,document,label\nq,d,five\n", "line 2: label 'five' is not a number"),
        ("x.csv", "query,document,label\nq,d,nan\n", "line 2: label 'nan' is not a number"),
        ("x.csv", "query,document,label\nq,d,2\n", r"label '2' is not a number in \[0, 1\]"),
        ("x.csv", "query,document,label\nq,d,1\nq,d\n", "line 3: the row has not the 3 cells"),
        ("x.csv", "query,document,label\nq,d,1,more\n", "the row has not the 3 cells"),
        ("x.csv", "query,document,label\n,d,1\n", "line 2: query '' is not a text"),
        ("x.csv", "query,document,label,weight\nq,d,1,0\n", r"weight '0' is not a number in \(0, 1\]"),
        ("x.csv", "query,document,label,kind\nq,d,1,odd\n", "the kind 'odd' is not one of"),
        ("x.csv", "query,document,label,split\nq,d,1,dev\n", "the split 'dev' is not one of"),
        ("x.csv", "query,document,label,feedback_ids\nq,d,1,a b\n", "feedback_ids 'a b' is not an array"),
        ("x.csv", "query,document,label\n", "holds no pairs"),
        ("x.csv", b"query,document,label\n\xff\xfe,d,1\n", "cannot be read as UTF-8"),
        ("x.json", '{"query": "q"}', "holds a dict, not an array"),
        ("x.json", "[{", "cannot be read as JSON"),
        ("x.json", '[{"query": "q", "document": 5, "label": 1}]', "element 1: document 5 is not a text"),
        ("x.jsonl", '{"query": "q", "document": "d", "label": true}\n', "line 1: label True is not a number"),
        ("x.jsonl", '{"query": "q"\n', "line 1 cannot be read as JSON"),
        ("x.jsonl", '\n["q"]\n', "line 2: a list is not a pair"),
        ("x.jsonl", '{"query": "q", "positive": null, "negative": null}\n', "line 1: document None is not"),
        ("x.txt", "q", "the ending '.txt' is not one of"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=message):
        load_dataset(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"nothing\.csv' does not exist"):
        load_dataset(tmp_path / "nothing.csv")


def test_a_document_of_five_megabytes_survives_csv(tmp_path):
    limit = 131_072
    csv.field_size_limit(limit)
    big = "word " * 1_000_000
    export_pairs([pair(document=big)], tmp_path / "x.csv")
    assert load_dataset(tmp_path / "x.csv").pairs[0].document == big
    assert csv.field_size_limit() == limit


def test_a_data_set_is_found_by_its_id(tmp_path):
    export_pairs([pair()], tmp_path / "training_1.jsonl", "jsonl")
    assert find_dataset(tmp_path, "training_1") == tmp_path / "training_1.jsonl"
    assert find_dataset(tmp_path, "training_2") is None
    assert find_dataset(tmp_path, "../training_1") is None
