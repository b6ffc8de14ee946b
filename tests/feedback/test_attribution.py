from __future__ import annotations

import random

import pytest

from ragtune_mcp.core.feedback.attribution import MAX_DOCUMENTS, Attributor

WORDS = [
    f"{a}{b}"
    for a in "ba be bi bo bu da de di do du".split()
    for b in "la le li lo lu ma me mi mo mu".split()
]


def text(seed, words=80):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


DOCUMENTS = {f"doc{i}": text(i) for i in range(30)}


def ids(attributor, answer):
    return [m.document_id for m in attributor.match(answer)]


def test_a_quoted_sentence_is_found_in_its_document():
    quote = " ".join(DOCUMENTS["doc7"].split()[10:40])
    (match,) = Attributor(DOCUMENTS).match(f"Here is what I found. {quote} I hope it helps.")
    assert (match.document_id, match.how) == ("doc7", "quoted")
    assert 0.5 < match.overlap <= 1


def test_a_quotation_with_edits_is_found():
    words = DOCUMENTS["doc3"].split()[:40]
    words[12], words[25] = "changed", "edited"
    assert ids(Attributor(DOCUMENTS), " ".join(words)) == ["doc3"]


def test_html_and_case_do_not_hide_a_quotation():
    quote = " ".join(DOCUMENTS["doc5"].split()[:30]).upper()
    assert ids(Attributor(DOCUMENTS), f"<div><p>{quote}</p></div>") == ["doc5"]


@pytest.mark.parametrize("answer", ["", "I do not know.", text(999), " ".join(DOCUMENTS["doc1"].split()[:8])])
def test_an_answer_of_its_own_words_is_attributed_to_nothing(answer):
    assert not ids(Attributor(DOCUMENTS), answer)


def test_a_short_document_quoted_whole_is_found():
    documents = {**DOCUMENTS, "short": "Set the retry limit to seven before release."}
    assert ids(Attributor(documents), "Well: set the retry limit to seven before release, always.") == [
        "short"
    ]


def test_boilerplate_shared_by_many_documents_attributes_nothing():
    boilerplate = text(1000, 30)
    documents = {name: f"{boilerplate} {body}" for name, body in DOCUMENTS.items()}
    assert not ids(Attributor(documents), boilerplate)


def test_a_document_named_by_its_id_is_found():
    documents = {"docs/setup.md#install": text(1), "cache": text(2)}
    found = Attributor(documents).match("See docs/setup.md#install. The cache is fine.")
    assert [(m.document_id, m.how) for m in found] == [("docs/setup.md#install", "named")]


def test_no_more_than_the_surest_documents_are_returned():
    answer = " ".join(" ".join(body.split()[:40]) for body in list(DOCUMENTS.values())[:8])
    found = Attributor(DOCUMENTS).match(answer)
    assert len(found) <= MAX_DOCUMENTS
    assert [m.overlap for m in found] == sorted((m.overlap for m in found), reverse=True)


def test_the_order_of_the_documents_does_not_matter():
    quote = " ".join(DOCUMENTS["doc9"].split()[:30])
    backwards = dict(reversed(DOCUMENTS.items()))
    assert Attributor(backwards).match(quote) == Attributor(DOCUMENTS).match(quote)
