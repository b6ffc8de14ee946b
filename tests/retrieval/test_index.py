import numpy as np
import pytest
from tests.retrieval.support import HashBag, document, vector_ids

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import IntegrityError, NotReady, WrongEmbedder
from ragtune_mcp.core.retrieval.catalog import Catalog, VectorId
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.documents import Scan
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.reindex import build_collection
from ragtune_mcp.core.retrieval.store import ChromaStore


@pytest.fixture
def fill(documents):
    def fill(**texts):
        documents.apply(documents.plan(Scan("files", tuple(document(i, t) for i, t in texts.items()), None)))

    return fill


@pytest.fixture
def chroma(workspace, index):
    return ChromaVectors(ChromaStore(workspace))


def ask(index, encoder, text, version="v1", k=3):
    return [n.doc_id for n in index.query(version, encoder.digest, encoder.encode([text]), k)[0]]


def test_a_query_finds_the_nearest_documents_with_their_cosine(index, documents, fill):
    fill(a="the cat sat", b="install the server", c="rate a document")
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    (hits,) = index.query("v1", encoder.digest, encoder.encode(["install a server"]), 2)
    assert hits[0].doc_id == "b"
    exact = encoder.encode(["install the server"])[0] @ encoder.encode(["install a server"])[0]
    assert hits[0].score == pytest.approx(exact, abs=1e-5)


def test_equal_texts_are_ranked_by_id(index, documents, fill):
    fill(z="same words", m="same words", a="same words", b="other text")
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    assert ask(index, encoder, "same words") == ["a", "m", "z"]


def test_a_query_of_another_model_is_refused_although_the_dimension_fits(index, documents, fill):
    fill(a="text")
    build_collection(index, documents, "v1", HashBag("a"))
    with pytest.raises(WrongEmbedder, match="index_documents") as caught:
        ask(index, HashBag("b"), "text")
    assert HashBag("a").digest[:12] in caught.value.message
    assert HashBag("b").digest[:12] in caught.value.message


def test_vectors_of_another_model_are_not_written(index, documents, fill):
    fill(a="text")
    collection = index.begin("v1", HashBag("a"))
    other = HashBag("b")
    with pytest.raises(WrongEmbedder):
        index.add(
            collection, other.digest, [documents.get("a")], other.encode(["text"]), encoded=1, seconds=0
        )
    assert index.state("v1").indexed == 0


def test_a_vector_of_another_length_is_refused(index, documents, fill):
    fill(a="text")
    build_collection(index, documents, "v1", HashBag(dimension=64))
    with pytest.raises(WrongEmbedder, match="64"):
        index.query("v1", HashBag(dimension=64).digest, np.ones((1, 32), np.float32), 3)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused(index, documents, fill, value):
    fill(a="text")
    collection = index.begin("v1", HashBag())
    rows = np.full((1, 64), value, np.float32)
    with pytest.raises(IntegrityError):
        index.add(collection, HashBag().digest, [documents.get("a")], rows, encoded=1, seconds=0)


def test_a_collection_swapped_behind_our_back_is_noticed(index, documents, fill, db, chroma):
    fill(a="text")
    build_collection(index, documents, "v1", HashBag("a"))
    (collection,) = Catalog(db).all()
    chroma.drop(collection.name)
    chroma.create(collection.name, {"digest": HashBag("b").digest})
    fresh = VectorIndex(index._workspace, db)
    with pytest.raises(WrongEmbedder, match="expected"):
        ask(fresh, HashBag("a"), "text")


def test_no_index_says_what_to_call(index):
    with pytest.raises(NotReady, match="index_documents"):
        ask(index, HashBag(), "text")


