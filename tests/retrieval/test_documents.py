import pytest
from tests.retrieval.support import document

from ragtune_mcp.core.errors import UnknownId
from ragtune_mcp.core.retrieval.documents import Scan


def scan(*docs, replaces=None, source="files"):
    return Scan(source, docs, replaces)


def put(documents, *docs, **kwargs):
    plan = documents.plan(scan(*docs, **kwargs))
    documents.apply(plan)
    return plan


def test_a_plan_tells_new_changed_unchanged_and_removed_apart(documents):
    put(documents, document("a", "1"), document("b", "2"), document("c", "3"))
    plan = documents.plan(scan(document("a", "1"), document("b", "two"), document("d", "4")))
    assert [d.doc_id for d in plan.new] == ["d"]
    assert [d.doc_id for d in plan.changed] == ["b"]
    assert plan.unchanged == 1
    assert plan.removed == ("c",)
    assert plan.changes == 3


def test_planning_changes_nothing(documents):
    documents.plan(scan(document("a", "1")))
    assert documents.count() == 0


def test_applying_a_plan_makes_the_same_scan_unchanged(documents):
    docs = (document("a", "1"), document("b", "2"))
    put(documents, *docs)
    plan = documents.plan(scan(*docs))
    assert (plan.changes, plan.unchanged) == (0, 2)
    assert documents.texts(["a", "b", "x"]) == {"a": "1", "b": "2"}


def test_documents_outside_the_scanned_origins_stay(documents):
    put(documents, document("a", "1", origin="a.md"), document("b", "2", origin="b.md"))
    plan = put(documents, document("a", "one", origin="a.md"), replaces=frozenset({"a.md"}))
    assert plan.removed == ()
    assert documents.all_texts() == {"a": "one", "b": "2"}


def test_documents_of_another_source_stay(documents):
    put(documents, document("a", "1", source="conport"), source="conport")
    put(documents, document("b", "2"))
    assert documents.all_texts() == {"a": "1", "b": "2"}


def test_an_id_that_belongs_to_another_file_is_counted_and_not_overwritten(documents):
    put(documents, document("x", "1", origin="one.jsonl"))
    plan = put(documents, document("x", "2", origin="two.jsonl"), replaces=frozenset({"two.jsonl"}))
    assert plan.skipped == {"duplicate_id": 1}
    assert documents.texts(["x"]) == {"x": "1"}


def test_the_first_of_two_equal_ids_in_a_scan_wins(documents):
    plan = put(documents, document("x", "1"), document("x", "2"))
    assert plan.skipped == {"duplicate_id": 1}
    assert documents.texts(["x"]) == {"x": "1"}


def test_a_moved_document_is_stored_but_not_counted_as_a_change(documents):
    put(documents, document("x", "1", origin="old.jsonl"))
    plan = put(
        documents, document("x", "1", origin="new.jsonl"), replaces=frozenset({"old.jsonl", "new.jsonl"})
    )
    assert plan.changes == 0
    assert documents.get("x").origin == "new.jsonl"
    assert documents.origins("files") == {"new.jsonl"}


def test_counts_name_files_and_pieces(documents):
    put(documents, document("a#1", "1", origin="a.md"))
    plan = documents.plan(
        scan(
            document("a#1", "1", origin="a.md"),
            document("a#2", "2", origin="a.md"),
            document("b", "3", origin="b.md"),
        )
    )
    assert plan.counts() == {
        "documents": 2,
        "chunks": 3,
        "updated": 2,
        "unchanged": 1,
        "removed": 0,
        "skipped": {},
    }


def test_an_unknown_document_is_named_in_the_error(documents):
    with pytest.raises(UnknownId, match="nope") as caught:
        documents.get("nope")
    assert caught.value.code == "unknown_document"


def test_more_ids_than_one_statement_takes_are_found(documents):
    docs = [document(f"d{i:05}", str(i)) for i in range(2500)]
    put(documents, *docs)
    assert len(documents.texts(d.doc_id for d in docs)) == 2500
