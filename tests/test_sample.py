from __future__ import annotations

import json
from collections import Counter

import pytest
from scripts.sample_corpus import SAMPLE, documents, qrels, queries

from ragtune_mcp.core.dataset.grouping import group_queries

KINDS = {
    "decisions": {"summary", "rationale", "implementation_details", "tags"},
    "system_patterns": {"name", "description", "tags"},
    "custom_data": {"category", "key", "value"},
    "progress": {"status", "description"},
}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return documents()


@pytest.fixture(scope="module")
def feedback() -> list[dict[str, object]]:
    lines = (SAMPLE / "feedback.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def test_the_whole_sample_fits_into_one_megabyte() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= 1_000_000


def test_every_section_is_one_document_of_the_index(texts: dict[str, str]) -> None:
    headings = 0
    for path in (SAMPLE / "knowledge").glob("*.md"):
        lines = path.read_text(encoding="utf-8").split("\n")
        assert lines[0].startswith("# ")
        headings += sum(line.startswith("## ") for line in lines)
    assert sum(name.startswith("knowledge/") for name in texts) == headings
    assert not [name for name in texts if "~" in name]


def test_no_section_is_said_twice(texts: dict[str, str]) -> None:
    bodies = Counter(text.split("\n\n", 1)[1] for text in texts.values())
    assert max(bodies.values()) == 1


def test_conport_items_have_exactly_the_fields_of_their_kind() -> None:
    items = json.loads((SAMPLE / "conport.json").read_text(encoding="utf-8"))
    assert items.keys() == KINDS.keys()
    for kind, rows in items.items():
        assert all(row.keys() == KINDS[kind] for row in rows), kind
    keys = [(row["category"], row["key"]) for row in items["custom_data"]]
    assert len(keys) == len(set(keys))


def test_query_ids_and_texts_are_unique() -> None:
    lines = [line for line in (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").split("\n") if line]
    rows = [json.loads(line) for line in lines]
    assert len({row["_id"] for row in rows}) == len(rows)
    assert len({row["text"].strip().lower() for row in rows}) == len(rows)


def test_every_query_is_judged_in_exactly_one_part() -> None:
    train, test = qrels("train"), qrels("test")
    assert not train.keys() & test.keys()
    assert train.keys() | test.keys() == queries().keys()


def test_judgements_name_existing_documents_with_grades_one_to_three(texts: dict[str, str]) -> None:
    for part in ("train", "test"):
        judged = qrels(part)
        assert {document for row in judged.values() for document in row} <= texts.keys()
        assert {grade for row in judged.values() for grade in row.values()} <= {1, 2, 3}
        assert all(1 <= len(row) <= 3 for row in judged.values())
        rows = (SAMPLE / f"qrels_{part}.tsv").read_text(encoding="utf-8").split("\n")
        assert rows[0] == "query-id\tcorpus-id\tscore"
        assert len(set(rows)) == len(rows)


def test_no_test_query_has_a_near_duplicate_among_the_rated_ones(feedback: list[dict[str, object]]) -> None:
    asked = queries()
    held_out = {asked[query] for query in qrels("test")}
    rated = {str(row["query"]) for row in feedback if row["query"]}
    group_of = group_queries(held_out | rated)
    assert not {group_of[query] for query in held_out} & {group_of[query] for query in rated}


def test_rated_queries_carry_the_text_of_their_id(feedback: list[dict[str, object]]) -> None:
    asked = queries()
    for row in feedback:
        if "query_id" in row:
            assert row["query"] == asked[str(row["query_id"])]


def test_feedback_has_usable_rows_of_eight_raters_and_of_each_broken_kind(
    texts: dict[str, str], feedback: list[dict[str, object]]
) -> None:
    usable = [
        row for row in feedback if row.get("query_id") and row["doc_id"] in texts and row["age_days"] <= 60
    ]
    assert {row["rating"] for row in usable} == {1, 2, 3, 4, 5}
    assert {row["rater"] for row in usable} == {f"r{number}" for number in range(1, 9)}
    assert {row["rating"] for row in usable if row["rater"] == "r8"} == {5}
    broken = [row for row in feedback if "doc_id" in row and "query_id" not in row]
    assert {0, 6, "five", None} <= {row["rating"] for row in broken}
    assert "" in {row["query"] for row in broken}
    assert {row["doc_id"] for row in broken} - texts.keys()
    assert any(row["age_days"] > 90 for row in feedback)


def test_answers_in_the_original_shape_name_no_documents_and_most_quote_one(
    texts: dict[str, str], feedback: list[dict[str, object]]
) -> None:
    answers = [row for row in feedback if "response" in row]
    assert answers
    assert all(row["document_ids"] == [] and row["session_id"] == "unknown" for row in answers)
    quotes = [str(row["response"]).split("<blockquote>")[-1].split("</blockquote>")[0] for row in answers]
    quoting = sum(any(quote in text for text in texts.values()) for quote in quotes)
    assert 0 < len(answers) - quoting < quoting
