"""The command `ragtune-mcp`: the server when called without a verb, the verbs for people otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_SERVER_FLAGS = ("--workspace", "--transport", "--host", "--port")
DEFAULT_PORT = 8084


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Hosts wait for the server at every start, so its four flags are read here and the libraries behind the
    other commands are imported only for those.

    Args:
        argv: arguments without the program's name; those of the process when not given.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    word = _first_word(arguments)
    if word is None or arguments[word] == "serve":
        _serve([each for place, each in enumerate(arguments) if place != word])
    else:
        from ragtune_mcp.surface.commands import run

        run(arguments)


def _first_word(arguments: Sequence[str]) -> int | None:
    place = 0
    while place < len(arguments):
        if arguments[place] in _SERVER_FLAGS:
            place += 2
        elif arguments[place].startswith("--workspace="):
            place += 1
        else:
            return place
    return None


def _serve(arguments: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="ragtune-mcp serve", description="Serve MCP for one workspace.")
    parser.add_argument("--workspace", default="", help="its folder (default: the current project)")
    parser.add_argument("--transport", choices=("stdio", "streamable-http"), default="stdio")
    parser.add_argument(
        "--host", default="127.0.0.1", help="for streamable-http; beyond loopback needs RAGTUNE_HTTP_TOKEN"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="for streamable-http")
    options = parser.parse_args(arguments)

    from ragtune_mcp.core.errors import RagTuneError

    try:
        if options.transport == "stdio":
            from ragtune_mcp.server import serve_stdio

            serve_stdio(options.workspace)
        else:
            from ragtune_mcp.http import serve_http

            serve_http(options.workspace, options.host, options.port)
    except RagTuneError as error:
        sys.exit(f"ragtune-mcp: {error}")
