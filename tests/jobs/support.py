"""Executors that start nothing, and a child process to be claimed by."""

from __future__ import annotations

import subprocess
import sys

from ragtune_mcp.core.errors import JobFailed
from ragtune_mcp.core.jobs.processes import ProcessName, process_name, this_place

# A handle whose process has ended: no pid is that large.
GONE = str(ProcessName(this_place(), 2**22 + 1, "1"))


class Recorder:
    """Notes what it is asked to start and answers with a handle of a process that lives."""

    def __init__(self, handle: str = "") -> None:
        self.handle = handle or str(process_name())
        self.started: list[str] = []
        self.alive: set[str] = set()

    def submit(self, job, workspace):
        self.started.append(job.job_id)
        return self.handle

    def is_alive(self, handle):
        return handle in self.alive


class Refusing:
    """Cannot start anything."""

    def submit(self, job, workspace):
        raise JobFailed("No process could be started.", hint="Free some memory.")

    def is_alive(self, handle):
        return False


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs `code`, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
