"""RagTune: one workspace, one method per verb. Every surface calls this and nothing below it."""

from __future__ import annotations

from pathlib import Path

from ragtune_mcp.core.settings import Settings, find_workspace
from ragtune_mcp.core.verbs.lineage import LineageVerbs
from ragtune_mcp.core.verbs.memory import MemoryVerbs
from ragtune_mcp.core.workspace import Workspace


class RagTune(LineageVerbs, MemoryVerbs):
    """The verbs of one workspace. Opening it is cheap: no model is loaded and no process started."""

    @classmethod
    def open(cls, workspace: str | Path = "") -> RagTune:
        """Open a workspace.

        Args:
            workspace: its folder; empty for the one of the environment, else the current project.

        Returns:
            The opened workspace; close it when done.

        Raises:
            InvalidInput: the folder does not exist or a setting is out of range.
        """
        root = find_workspace(str(workspace))
        return cls(Workspace(root, Settings.load(root)))
