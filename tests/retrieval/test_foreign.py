import hashlib

import httpx
import pytest
from chromadb.errors import InternalError

from ragtune_mcp.core.errors import ChromaUnavailable, InvalidInput, PathOutsideWorkspace, UnknownId
from ragtune_mcp.core.retrieval import foreign
from ragtune_mcp.core.retrieval.foreign import scan_chroma


@pytest.fixture
def theirs(workspace):
    """A Chroma folder of the user's own, still open in its own client."""
    import chromadb
    from chromadb.config import Settings

    workspace.settings.ragtune_source_chroma = "my_chroma"
    path = str(workspace.root / "my_chroma")
    client = chromadb.PersistentClient(path=path, settings=Settings(anonymized_telemetry=False))
    yield client
    client.close()


def fill(client, n=3):
    collection = client.get_or_create_collection("notes", embedding_function=None)
    collection.add(
        ids=[f"n{i}" for i in range(n)],
        embeddings=[[float(i), 1.0] for i in range(n)],
        documents=[f"note number {i}" for i in range(n)],
        metadatas=[{"title": f"Note {i}"} for i in range(n)],
    )
    return collection


def test_documents_are_read_with_their_ids_and_titles(workspace, theirs):
    fill(theirs)
    scan = scan_chroma(workspace, "notes")
    assert (scan.source, scan.replaces) == ("chroma:notes", None)
    assert [(d.doc_id, d.title, d.text) for d in scan.documents][0] == (
        "chroma:notes/n0",
        "Note 0",
        "note number 0",
    )
    assert len(scan.documents) == 3


def test_what_was_written_a_moment_ago_is_read(workspace, theirs):
    collection = fill(theirs)
    scan_chroma(workspace, "notes")
    collection.add(ids=["late"], embeddings=[[5.0, 1.0]], documents=["late note"])
    assert "late note" in {d.text for d in scan_chroma(workspace, "notes").documents}


def test_more_entries_than_one_page_are_read(workspace, theirs):
    fill(theirs, 2300)
    assert len({d.doc_id for d in scan_chroma(workspace, "notes").documents}) == 2300


def test_reading_leaves_the_users_store_as_it_is(workspace, theirs):
    fill(theirs)
    folder = workspace.root / "my_chroma"
    before = {f: hashlib.sha256(f.read_bytes()).digest() for f in folder.rglob("*") if f.is_file()}
    scan_chroma(workspace, "notes")
    assert {f: hashlib.sha256(f.read_bytes()).digest() for f in folder.rglob("*") if f.is_file()} == before


def test_entries_without_text_are_counted(workspace, theirs):
    theirs.create_collection("bare", embedding_function=None).add(ids=["a"], embeddings=[[1.0, 2.0]])
    scan = scan_chroma(workspace, "bare")
    assert (scan.documents, scan.skipped) == ((), {"no_text": 1})


def test_an_unknown_collection_names_those_there_are(workspace, theirs):
    fill(theirs)
    with pytest.raises(UnknownId, match="nope") as caught:
        scan_chroma(workspace, "nope")
    assert "notes" in caught.value.hint


def test_a_server_is_read_by_url(workspace, chroma_url):
    from ragtune_mcp.core.retrieval.store import connect, parse_url

    client = connect(*parse_url(chroma_url, "X"))
    fill(client)
    workspace.settings.ragtune_source_chroma = chroma_url
    try:
        assert len(scan_chroma(workspace, "notes").documents) == 3
    finally:
        client.delete_collection("notes")


@pytest.mark.parametrize("fault", [httpx.ReadError("gone"), InternalError("disk full")])
def test_a_server_that_stops_answering_between_two_pages_is_named(workspace, monkeypatch, fault):
    class Dying:
        def get_collection(self, *_, **__):
            return self

        def get(self, *, offset, **_):
            if offset:
                raise fault
            return {"ids": ["a"], "documents": ["text"], "metadatas": [None]}

    monkeypatch.setattr(foreign, "connect", lambda *_: Dying())
    workspace.settings.ragtune_source_chroma = "http://theirs:8000"
    with pytest.raises(ChromaUnavailable, match="http://theirs:8000 stopped answering"):
        scan_chroma(workspace, "notes")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", InvalidInput),
        ("no/such/folder", InvalidInput),
        ("../elsewhere", PathOutsideWorkspace),
        ("http://127.0.0.1:9", ChromaUnavailable),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(workspace, value, error):
    workspace.settings.ragtune_source_chroma = value
    with pytest.raises(error):
        scan_chroma(workspace, "notes")
