"""Run as a program: do a job or promote a version, and die by SIGKILL before the n-th SQL statement, or at the end.

Arguments: n; then `promote`, the workspace and a version, or the workspace and a job as a worker gets them. With
n = 0 it lives, and writes the number of its statements to the file `statements` of the workspace.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from ragtune_mcp import worker
from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.retrieval import reindex


class Fate:
    """Counts the statements of all connections of this process, and ends it at the chosen one."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.seen = 0
        self._connect = sqlite3.connect
        sqlite3.connect = self.connect  # type: ignore[assignment]

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = self._connect(*arguments, **options)
        connection.set_trace_callback(self.statement)
        return connection

    def statement(self, sql: str) -> None:
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    last, *arguments = sys.argv[1:]
    # Several batches, so that there is something to be taken up again.
    reindex._BATCH = 8
    fate = Fate(int(last))
    if arguments[0] == "promote":
        _, root, version = arguments
        app = RagTune.open(root)
        app.promote_model(version, confirm=True)
        app.close()
    else:
        root = arguments[0]
        worker.main(arguments)
    if fate.last:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        (Path(root) / "statements").write_text(str(fate.seen))


if __name__ == "__main__":
    main()
