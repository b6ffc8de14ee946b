import pytest
from tests.retrieval.support import HashBag, Pool, document

from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.retrieval.documents import Scan
from ragtune_mcp.core.retrieval.reindex import build_collection
from ragtune_mcp.core.retrieval.search import Searcher


@pytest.fixture
def pool():
    return Pool(base=HashBag("a"), tuned=HashBag("b"))


@pytest.fixture
def searcher(index, documents, pool):
    return Searcher(index, documents, pool)


@pytest.fixture
def fill(documents, index, pool):
    def fill(texts, versions=("base", "tuned")):
        docs = tuple(document(i, t, origin=f"{i}.md") for i, t in texts.items())
        documents.apply(documents.plan(Scan("files", docs, None)))
        for version in versions:
            build_collection(index, documents, version, pool.get(version))

    return fill


TEXTS = {
    "cat": "the cat sat on the mat",
    "setup": "install the server with pip",
    "rate": "rate each document",
}


def test_hits_carry_text_source_rank_and_score(searcher, fill):
    fill(TEXTS)
    hits = searcher.search("base", "install with pip", 2)
    assert [hit.rank for hit in hits] == [1, 2]
    assert (hits[0].id, hits[0].text, hits[0].source) == ("setup", TEXTS["setup"], "setup.md")
    assert 1 >= hits[0].score > hits[1].score >= -1


def test_each_version_ranks_with_its_own_vectors(searcher, fill, pool):
    fill(TEXTS)
    for version in ("base", "tuned"):
        encoder = pool.get(version)
        expected = float((encoder.encode(["sat on a mat"]) @ encoder.encode([TEXTS["cat"]]).T)[0, 0])
        assert searcher.search(version, "sat on a mat", 1)[0].score == pytest.approx(expected, abs=1e-5)


def test_a_deleted_document_is_not_found_even_before_the_index_is_synced(searcher, fill, documents):
    fill({f"d{i:02}": f"common words {i}" for i in range(30)})
    keep = tuple(document(f"d{i:02}", f"common words {i}") for i in range(25, 30))
    documents.apply(documents.plan(Scan("files", keep, None)))
    hits = searcher.search("base", "common words 3", 5)
    assert {hit.id for hit in hits} == {d.doc_id for d in keep}
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_vectors_left_behind_by_a_killed_removal_hide_nothing(searcher, fill, documents, index):
    near = {f"gone{i:03}": f"common words {i}" for i in range(150)}
    kept = {f"kept{i:02}": f"other things {i}" for i in range(20)}
    fill({**near, **kept}, versions=("base",))
    docs = tuple(document(i, t, origin=f"{i}.md") for i, t in kept.items())
    documents.apply(documents.plan(Scan("files", docs, None)))
    # The rows go first, then the vectors; this process was killed in between.
    catalog, serving = index._catalog, index._catalog.find("base", "ready").name
    catalog.forgot(serving, catalog.orphans(serving))
    assert index.is_ready("base")
    assert {hit.id[:4] for hit in searcher.search("base", "common words 3", 5)} == {"kept"}
    assert len(searcher.search("base", "common words 3", 5)) == 5
    assert {hit.id for hit in searcher.search("base", "common words", 50)} == set(kept)


def test_hits_carry_the_present_text(searcher, fill):
    fill(TEXTS)
    fill({**TEXTS, "cat": "the dog sat on the mat"}, versions=())
    assert searcher.search("base", "sat on the mat", 1)[0].text == "the dog sat on the mat"


def test_asking_for_more_than_there_is_gives_all(searcher, fill):
    fill(TEXTS)
    assert len(searcher.search("base", "anything", 50)) == 3


def test_an_empty_workspace_says_what_to_call(searcher):
    with pytest.raises(NotReady, match="index_documents"):
        searcher.search("base", "x", 3)


def test_a_version_without_an_index_says_what_to_call(searcher, fill):
    fill(TEXTS, versions=("base",))
    with pytest.raises(NotReady, match="tuned"):
        searcher.search("tuned", "x", 3)


def test_the_mining_corpus_gives_nearest_documents_for_many_queries(searcher, fill):
    fill(TEXTS)
    corpus = searcher.corpus("tuned")
    first, second = corpus.nearest(["sat on the mat", "install"], 2)
    assert (first[0].id, second[0].id) == ("cat", "setup")
    assert first[0].text == TEXTS["cat"]
    assert corpus.texts(["cat", "nope"]) == {"cat": TEXTS["cat"]}
    assert corpus.nearest([], 3) == []
