"""Verb of ConPort's own semantic search; for the command line, since ConPort must be stopped for it."""

from __future__ import annotations

from typing import Any

from ragtune_mcp.core.feedback.conport_file import ConPortFile
from ragtune_mcp.core.parts import Parts
from ragtune_mcp.core.retrieval.conport_vectors import ConPortVectors, count_by_kind, read_items


class MemoryVerbs(Parts):
    """conport_reindex, conport_restore."""

    def conport_reindex(self, version: str = "", *, confirm: bool = False) -> dict[str, Any]:
        """Let ConPort's semantic search use a version; without `confirm` only say what would happen.

        Args:
            version: whose vectors; empty for the champion.
            confirm: do it.

        Returns:
            version, items by kind, whether it was done, and what to do next.

        Raises:
            ConPortUnavailable: the workspace has no ConPort database of a known schema.
            Conflict: a ConPort of this workspace is running.
        """
        model = self.registry.verify(self.registry.resolve(version or self.champion()).version)
        self.encoders.check(model.version)
        store = ConPortVectors(self.workspace)
        items = read_items(ConPortFile(self.workspace.conport_database))
        counts = count_by_kind(items)
        plan = {
            "version": model.version,
            "items": counts,
            "backup": self.workspace.relative(self.workspace.conport_vectors_backup),
            "running_conports": store.users(),
        }
        if not confirm:
            return {
                **plan,
                "changed": False,
                "next_step": "Stop every ConPort of this workspace, then repeat with --yes.",
            }
        store.require_stopped()
        vectors = self.encoders.get(model.version).encode([item.text for item in items])
        store.replace(items, vectors)
        environment = store.provide_model(model.path)
        self.registry.audit.add(
            "conport_reindex", "conport", actor="user", reason="", after=model.version, details=counts
        )
        return {
            **plan,
            "changed": True,
            "environment": environment,
            "next_step": "Start ConPort with these environment variables; without them it searches wrongly.",
        }

    def conport_restore(self) -> dict[str, Any]:
        """Give ConPort's semantic search back the vectors it had before the first `conport_reindex`.

        Returns:
            What was restored and what to do next.

        Raises:
            Conflict: a ConPort of this workspace is running, or there is no backup.
        """
        store = ConPortVectors(self.workspace)
        store.restore()
        self.registry.audit.add("conport_restore", "conport", actor="user", reason="")
        return {
            "restored": self.workspace.relative(self.workspace.conport_vectors),
            "next_step": "Start ConPort without HF_HOME. Items logged since the backup are found by text search only.",
        }
