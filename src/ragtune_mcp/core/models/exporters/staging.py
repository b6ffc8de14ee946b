"""An export is made in a folder beside its place and moved there complete, or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ragtune_mcp.core.jobs.processes import start_time


def move_into_place(half: Path, target: Path) -> None:
    """Rename a finished folder to its place, whatever lies there."""
    try:
        half.rename(target)
    except OSError:
        # Another model's export, a damaged one, or that of a faster process lies there, and a folder cannot
        # replace one that is not empty.
        old = half.with_name(f"{half.name}.old")
        target.rename(old)
        half.rename(target)
        shutil.rmtree(old)


def fresh_folder_beside(target: Path) -> Path:
    """An empty folder for a half-made export; those of processes that died are removed."""
    for left in target.parent.glob(f".{target.name}.*"):
        pid = left.name.removeprefix(f".{target.name}.").partition(".")[0]
        if not pid.isdigit() or start_time(int(pid)) is None or int(pid) == os.getpid():
            shutil.rmtree(left)
    half = target.with_name(f".{target.name}.{os.getpid()}")
    half.mkdir(parents=True)
    return half