def test_a_building_collection_does_not_answer_and_says_how_far_it_is(index, documents, fill):
    fill(a="one", b="two", c="three")
    encoder = HashBag()
    collection = index.begin("v1", encoder)
    index.add(collection, encoder.digest, [documents.get("a")], encoder.encode(["one"]), encoded=1, seconds=0)
    with pytest.raises(NotReady, match="1 of 3"):
        ask(index, encoder, "one")
    assert not index.is_ready("v1")
    assert index.state("v1").state == "building"


def test_a_document_that_changed_while_it_was_encoded_is_not_written(index, documents, fill):
    fill(a="old", b="stays")
    encoder = HashBag()
    collection = index.begin("v1", encoder)
    read = list(documents.documents(["a", "b"]).values())
    fill(a="new", b="stays")
    vectors = encoder.encode([d.text for d in read])
    assert index.add(collection, encoder.digest, read, vectors, encoded=2, seconds=0) == 1
    assert index.pending(collection) == ["a"]


def test_a_collection_is_published_only_when_complete(index, documents, fill):
    fill(a="one", b="two")
    encoder = HashBag()
    collection = index.begin("v1", encoder)
    index.add(collection, encoder.digest, [documents.get("a")], encoder.encode(["one"]), encoded=1, seconds=0)
    assert not index.publish(collection)
    index.add(collection, encoder.digest, [documents.get("b")], encoder.encode(["two"]), encoded=1, seconds=0)
    assert index.publish(collection)
    assert index.is_ready("v1")


def test_vectors_that_chroma_lost_are_noticed_before_a_collection_serves(index, documents, fill, chroma):
    fill(a="one", b="two")
    encoder = HashBag()
    collection = index.begin("v1", encoder)
    both = list(documents.documents(["a", "b"]).values())
    index.add(collection, encoder.digest, both, encoder.encode([d.text for d in both]), encoded=2, seconds=0)
    chroma.delete(collection, vector_ids({"b": "two"}))
    assert not index.publish(collection)
    index.repair(collection)
    assert index.pending(collection) == ["b"]


def test_repair_removes_vectors_that_no_row_vouches_for(index, documents, fill, chroma):
    fill(a="one")
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    collection = index.usable("v1", encoder.digest)
    chroma.upsert(collection, ["stray@0"], encoder.encode(["one"]))
    assert ask(index, encoder, "one") == ["a"]
    index.repair(collection)
    assert chroma.ids(collection) == vector_ids({"a": "one"})


def test_state_tells_what_completing_would_cost(index, documents, fill):
    fill(a="one", b="two")
    assert index.state("v1").state == "missing"
    assert index.state("v1").to_encode == 2
    assert index.state("v1").estimate_s is None
    build_collection(index, documents, "v1", HashBag())
    fill(a="one", b="changed", c="new")
    state = index.state("v1")
    assert (state.state, state.documents, state.indexed, state.to_encode) == ("ready", 3, 2, 2)
    assert state.estimate_s > 0


def test_pruning_keeps_what_serves_and_deletes_the_rest(index, documents, fill, chroma):
    fill(a="one")
    for version in ("v1", "v2", "v3"):
        build_collection(index, documents, version, HashBag(version))
    stray = f"{index._prefix}stray"
    chroma.create(stray, {"digest": "x"})
    gone = index.prune(lambda: ["v1", "v3"])
    assert len(gone) == 2
    assert stray in gone
    assert [index.count(v) for v in ("v1", "v2", "v3")] == [1, 0, 1]
    assert ask(index, HashBag("v3"), "one", "v3") == ["a"]
    with pytest.raises(NotReady):
        ask(index, HashBag("v2"), "one", "v2")


def test_a_version_that_comes_to_serve_while_pruning_runs_keeps_its_collection(index, documents, fill):
    fill(a="one")
    for version in ("v1", "v2"):
        build_collection(index, documents, version, HashBag(version))
    answers = iter(
        [["v1"], ["v1"], ["v1", "v2"]]
    )  # the last is asked in the transaction that would delete v2
    assert index.prune(lambda: next(answers)) == []
    assert ask(index, HashBag("v2"), "one", "v2") == ["a"]


