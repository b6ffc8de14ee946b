import pytest
from tests.retrieval.support import HashBag, Pool, apply_plan, document, vector_ids

from ragtune_mcp.core.errors import InvalidInput, JobCancelled, NotReady
from ragtune_mcp.core.retrieval import reindex
from ragtune_mcp.core.retrieval.catalog import Catalog
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.documents import Scan
from ragtune_mcp.core.retrieval.reindex import build_collection, plan_index
from ragtune_mcp.core.retrieval.store import ChromaStore


@pytest.fixture
def fill(documents):
    def fill(texts):
        documents.apply(documents.plan(Scan("files", tuple(document(i, t) for i, t in texts.items()), None)))

    return fill


@pytest.fixture
def chroma(workspace, index):
    return ChromaVectors(ChromaStore(workspace))


def numbered(n, word="text"):
    return {f"d{i:03}": f"{word} number {i}" for i in range(n)}


def test_a_first_build_encodes_every_document_once_and_serves(index, documents, fill):
    fill(numbered(10))
    encoder = HashBag()
    report = build_collection(index, documents, "v1", encoder)
    assert (report.created, report.encoded, report.total) == (True, 10, 10)
    assert sorted(encoder.encoded) == sorted(numbered(10).values())
    assert index.is_ready("v1")


def test_nothing_is_encoded_when_nothing_changed(index, documents, fill):
    fill(numbered(10))
    build_collection(index, documents, "v1", HashBag())
    again = HashBag()
    report = build_collection(index, documents, "v1", again)
    assert (report.created, report.encoded, report.removed) == (False, 0, 0)
    assert again.encoded == []


def test_only_what_changed_is_encoded_and_what_vanished_is_forgotten(index, documents, fill, chroma):
    fill(numbered(10))
    build_collection(index, documents, "v1", HashBag())
    texts = {**numbered(10), "d003": "changed", "new": "fresh"}
    del texts["d007"]
    fill(texts)
    encoder = HashBag()
    report = build_collection(index, documents, "v1", encoder)
    assert sorted(encoder.encoded) == ["changed", "fresh"]
    assert (report.encoded, report.removed, report.total) == (2, 1, 10)
    assert chroma.ids(index.usable("v1", encoder.digest)) == vector_ids(texts)


def test_equal_texts_are_encoded_once(index, documents, fill):
    fill({f"d{i}": "the same words" for i in range(5)})
    encoder = HashBag()
    report = build_collection(index, documents, "v1", encoder)
    assert encoder.encoded == ["the same words"]
    assert (report.encoded, report.copied, report.total) == (1, 4, 5)


def test_a_document_under_a_new_id_keeps_its_vector(index, documents, fill):
    fill(numbered(4))
    build_collection(index, documents, "v1", HashBag())
    fill({f"moved/{i}": text for i, text in numbered(4).items()})
    encoder = HashBag()
    report = build_collection(index, documents, "v1", encoder)
    assert encoder.encoded == []
    assert (report.copied, report.total) == (4, 4)
    hits = index.query("v1", encoder.digest, encoder.encode(["text number 2"]), 1)[0]
    assert hits[0].doc_id == "moved/d002"
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_an_interrupted_build_goes_on_where_it_stopped(index, documents, fill, monkeypatch):
    monkeypatch.setattr(reindex, "_BATCH", 4)
    fill(numbered(10))
    first = HashBag()

    def cancel():
        if len(first.encoded) >= 4:
            raise JobCancelled("stop")

    with pytest.raises(JobCancelled):
        build_collection(index, documents, "v1", first, cancelled=cancel)
    assert len(first.encoded) == 4
    with pytest.raises(NotReady):
        index.query("v1", first.digest, first.encode(["x"]), 1)
    second = HashBag()
    report = build_collection(index, documents, "v1", second)
    assert len(second.encoded) == 6
    assert report.total == 10


def test_documents_that_change_during_a_build_are_caught_up_before_it_serves(
    index, documents, fill, monkeypatch
):
    monkeypatch.setattr(reindex, "_BATCH", 4)
    fill(numbered(10))

    class Editing(HashBag):
        """Edits the documents while the first batches are encoded, as another process would."""

        def encode(self, texts):
            if not self.encoded:
                fill({**numbered(9), "d000": "edited", "late": "arrived late"})
            return super().encode(texts)

    encoder = Editing()
    report = build_collection(index, documents, "v1", encoder)
    assert report.total == 10
    assert index.is_ready("v1")
    for text, expected in (("edited", "d000"), ("arrived late", "late")):
        hits = index.query("v1", encoder.digest, encoder.encode([text]), 1)[0]
        assert hits[0] == (expected, pytest.approx(1, abs=1e-5))


def test_a_rebuild_for_changed_files_of_a_version_serves_the_old_vectors_until_it_is_complete(
    index, documents, fill, db
):
    fill(numbered(6))
    old, new = HashBag("a"), HashBag("b")
    build_collection(index, documents, "v1", old)
    seen = []
    build_collection(
        index,
        documents,
        "v1",
        new,
        progress=lambda share, message: seen.append(
            index.query("v1", old.digest, old.encode(["text number 3"]), 1)[0][0].doc_id
        ),
    )
    assert seen == ["d003"]
    assert index.query("v1", new.digest, new.encode(["text number 3"]), 1)[0][0].doc_id == "d003"
    assert sorted(c.state for c in Catalog(db).all()) == ["ready", "retired"]


