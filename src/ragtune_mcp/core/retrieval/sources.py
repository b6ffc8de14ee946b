"""Where documents come from: files, ConPort items, or a Chroma collection of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.retrieval.conport_items import ItemSource, scan_conport
from ragtune_mcp.core.retrieval.documents import Scan
from ragtune_mcp.core.retrieval.files import scan_files
from ragtune_mcp.core.retrieval.foreign import scan_chroma
from ragtune_mcp.core.workspace import Workspace

CHROMA_PREFIX = "chroma:"


def read_source(
    workspace: Workspace,
    source: str,
    paths: Sequence[str],
    origins: Callable[[str], frozenset[str]],
    conport: Callable[[], ItemSource] | None,
) -> Scan:
    """Read one source.

    Args:
        workspace: whose.
        source: "files", "conport" or "chroma:<collection>".
        paths: patterns; only for files.
        origins: gives the origins of a source that are indexed now.
        conport: gives the ConPort client.

    Returns:
        What was read.

    Raises:
        InvalidInput: another source, or paths with a source that has none.
    """
    if source != "files" and paths:
        raise InvalidInput(
            f"paths {list(paths)!r} were given together with source={source!r}.",
            hint="paths belong to source='files'.",
        )
    if source == "files":
        return scan_files(workspace, paths, origins(source))
    if source == "conport" and conport is not None:
        return scan_conport(conport())
    if source.startswith(CHROMA_PREFIX) and len(source) > len(CHROMA_PREFIX):
        return scan_chroma(workspace, source.removeprefix(CHROMA_PREFIX))
    raise InvalidInput(
        f"source {source!r} is unknown.", hint="Use 'files', 'conport' or 'chroma:<collection>'."
    )
