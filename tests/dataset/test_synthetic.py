from __future__ import annotations

import math

from tests.dataset.samples import pair, question

from ragtune_mcp.core.dataset.synthetic import SHARE, WEIGHT, synthetic_pairs

BODY = (
    "First stop the server, then delete the folder, then start it again and "
    "wait until the lights are green and steady."
)


def documents(count):
    return {
        f"doc{i}": f"Heading {question(i)}\n\n{BODY} {question(1000 + i)} {question(1000 + i)}"
        for i in range(count)
    }


def rated(count=20, split="train"):
    return [
        pair(
            question(i + 500), f"Doc {i}.", document_id=f"r{i}", query_group=f"g{i}", weight=0.5, split=split
        )
        for i in range(count)
    ]


def test_a_heading_asks_for_its_document():
    found = synthetic_pairs(documents(3), rated())
    headings = [p for p in found if p.query.startswith("Heading")]
    assert {(p.query, p.document_id) for p in headings} == {
        (f"Heading {question(i)}", f"doc{i}") for i in range(3)
    }
    assert all(
        (p.kind, p.label, p.weight, p.split, p.feedback_ids) == ("synthetic", 1, WEIGHT, "train", ())
        for p in found
    )


def test_the_item_name_of_project_memory_is_not_part_of_the_question():
    found = synthetic_pairs({"conport:decision/4": f"Decision: Use one writer per fact\n\n{BODY}"}, rated())
    assert [p.query for p in found] == ["Use one writer per fact"]


def test_terms_that_single_a_document_out_ask_for_it():
    words = [question(i).split() for i in range(30)]
    texts = {f"d{i}": " ".join([BODY, *words[i], *words[i], *words[(i + 1) % 30]]) for i in range(30)}
    found = synthetic_pairs(texts, rated(60))
    assert len(found) == 30
    for p in found:
        assert set(p.query.split()) <= set(words[int(p.document_id[1:])]) | set(
            words[(int(p.document_id[1:]) + 1) % 30]
        )


def test_their_weight_is_capped_by_that_of_the_rated_positives():
    positives = rated(8)
    found = synthetic_pairs(documents(40), positives)
    assert math.fsum(p.weight for p in found) <= SHARE * math.fsum(p.weight for p in positives)
    assert len(found) == 10
    assert synthetic_pairs(documents(40), positives) == found
    assert synthetic_pairs(documents(40), positives, seed=7) != found


def test_near_duplicates_of_held_out_queries_are_left_out():
    held_out = pair(f"heading {question(0)}?", "x", split="test", query_group="t")
    assert f"Heading {question(0)}" not in {
        p.query for p in synthetic_pairs(documents(3), [*rated(), held_out])
    }


def test_a_near_duplicate_of_a_training_query_joins_its_group():
    known = pair(f"heading {question(0)}?", "x", query_group="known")
    groups = {p.query: p.query_group for p in synthetic_pairs(documents(3), [*rated(), known])}
    assert groups[f"Heading {question(0)}"] == "known"


def test_a_heading_of_several_documents_asks_for_none():
    texts = {f"d{i}": f"Getting started\n\n{BODY} {question(i)}" for i in range(3)}
    assert not [p for p in synthetic_pairs(texts, rated()) if p.query == "Getting started"]


def test_secrets_are_masked():
    found = synthetic_pairs({"d": f"Ask ann@mail.com today\n\n{BODY} bob@mail.com"}, rated())
    assert all("mail.com" not in p.query + p.document for p in found)
    assert found
