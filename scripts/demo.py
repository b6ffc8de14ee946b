"""The whole loop on real parts, driven as an assistant would drive it: through the MCP tools.

    scripts/demo                       the sample workspace
    scripts/demo --data DIR            a folder in BEIR layout with feedback.jsonl
    scripts/demo --ratings 500         how many ratings of DIR to load (0 = all)

Real: ConPort (its own process), the vector store, all-MiniLM-L6-v2, the worker process, every number printed.
Replayed: the live ratings of the A/B stage are drawn from held-out judgements with noise, by a fixed seed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import anyio
from rich.console import Console

from demo_data import Collection, load_beir, load_sample
from demo_steps import Demo, DemoFailed

ROOT = Path(__file__).resolve().parent.parent
WORKSPACES = ROOT / ".demo"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with corpus.jsonl, queries.jsonl, qrels_test.tsv, feedback.jsonl"
    )
    parser.add_argument(
        "--ratings", type=int, default=500, help="ratings of --data to load, 0 = all (default 500)"
    )
    parser.add_argument(
        "--sessions", type=int, default=300, help="replayed live searches in the A/B test (default 300)"
    )
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    console = Console(highlight=False, width=max(100, Console().width))
    workspace = WORKSPACES / (arguments.data.resolve().name if arguments.data else "sample")
    try:
        collection = _collection(arguments)
    except FileNotFoundError as error:
        console.print(f"[red]demo: {error}[/red]")
        return 1
    _fresh(workspace)
    started = time.monotonic()
    try:
        anyio.run(Demo(console, workspace, collection, arguments.sessions, arguments.seed).run)
    except (DemoFailed, BaseExceptionGroup) as failed:
        reason = _first(failed)
        if not isinstance(reason, DemoFailed):
            raise
        console.print(f"demo: {reason}", style="red", markup=False)
        return 1
    console.print(
        f"\nThe whole loop took {time.monotonic() - started:.0f} s. The workspace stays in {workspace.relative_to(ROOT)}."
    )
    return 0


def _collection(arguments: argparse.Namespace) -> Collection:
    if arguments.data:
        return load_beir(arguments.data, arguments.ratings, arguments.seed)
    return load_sample(ROOT / "sample")


def _first(group: BaseException) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _fresh(workspace: Path) -> None:
    from ragtune_mcp.core.retrieval.store import stop_store
    from ragtune_mcp.core.settings import Settings
    from ragtune_mcp.core.workspace import Workspace

    if workspace.exists():
        stop_store(Workspace(workspace, Settings.load(workspace)))
        shutil.rmtree(workspace)
    workspace.mkdir(parents=True)


if __name__ == "__main__":
    sys.exit(main())
