"""kill -9 during a re-index: afterwards the old or the new state, complete, and the next run finishes."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.retrieval.support import HashBag, document, vector_ids

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.retrieval.catalog import Catalog
from ragtune_mcp.core.retrieval.chroma import ChromaVectors
from ragtune_mcp.core.retrieval.documents import DocumentStore, Scan
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.keeper import Owner
from ragtune_mcp.core.retrieval.reindex import build_collection
from ragtune_mcp.core.retrieval.store import ChromaStore, stop_store
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
OLD, NEW = HashBag("old"), HashBag("new")
TEXTS = {f"d{i:03}": f"document {i} speaks of thing{i % 7}" for i in range(90)}

POINTS = [
    ("catalog", "insert", 1, "before"),
    ("catalog", "insert", 1, "after"),
    ("chroma", "create", 1, "after"),
    ("chroma", "upsert", 1, "before"),
    ("chroma", "upsert", 1, "after"),
    ("catalog", "wrote", 1, "after"),
    ("chroma", "upsert", 3, "after"),
    ("catalog", "wrote", 4, "before"),
    ("chroma", "upsert", 6, "after"),
    ("catalog", "wrote", 6, "after"),
    ("catalog", "flip", 1, "before"),
    ("catalog", "flip", 1, "after"),
]


class House:
    """One workspace with documents and the collection of the old model, built."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root, Settings.load(root))
        self.workspace.prepare()
        self.db = Database(self.workspace.database)
        self.documents = DocumentStore(self.db)
        self.index = VectorIndex(self.workspace, self.db)
        self.put(TEXTS)

    def put(self, texts):
        docs = tuple(document(i, t) for i, t in texts.items())
        self.documents.apply(self.documents.plan(Scan("files", docs, None)))

    def rebuild(self, *point):
        command = [
            sys.executable,
            "-m",
            "tests.faults.rebuild",
            str(self.workspace.root),
            "new",
            *map(str, point),
        ]
        return subprocess.Popen(command, cwd=ROOT)

    def answers(self, encoder):
        """The full ranking of a few queries, or None where the version does not answer to this model."""
        try:
            found = self.index.query(
                "v1", encoder.digest, encoder.encode(["thing3", "document 11"]), len(TEXTS)
            )
        except NotReady:
            return None
        return [[hit.doc_id for hit in hits] for hits in found]

    def serving(self):
        ready = Catalog(self.db).find("v1", "ready")
        return None if ready is None else ready.digest

    def check_complete(self, encoder):
        """Every document has exactly the vector of its present text."""
        collection = self.index.usable("v1", encoder.digest)
        texts = self.documents.all_texts()
        chroma = ChromaVectors(ChromaStore(self.workspace))
        assert chroma.ids(collection) == vector_ids(texts)
        for doc_id, text in texts.items():
            (stored,) = chroma.get(collection, list(vector_ids({doc_id: text}))).values()
            assert np.allclose(stored, encoder.encode([text])[0], atol=1e-5)
        assert self.index.count("v1") == len(texts)
        assert self.index.is_ready("v1")


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    build_collection(house.index, house.documents, "v1", OLD)
    yield house
    stop_store(house.workspace)
    house.db.close()


@pytest.mark.parametrize("point", POINTS, ids=lambda p: "-".join(map(str, p)))
def test_a_kill_at_any_step_leaves_the_old_or_the_new_index_complete(house, point):
    before = house.answers(OLD)
    assert house.rebuild(*point).wait(60) == -signal.SIGKILL
    if house.serving() == OLD.digest:
        assert house.answers(OLD) == before
    else:
        assert point[1:] == ("flip", 1, "after")
        house.check_complete(NEW)
    assert house.rebuild().wait(60) == 0
    house.check_complete(NEW)
    house.index.prune(lambda: ["v1"])
    assert len(Catalog(house.db).all()) == 1
    house.check_complete(NEW)


def test_random_kills_while_documents_change_lose_nothing(house):
    random_ = random.Random(7)
    texts = dict(TEXTS)
    for round_ in range(10):
        process = house.rebuild()
        timer = threading.Timer(random_.uniform(0.2, 1.2), process.kill)
        timer.start()
        texts[f"d{random_.randrange(90):03}"] = f"edited in round {round_}"
        texts.pop(f"d{random_.randrange(90):03}", None)
        texts[f"new{round_}"] = f"arrived in round {round_}"
        house.put(texts)
        process.wait(60)
        timer.cancel()
        assert house.serving() in (OLD.digest, NEW.digest)
        assert house.answers(OLD if house.serving() == OLD.digest else NEW) is not None
    assert house.rebuild().wait(60) == 0
    house.check_complete(NEW)


def test_a_store_killed_during_a_build_is_replaced_and_the_build_ends_well(house):
    process = house.rebuild()
    for _ in range(3):
        owner = Owner.read(house.workspace.chroma_owner)
        if owner is not None and owner.is_alive:
            os.kill(owner.pid, signal.SIGKILL)
        try:
            process.wait(0.4)
        except subprocess.TimeoutExpired:
            continue
    assert process.wait(60) == 0
    house.check_complete(NEW)
