"""Which process is which: a name that survives the reuse of process ids, reboots and containers."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_ZOMBIE_OR_DEAD = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A process, named for good.

    Attributes:
        place: machine, boot and pid namespace; a pid means something only there.
        pid: process id.
        started: kernel start time as text; "" for a process that was already gone when it was named.
    """

    place: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.place}|{self.pid}|{self.started}"

    @classmethod
    def parse(cls, text: str) -> ProcessName | None:
        """Read what `str()` wrote; None for any other text."""
        place, _, rest = text.partition("|")
        pid, separator, started = rest.partition("|")
        return cls(place, int(pid), started) if separator and pid.isdigit() else None

    @property
    def is_here(self) -> bool:
        """True when this process sees that one's pid."""
        return self.place == this_place()

    @property
    def is_alive(self) -> bool:
        """True when it still runs; a zombie does not. Meaningful only where `is_here`."""
        return bool(self.started) and start_time(self.pid) == self.started

    def kill_group(self) -> None:
        """SIGKILL the process and everything it started; nothing happens when it is gone or not here."""
        if self.is_here and self.is_alive:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


@cache
def this_place() -> str:
    """The machine, its boot and the pid namespace of this process."""
    boot, namespace = _PROC / "sys/kernel/random/boot_id", _PROC / "self/ns/pid"
    if not boot.exists():
        return socket.gethostname()
    return f"{socket.gethostname()}/{boot.read_text(encoding='ascii').strip()}/{os.readlink(namespace)}"


def process_name(pid: int | None = None) -> ProcessName:
    """The name of a process of this machine; of the calling one without a pid."""
    pid = os.getpid() if pid is None else pid
    return ProcessName(this_place(), pid, start_time(pid) or "")


def start_time(pid: int) -> str | None:
    """When the kernel started the process, only to be compared; None when it is gone or a zombie."""
    if (_PROC / "self/stat").exists():
        try:
            text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command name may hold spaces and brackets; the fields begin after the last bracket.
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in _ZOMBIE_OR_DEAD else fields[19]
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