def test_a_collection_that_chroma_lost_is_built_anew(index, documents, fill, chroma, db):
    fill(numbered(5))
    encoder = HashBag()
    build_collection(index, documents, "v1", encoder)
    chroma.drop(Catalog(db).find("v1", "ready").name)
    with pytest.raises(NotReady, match="gone"):
        index.query("v1", encoder.digest, encoder.encode(["x"]), 1)
    report = build_collection(index, documents, "v1", encoder)
    assert (report.created, report.total) == (True, 5)
    assert len(index.query("v1", encoder.digest, encoder.encode(["x"]), 5)[0]) == 5


def test_a_collection_worn_by_many_edits_is_built_anew_of_copies_while_it_serves(
    index, documents, fill, chroma, monkeypatch
):
    monkeypatch.setattr("ragtune_mcp.core.retrieval.index._FEW", 1)
    monkeypatch.setattr("ragtune_mcp.core.retrieval.index._WORN", 4)
    encoder = HashBag()
    names = []
    for edit in range(6):
        fill({f"d{i}": f"text {i} of edit {edit}" for i in range(10)})
        report = build_collection(index, documents, "v1", encoder)
        names.append(index.usable("v1", encoder.digest).name)
    assert names[0] == names[4] != names[5]
    assert (report.created, report.encoded, report.copied) == (True, 10, 0)
    asked = len(encoder.encoded)
    fill({f"d{i}": f"text {i} of edit {edit}" for i in range(10)} | {"late": "one more"})
    monkeypatch.setattr("ragtune_mcp.core.retrieval.index._WORN", 0)
    report = build_collection(index, documents, "v1", encoder)
    assert (report.created, report.encoded, report.copied) == (True, 1, 10)
    assert len(encoder.encoded) == asked + 1
    assert len(index.query("v1", encoder.digest, encoder.encode(["one more"]), 20)[0]) == 11


def test_a_half_built_collection_that_chroma_lost_is_started_again(index, documents, fill, chroma):
    fill(numbered(5))
    encoder = HashBag()
    collection = index.begin("v1", encoder)
    index.add(
        collection, encoder.digest, [documents.get("d000")], encoder.encode(["x"]), encoded=1, seconds=0
    )
    chroma.drop(collection.name)
    assert build_collection(index, documents, "v1", encoder).total == 5


def test_two_versions_are_kept_up_to_date_and_apart(index, documents, write, workspace):
    write({"a.md": "# A\n\nalpha words\n", "b.md": "# B\n\nbeta words\n"})
    pool = Pool(base=HashBag("a"), tuned=HashBag("b"))
    plan = plan_index(workspace, documents)
    reports = apply_plan(plan, documents, index, pool, ["base", "tuned"])
    assert [(r.version, r.total) for r in reports] == [("base", 2), ("tuned", 2)]
    write({"a.md": "# A\n\nalpha words again\n"})
    apply_plan(plan_index(workspace, documents), documents, index, pool, ["base", "tuned"])
    for encoder in pool.encoders.values():
        assert encoder.encoded[-1] == "A\n\nalpha words again"
        assert len(encoder.encoded) == 3
    assert index.is_ready("base")
    assert index.is_ready("tuned")


def test_progress_runs_from_nothing_to_all_over_the_versions(index, documents, workspace, write, monkeypatch):
    monkeypatch.setattr(reindex, "_BATCH", 2)
    write({f"{i}.txt": f"words {i}" for i in range(4)})
    shares = []
    apply_plan(
        plan_index(workspace, documents),
        documents,
        index,
        Pool(a=HashBag("a"), b=HashBag("b")),
        ["a", "b"],
        progress=lambda share, message: shares.append(share),
    )
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_deleting_a_file_removes_its_documents_whatever_is_indexed_next(index, documents, workspace, write):
    write({"a.md": "# A\n\nx", "docs/b.md": "# B\n\ny"})
    apply_plan(plan_index(workspace, documents), documents, index, Pool(v=HashBag()), ["v"])
    (workspace.root / "a.md").unlink()
    plan = plan_index(workspace, documents, paths=["docs"])
    assert plan.removed == ("a.md#a",)
    apply_plan(plan, documents, index, Pool(v=HashBag()), ["v"])
    assert index.count("v") == 1


def test_a_file_that_becomes_ignored_or_secret_leaves_the_index(index, documents, workspace, write):
    write({"a.md": "# A\n\nx", "b.md": "# B\n\ny", "c.md": "# C\n\nz"})
    apply_plan(plan_index(workspace, documents), documents, index, Pool(v=HashBag()), ["v"])
    write({".gitignore": "a.md\n", "b.md": "# B\n\n-----BEGIN PRIVATE KEY-----\n"})
    assert plan_index(workspace, documents).removed == ("a.md#a", "b.md#b")


@pytest.mark.parametrize("source", ["web", "chroma:", "", "chroma"])
def test_an_unknown_source_is_refused(workspace, documents, source):
    with pytest.raises(InvalidInput, match="source"):
        plan_index(workspace, documents, source=source)


def test_paths_belong_to_files(workspace, documents):
    with pytest.raises(InvalidInput, match="paths"):
        plan_index(workspace, documents, paths=["docs"], source="conport", conport=None)
