"""Run as a program: search, index, promote and roll back at random through the verbs, and check every answer.

Arguments: workspace, name of this process, its folder, operations. A process named `command` works through
the command line, which opens the workspace anew each time; the others keep it open, as servers do. Each owns
the files that begin with its name, and indexes all of its folder, which others may share.
"""

from __future__ import annotations

import io
import json
import random
import re
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.faults.planted import SEEDS, cosine, some_words, text_of, write

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.errors import Conflict, NotReady
from ragtune_mcp.surface.commands import app as command_line

ALL = 50
# Of a switch that is refused because an index is behind.
TRIES = 5


class Server:
    """The verbs in this process."""

    def __init__(self, root: Path) -> None:
        self.app = RagTune.open(root)

    def search(self, query: str) -> dict[str, Any]:
        return self.app.search(query, ALL).model_dump()

    def index(self, folder: str) -> str | None:
        return self.app.index_documents(paths=[folder]).job_id

    def promote(self, version: str) -> None:
        self.app.promote_model(version, confirm=True)

    def roll_back(self) -> None:
        self.app.rollback_model(confirm=True)


class Commands:
    """The same through the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def search(self, query: str) -> dict[str, Any]:
        return dict(json.loads(self.run("search", "-k", str(ALL), query)))

    def index(self, folder: str) -> None:
        self.run("index", folder)

    def promote(self, version: str) -> None:
        self.run("promote", "--yes", version)

    def roll_back(self) -> None:
        self.run("rollback", "--yes")

    def run(self, command: str, *arguments: str) -> str:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            command_line(
                ["--workspace", str(self.root), command, *arguments, "--json"], standalone_mode=False
            )
        return out.getvalue()


class History:
    """Every text a document ever had, a file each, shared by the processes; written before the text is indexed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, doc_id: str, text: str) -> None:
        with (self.folder / doc_id.replace("/", "_")).open("a", encoding="utf-8") as history:
            history.write(f"{json.dumps(text)}\n")

    def texts(self, doc_id: str) -> list[str]:
        path = self.folder / doc_id.replace("/", "_")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Actor:
    """One process among several on a workspace."""

    def __init__(self, root: Path, name: str, folder: str) -> None:
        self.root, self.name, self.folder = root, name, folder
        self.prefix = f"{folder}/{name}-"
        self.draw = random.Random(name)
        self.core = RagTune.open(root)
        self.through = Commands(root) if name == "command" else Server(root)
        self.mine: dict[str, str] = {}
        self.ever = History(root / "history")
        self.made = 0
        self.counts: Counter[str] = Counter()

    def search(self) -> None:
        query = some_words(self.draw)
        before = self.core.registry.audit.entries(subject="champion", limit=1)[0]
        found = self.through.search(query)
        served = self.core.db.connection.execute(
            "SELECT version FROM answers JOIN exposures ON exposures.seq = exposure_seq WHERE query_id = ?",
            (found["query_id"],),
        ).fetchone()["version"]
        since = {
            e.after for e in self.core.registry.audit.entries("champion") if e.entry_id >= before.entry_id
        }
        assert served in since, f"{served} answered, but the champion was one of {since}"
        for hit in found["results"]:
            # A file that another process is just indexing is found by its former text until that is done.
            planted = [cosine(served, query, text) for text in (hit["text"], *self.ever.texts(hit["id"]))]
            assert min(abs(hit["score"] - score) for score in planted) < 2e-4, (served, query, hit, planted)
            self.counts["hits being replaced"] += abs(hit["score"] - planted[0]) >= 2e-4
        shown = {h["id"]: h["text"] for h in found["results"] if h["id"].startswith(self.prefix)}
        assert shown == self.mine, f"{served} shows {shown}, but the files are {self.mine}"
        self.counts["searched"] += 1

    def edit(self) -> None:
        for doc_id in self.draw.sample(sorted(self.mine), len(self.mine) // 3):
            (self.root / doc_id).unlink()
            del self.mine[doc_id]
        changed = self.draw.sample(sorted(self.mine), len(self.mine) // 4)
        new = [f"{self.prefix}{self.made + i}.md" for i in range(self.draw.randint(1, 4))]
        self.made += len(new)
        for doc_id in (*changed, *new):
            body = some_words(self.draw)
            self.ever.add(doc_id, text_of(doc_id, body))
            self.mine[doc_id] = write(self.root, doc_id, body)
        job_id = self.through.index(self.folder)
        if job_id:
            self.wait(job_id)
        self.counts["indexed by a job" if job_id or self.name == "command" else "indexed at once"] += 1

    def promote(self) -> None:
        version = self.draw.choice([version for version in SEEDS if version != self.core.champion()])
        self.switch("promoted", lambda: self.through.promote(version))

    def roll_back(self) -> None:
        self.switch("rolled back", self.through.roll_back)

    def switch(self, done: str, action: Any) -> None:
        """Do as the hints say where one is refused: wait for the job, or repeat the call."""
        outcome = ""
        for _ in range(TRIES):
            try:
                action()
            except NotReady as refused:
                outcome = f"not {done}: {refused.code}"
                self.wait(str(re.search(r"ix_\w+", refused.hint)[0]))
            except Conflict as refused:
                outcome = f"not {done}: {refused.code}"
                if refused.hint != "Repeat the call.":
                    break
            else:
                outcome = done
                break
        self.counts[outcome] += 1

    def wait(self, job_id: str) -> None:
        state = self.core.job_status(job_id, wait_s=120)
        while state.status in ("queued", "running"):
            state = self.core.job_status(job_id, wait_s=120)
        assert state.status == "completed", state

    def run(self, operations: int) -> None:
        self.search()
        actions = [self.search, self.edit, self.promote, self.roll_back]
        weights = [80, 4, 9, 7] if self.name == "command" else [70, 14, 9, 7]
        for _ in range(operations - 1):
            self.draw.choices(actions, weights=weights)[0]()


def main() -> None:
    root, name, folder, operations = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    actor = Actor(root, name, folder)
    actor.run(operations)
    outcome = {"mine": actor.mine, "counts": actor.counts}
    (root / f"{name}.outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
