"""Properties of the index that only a real Chroma can show."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.retrieval.support import HashBag, Pool, apply_plan

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.retrieval.catalog import Catalog
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.documents import DocumentStore
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.reindex import plan_index
from ragtune_mcp.core.retrieval.search import Searcher
from ragtune_mcp.core.retrieval.store import ChromaStore, connect, stop_store
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytestmark = pytest.mark.real

DATA = Path(__file__).parents[3] / "shared" / "data" / "adi"


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path, Settings.load(tmp_path))
    workspace.prepare()
    yield workspace
    stop_store(workspace)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def topical(rng, n, dimension=384):
    """Vectors in 300 topics, as texts have them."""
    topics = np.random.default_rng(0).standard_normal((300, dimension))
    return unit(topics[rng.integers(0, 300, n)] + 0.8 * rng.standard_normal((n, dimension)))


def unstructured(rng, n, dimension=384):
    """Independent directions: the hardest case there is for an approximate index."""
    return unit(rng.standard_normal((n, dimension)))


@pytest.mark.parametrize(("draw", "floor"), [(topical, 1.0), (unstructured, 0.99)])
def test_at_ten_thousand_documents_the_index_finds_what_exact_search_finds(workspace, draw, floor):
    rng = np.random.default_rng(3)
    vectors, queries = draw(rng, 10_000), draw(rng, 100)
    catalog = Catalog(Database(workspace.database))
    chroma = ChromaVectors(ChromaStore(workspace))
    collection = catalog.insert("recall", "v1", "digest", 384)
    chroma.create("recall", {"digest": "digest"})
    ids = [f"d{i}" for i in range(len(vectors))]
    for start in range(0, len(ids), 1000):
        chroma.upsert(collection, ids[start : start + 1000], vectors[start : start + 1000])
    found = chroma.query(collection, queries, 10)
    scores = queries @ vectors.T
    exact = np.argsort(-scores, axis=1)[:, :10]
    hits = [
        len({n.doc_id for n in row} & {ids[i] for i in best}) for row, best in zip(found, exact, strict=True)
    ]
    assert np.mean(hits) / 10 >= floor
    for row, row_scores in zip(found, scores, strict=True):
        assert all(abs(n.score - row_scores[int(n.doc_id[1:])]) < 1e-4 for n in row)


@pytest.mark.skipif(not DATA.exists(), reason="the shared test data are not here")
def test_a_corpus_is_indexed_searched_and_found_again_after_a_restart(workspace):
    (workspace.root / "corpus.jsonl").write_bytes((DATA / "corpus.jsonl").read_bytes())
    db = Database(workspace.database)
    documents, index, pool = DocumentStore(db), VectorIndex(workspace, db), Pool(v1=HashBag())
    apply_plan(plan_index(workspace, documents), documents, index, pool, ["v1"])
    rows = [json.loads(line) for line in (DATA / "corpus.jsonl").read_text().split("\n") if line]
    assert index.count("v1") == len(rows)
    searcher = Searcher(index, documents, pool)
    before = [searcher.search("v1", row["title"], 3) for row in rows[:10]]
    stop_store(workspace)
    after = [searcher.search("v1", row["title"], 3) for row in rows[:10]]
    assert after == before
    assert plan_index(workspace, documents).changes == 0


def test_the_collection_in_chroma_says_whose_vectors_it_holds(workspace):
    (workspace.root / "a.md").write_text("# A\n\ntext\n")
    db = Database(workspace.database)
    documents, index, encoder = DocumentStore(db), VectorIndex(workspace, db), HashBag()
    apply_plan(plan_index(workspace, documents), documents, index, Pool(v1=encoder), ["v1"])
    port = json.loads(workspace.chroma_owner.read_text())["port"]
    (collection,) = connect("127.0.0.1", port, ssl=False).list_collections()
    assert collection.metadata == {
        "workspace": workspace.id,
        "version": "v1",
        "digest": encoder.digest,
        "dimension": encoder.dimension,
        "max_tokens": encoder.max_tokens,
    }
    assert collection.configuration_json["hnsw"]["space"] == "cosine"
    assert collection.count() == 1
