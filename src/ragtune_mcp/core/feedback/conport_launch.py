"""How a connection to ConPort is made: a child process of our own, or a URL.

Our own ConPort must never embed: two embedding ConPorts on one workspace break each other's vectors. It gets
an empty model cache, offline, and that empty folder as its working folder too, since a folder named like the
model in the working folder would be loaded.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ragtune_mcp.core.errors import ConPortUnavailable
from ragtune_mcp.core.feedback.conport_file import ConPortFile
from ragtune_mcp.core.workspace import Workspace

if TYPE_CHECKING:
    from mcp.client import Client

_OTHER_START_WAIT_S = 30.0
_OTHER_START_POLL_S = 0.25
_CONPORT_PROGRAMS = ("conport-mcp", "context_portal_mcp")
_WORKSPACE_OPTION = "--workspace_id"
_CHILD_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "FASTMCP_SHOW_SERVER_BANNER": "false",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def child(workspace: Workspace) -> Callable[[ExitStack], Client]:
    """A connection to a ConPort process of our own, started when the connection is opened."""

    def connect(stack: ExitStack) -> Client:
        from mcp.client import Client
        from mcp.client.stdio import StdioServerParameters, stdio_client

        program, *arguments = find_command(workspace.settings.ragtune_conport_command)
        workspace.prepare()
        workspace.empty_model_cache.mkdir(exist_ok=True)
        workspace.logs.mkdir(exist_ok=True)
        _await_other_start(workspace)
        parameters = StdioServerParameters(
            command=program,
            args=[
                *arguments,
                *("--mode", "stdio", _WORKSPACE_OPTION, workspace.id),
                *("--log-file", str(workspace.conport_log), "--log-level", "WARNING"),
            ],
            env={
                **_CHILD_ENVIRONMENT,
                "HF_HOME": str(workspace.empty_model_cache),
                "CONPORT_WORKSPACE": workspace.id,
            },
            cwd=workspace.empty_model_cache,
        )
        stderr = stack.enter_context(workspace.conport_stderr.open("a", encoding="utf-8"))
        # "legacy" is the handshake every ConPort speaks; others put noise on stderr first.
        return Client(stdio_client(parameters, errlog=stderr), mode="legacy")

    return connect


def remote(url: str) -> Callable[[ExitStack], Client]:
    """A connection to the ConPort that answers at a URL."""

    def connect(stack: ExitStack) -> Client:
        from mcp.client import Client

        return Client(url, mode="legacy")

    return connect


def find_command(command: str) -> list[str]:
    """The words of a command line, its program looked up on PATH and beside this Python.

    Args:
        command: as written in a shell.

    Returns:
        The program's absolute path and its arguments.

    Raises:
        ConPortUnavailable: there is no such program.
    """
    program, *arguments = shlex.split(command, posix=os.name != "nt") or [""]
    beside = str(Path(sys.executable).parent)
    found = shutil.which(program) or shutil.which(program, path=beside)
    if not found:
        raise ConPortUnavailable(
            f"ConPort is not installed: no program {program!r} on PATH or in {beside}.",
            hint="pip install context-portal-mcp, or set RAGTUNE_CONPORT_COMMAND.",
        )
    return [os.path.abspath(found), *arguments]


def running(workspace_id: str) -> list[int]:
    """Ids of the ConPort processes of a workspace: named so on their command lines, or started in its folder."""
    import psutil

    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "cwd"])
        if _serves(process.info["cmdline"] or [], process.info["cwd"], workspace_id)
    ]


def _serves(words: list[str], folder: str | None, workspace_id: str) -> bool:
    if not any(program in word for word in words for program in _CONPORT_PROGRAMS):
        return False
    if workspace_id in words:
        return True
    here = os.path.realpath(workspace_id)
    option = next((n for n, word in enumerate(words) if word.partition("=")[0] == _WORKSPACE_OPTION), None)
    if option is None:
        # It looks for its workspace from its folder upwards.
        return folder is not None and Path(folder).is_relative_to(here)
    named = words[option].partition("=")[2] or "".join(words[option + 1 : option + 2])
    return os.path.realpath(os.path.join(folder or os.sep, named)) == here


def _await_other_start(workspace: Workspace) -> None:
    """Let another ConPort that starts on a fresh workspace finish: of two at once, one exits silently."""
    file = ConPortFile(workspace.conport_database)
    deadline = time.monotonic() + _OTHER_START_WAIT_S
    while not file.is_known() and time.monotonic() < deadline and running(workspace.id):
        time.sleep(_OTHER_START_POLL_S)
