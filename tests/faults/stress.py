"""Run as a program: search, index, rebuild and prune at random, and check every answer.

Arguments: workspace, name of this process, operations. A text never changes under its id, so the
score of every hit is known exactly for each model: a vector of another model would show at once.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from tests.retrieval.support import HashBag, Pool, apply_plan, document

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import NotReady
from ragtune_mcp.core.retrieval.documents import DocumentStore, Scan
from ragtune_mcp.core.retrieval.index import VectorIndex
from ragtune_mcp.core.retrieval.reindex import build_collection
from ragtune_mcp.core.retrieval.search import Searcher
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

VERSIONS = ("base", "tuned")


class Actor:
    """One process among several on a workspace; owns the documents of one origin."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.random = random.Random(name)
        workspace = Workspace(root, Settings.load(root))
        self.documents = DocumentStore(Database(workspace.database))
        self.index = VectorIndex(workspace, Database(workspace.database))
        self.pool = Pool(base=HashBag("base"), tuned=HashBag("tuned"))
        self.searcher = Searcher(self.index, self.documents, self.pool)
        self.mine: dict[str, str] = {}
        self.made = self.searched = self.refused = 0

    def search(self) -> None:
        version = self.random.choice(VERSIONS)
        query = f"word{self.random.randrange(40)} word{self.random.randrange(40)}"
        try:
            hits = self.searcher.search(version, query, 5)
        except NotReady:
            self.refused += 1
            return
        encoder = self.pool.get(version)
        vectors = encoder.encode([query, *(hit.text for hit in hits)])
        for hit, vector in zip(hits, vectors[1:], strict=True):
            expected = float(vectors[0] @ vector)
            assert abs(hit.score - expected) < 1e-4, f"{version}: {hit} should score {expected}"
        self.searched += 1

    def edit(self) -> None:
        for _ in range(self.random.randint(1, 6)):
            doc_id = f"{self.name}/{self.made}"
            self.mine[doc_id] = f"{doc_id} word{self.random.randrange(40)} word{self.random.randrange(40)}"
            self.made += 1
        for doc_id in self.random.sample(sorted(self.mine), len(self.mine) // 4):
            del self.mine[doc_id]
        docs = tuple(document(i, t, origin=self.name) for i, t in self.mine.items())
        plan = self.documents.plan(Scan("files", docs, frozenset({self.name})))
        apply_plan(plan, self.documents, self.index, self.pool, VERSIONS)

    def build(self) -> None:
        version = self.random.choice(VERSIONS)
        build_collection(self.index, self.documents, version, self.pool.get(version))

    def drop_one(self) -> None:
        kept = self.random.choice(VERSIONS)
        self.index.prune(lambda: [kept])

    def run(self, operations: int) -> None:
        actions = [self.search, self.edit, self.build, self.drop_one]
        for _ in range(operations):
            self.random.choices(actions, weights=[70, 18, 9, 3])[0]()


def main() -> None:
    root, name, operations = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    actor = Actor(root, name)
    actor.run(operations)
    outcome = {"mine": actor.mine, "searched": actor.searched, "refused": actor.refused}
    (root / f"{name}.outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