def test_pruning_leaves_the_collections_of_other_workspaces(index, documents, fill, chroma):
    chroma.create("somebody-elses", {"digest": "x"})
    index.prune(lambda: [])
    assert chroma.exists("somebody-elses")
    chroma.drop("somebody-elses")


def test_pruning_leaves_the_collections_of_another_machine_with_the_same_path(
    index, workspace, documents, fill, chroma, tmp_path
):
    fill(a="one")
    other = VectorIndex(workspace, Database(tmp_path / "other" / "ragtune.db"))
    theirs, ours = other.begin("v1", HashBag()), index.begin("v1", HashBag())
    assert index.prune(lambda: ["v1"]) == []
    assert chroma.exists(theirs.name)
    assert other.prune(lambda: ["v1"]) == []
    assert chroma.exists(ours.name)


def test_a_collection_named_otherwise_before_goes_on_serving(index, workspace, db, documents, fill):
    fill(a="one")
    index._prefix = "ragtune-0a1b2c3d-"
    build_collection(index, documents, "v1", HashBag())
    later = VectorIndex(workspace, db)
    assert later.prune(lambda: ["v1"]) == []
    assert ask(later, HashBag(), "one") == ["a"]


def test_an_edit_takes_effect_at_once_and_leaves_no_old_vector(index, documents, fill, chroma):
    fill(a="old words", b="other")
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    fill(a="new words entirely", b="other")
    build_collection(index, documents, "v1", encoder)
    collection = index.usable("v1", encoder.digest)
    assert chroma.ids(collection) == vector_ids({"a": "new words entirely", "b": "other"})
    (hits,) = index.query("v1", encoder.digest, encoder.encode(["new words entirely"]), 2)
    assert hits[0] == ("a", pytest.approx(1, abs=1e-5))


def test_while_a_text_is_replaced_its_document_is_found_once(index, documents, fill, chroma):
    fill(a="old words", b="other")
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    collection = index.usable("v1", encoder.digest)
    chroma.upsert(collection, list(vector_ids({"a": "new words"})), encoder.encode(["new words"]))
    (hits,) = index.query("v1", encoder.digest, encoder.encode(["new words"]), 5)
    exact = float((encoder.encode(["old words"]) @ encoder.encode(["new words"]).T)[0, 0])
    assert hits[0] == ("a", pytest.approx(exact, abs=1e-5))
    assert [hit.doc_id for hit in hits] == ["a", "b"]


def test_a_vector_replaced_during_the_search_still_stands_for_its_document(index, documents, fill, chroma):
    fill(a="old words", b="other")
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    collection = index.usable("v1", encoder.digest)
    index._catalog.wrote(collection.name, [VectorId("a", "f" * 64)], 0, 0)
    assert ask(index, encoder, "old words")[0] == "a"


def test_ids_with_any_characters_are_found(index, documents, fill):
    ids = ["a@b", "c#d~2", "conport:custom_data/Großes Thema/k@1", "x y", "日本語.md#検索"]
    fill(**{i: f"text of number {n}" for n, i in enumerate(ids)})
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    assert sorted(ask(index, encoder, "text of number", k=9)) == sorted(ids)


def test_an_index_is_intact_only_while_chroma_holds_all_of_it(index, documents, fill, chroma):
    fill(a="one", b="two")
    encoder = HashBag()
    assert not index.is_intact("v1")
    build_collection(index, documents, "v1", encoder)
    assert index.is_intact("v1")
    collection = index.usable("v1", encoder.digest)
    chroma.delete(collection, vector_ids({"a": "one"}))
    assert index.is_ready("v1")
    assert not index.is_intact("v1")
    chroma.drop(collection.name)
    assert not index.is_intact("v1")
    build_collection(index, documents, "v1", encoder)
    assert index.is_intact("v1")
    fill(a="one", b="two", c="three")
    assert not index.is_intact("v1")
