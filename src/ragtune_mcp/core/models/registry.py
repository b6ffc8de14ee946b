"""Model versions: what each was made of, whether its files are still those, and which one is in use."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ragtune_mcp.core.clock import to_iso, utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.errors import Conflict, DigestMismatch, InvalidInput, UnknownId
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.models.audit import AuditLog
from ragtune_mcp.core.models.files import digest_of, hash_every_file, hash_files, require_same, write_json
from ragtune_mcp.core.models.layout import refuse_prompts
from ragtune_mcp.core.workspace import Workspace, manifest_path, sha256_file

ModelKind = Literal["base", "tuned"]
Alias = Literal["champion", "challenger"]

_FORMAT = "ragtune.model/1"
_HUB_PREFIX = "sentence-transformers/"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered model.

    Attributes:
        version: its id; of a base model its name.
        path: its folder, absolute.
        digest: names its files' content; the identity that collections, encoders and caches carry.
        base_model: version id of the base it was tuned from; its own for a base model.
        gate: the offline gate's verdict; None for a base model.
        stale: a rating it was trained on has been withdrawn since.
    """

    version: str
    kind: ModelKind
    path: Path
    digest: str
    base_model: str
    created_at: str
    dataset_id: str | None
    job_id: str | None
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    gate: Mapping[str, Any] | None
    stale: bool


class Registry:
    """The versions of a workspace, the aliases "champion" and "challenger", and the log of changes."""

    def __init__(self, db: Database, workspace: Workspace) -> None:
        self.audit = AuditLog(db)
        self._db = db
        self._workspace = workspace

    # Registering

    def register(
        self,
        version: str,
        path: Path,
        *,
        kind: Literal["tuned"] = "tuned",
        base_model: str,
        dataset_id: str | None = None,
        job_id: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        gate: Mapping[str, Any] | None = None,
        feedback_ids: Iterable[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Register a finished model folder: hash every file, write `ragtune.json` last, then the row.

        Registering the same files again changes nothing, so a resumed job may repeat it.

        Args:
            version: the new id.
            path: its folder, inside the workspace.
            kind: "tuned"; base models go through `register_base`.
            base_model: version id of the base model.
            dataset_id: what it was trained on.
            job_id: the job that trained it.
            metrics: evaluation results.
            gate: the gate's verdict.
            feedback_ids: every rating that took part in training.
            config: the training configuration.

        Returns:
            The version.

        Raises:
            Conflict: the version exists with other files.
            IntegrityError: the folder holds no safetensors weights, a link, or a file that could run code.
            PathOutsideWorkspace: the folder is not inside the workspace.
        """
        folder = self._workspace.inside(path)
        files = hash_every_file(folder)
        known = self._find(version)
        if known is not None and known.digest == digest_of(files):
            return known
        if known is not None:
            raise Conflict(f"Version {version} is already registered with other files.")
        manifest = {
            "format": _FORMAT,
            "version": version,
            "kind": kind,
            "digest": digest_of(files),
            "base_model": base_model,
            "dataset_id": dataset_id,
            "job_id": job_id,
            "created_at": to_iso(utc_now()),
            "config": dict(config or {}),
            "metrics": dict(metrics or {}),
            "gate": None if gate is None else dict(gate),
            "feedback_ids": sorted(set(feedback_ids)),
            "files": files,
        }
        write_json(manifest_path(folder), manifest)
        self._insert(folder, manifest, sha256_file(manifest_path(folder)))
        return self.get(version)

    def register_base(self, name: str, path: Path) -> ModelVersion:
        """Register a base model where it lies, which may be outside the workspace.

        Args:
            name: the version id it gets, without the hub's `sentence-transformers/`.
            path: its folder.

        Returns:
            The version; a known one whose folder moved follows it; a folder that is registered keeps its id.

        Raises:
            DigestMismatch: the name is registered with other files.
            IntegrityError: the folder holds no safetensors weights; InvalidInput: the model wants prompts.
        """
        name = name.removeprefix(_HUB_PREFIX)
        at_path = self._at(path)
        if at_path is not None and at_path.version != name:
            return at_path
        files = hash_files(path)
        known = self._find(name)
        if known is None:
            refuse_prompts(path)
            manifest = {
                "version": name,
                "kind": "base",
                "digest": digest_of(files),
                "base_model": name,
                "created_at": to_iso(utc_now()),
                "files": files,
            }
            self._insert(path, manifest, None)
        elif known.digest != digest_of(files):
            raise DigestMismatch(
                f"The base model {name} at {path} is not the one registered under this name.",
                hint="Restore its files, or give the other model another name.",
            )
        else:
            query = "UPDATE model_versions SET path=? WHERE version=?"
            self._db.connection.execute(query, (self._stored(path), name))
        return self.get(name)

    # Finding

    def get(self, version: str) -> ModelVersion:
        """A version by its id; raises UnknownId (code "unknown_version") where there is none."""
        found = self._find(version)
        if found is None:
            raise self._unknown(version)
        return found

    def has(self, name: str) -> bool:
        """True when `resolve` would find it."""
        return self._lookup(name) is not None

    def resolve(self, name_or_path: str) -> ModelVersion:
        """A version by id, base model name, or folder inside the workspace.

        Args:
            name_or_path: one of these, e.g. `./fine_tuned_models/feedback_v1_...`.

        Returns:
            The version.

        Raises:
            UnknownId: it names no registered version (code "unknown_version").
            PathOutsideWorkspace: it is a path that leaves the workspace.
        """
        found = self._lookup(name_or_path)
        if found is None:
            raise self._unknown(name_or_path)
        return found

    def list(self) -> tuple[ModelVersion, ...]:
        """All versions, newest first."""
        query = "SELECT * FROM model_versions ORDER BY created_at DESC, version DESC"
        return tuple(self._from_row(row) for row in self._db.connection.execute(query))

    # Lineage

    def feedback_ids(self, version: str) -> tuple[str, ...]:
        """The ratings a version was trained on."""
        query = "SELECT feedback_id FROM model_feedback WHERE version=? ORDER BY feedback_id"
        return tuple(row["feedback_id"] for row in self._db.connection.execute(query, (version,)))

    def trained_on(self, feedback_id: str) -> tuple[str, ...]:
        """The versions a rating took part in, oldest first."""
        query = (
            "SELECT version FROM model_feedback JOIN model_versions USING (version)"
            " WHERE feedback_id=? ORDER BY created_at, version"
        )
        return tuple(row["version"] for row in self._db.connection.execute(query, (feedback_id,)))

    def mark_stale(self, version: str) -> None:
        """Note that a rating the version was trained on was withdrawn or changed since; the first time stays."""
        with self._db.transaction() as connection:
            query = "UPDATE model_versions SET stale_at=? WHERE version=? AND stale_at IS NULL"
            connection.execute(query, (to_iso(utc_now()), version))

    # Integrity

    def verify(self, version: str) -> ModelVersion:
        """Check a version's files before it is loaded, promoted or exported.

        Args:
            version: the version id.

        Returns:
            The version; a base model whose folder is gone is looked for again and then lies elsewhere.

        Raises:
            DigestMismatch: a file was changed, is missing, or was added.
            IntegrityError: the folder is no model any more.
            ModelUnavailable: a base model's folder is gone and the model is nowhere else.
            UnknownId: no such version.
        """
        model = self.get(version)
        if model.kind == "base" and not model.path.is_dir():
            # Base models lie where others keep house: a cache was cleared, the environment was made anew.
            allowed = self._workspace.settings.ragtune_allow_downloads
            found = resolve_base_model(version, self._workspace.root, allowed)
            model = self.register_base(version, found.path)
        query = "SELECT files, manifest_sha256 FROM model_versions WHERE version=?"
        row = self._db.connection.execute(query, (version,)).fetchone()
        recorded: dict[str, str] = json.loads(row["files"])
        present = hash_every_file(model.path) if model.kind == "tuned" else hash_files(model.path)
        if model.kind == "tuned":
            manifest = manifest_path(model.path)
            recorded[manifest.name] = row["manifest_sha256"]
            if manifest.exists():
                present[manifest.name] = sha256_file(manifest)
        require_same(version, recorded, present)
        return model

    # Aliases

    def alias(self, name: Alias) -> str | None:
        """The version an alias points at."""
        query = "SELECT version FROM model_aliases WHERE alias=?"
        row = self._db.connection.execute(query, (name,)).fetchone()
        return None if row is None else str(row["version"])

    def set_alias(
        self,
        name: Alias,
        version: str,
        *,
        actor: str,
        reason: str,
        action: Literal["set", "rollback"] = "set",
    ) -> int:
        """Point an alias at a version, with an audit entry, in one transaction.

        Args:
            name: the alias.
            version: a registered version.
            actor: who asked.
            reason: why.
            action: "rollback" for a return, so that `previous_champion` then names the one before.

        Returns:
            The audit entry's id; that of the last change when the alias points there already.

        Raises:
            InvalidInput: no such alias.
            UnknownId: no such version.
        """
        if name not in ("champion", "challenger"):
            raise InvalidInput(f"The alias {name!r} is not one of 'champion', 'challenger'.")
        with self._db.transaction() as connection:
            before = self.alias(name)
            if before == self.get(version).version:
                return self.audit.entries(subject=name, limit=1)[0].entry_id
            connection.execute(
                "INSERT INTO model_aliases VALUES (?, ?)"
                " ON CONFLICT (alias) DO UPDATE SET version=excluded.version",
                (name, version),
            )
            return self.audit.add(action, name, before=before, after=version, actor=actor, reason=reason)

    def clear_alias(self, name: Alias, *, actor: str, reason: str) -> None:
        """Let an alias point nowhere; nothing happens when it already does."""
        with self._db.transaction() as connection:
            before = self.alias(name)
            if before is not None:
                connection.execute("DELETE FROM model_aliases WHERE alias=?", (name,))
                self.audit.add("clear", name, before=before, after=None, actor=actor, reason=reason)

    def previous_champion(self) -> str | None:
        """Where a rollback leads: the champion before the last change that was not itself undone."""
        earlier: list[str] = []
        for entry in self.audit.entries(subject="champion"):
            if entry.action == "rollback" and entry.after in earlier:
                while earlier.pop() != entry.after:
                    pass
            elif entry.before is not None:
                earlier.append(entry.before)
        return earlier[-1] if earlier else None

    # Rows

    def _insert(self, folder: Path, manifest: Mapping[str, Any], manifest_sha256: str | None) -> None:
        row = {
            "version": manifest["version"],
            "kind": manifest["kind"],
            "path": self._stored(folder),
            "digest": manifest["digest"],
            "files": json.dumps(manifest["files"]),
            "manifest_sha256": manifest_sha256,
            "base_model": manifest["base_model"],
            "dataset_id": manifest.get("dataset_id"),
            "job_id": manifest.get("job_id"),
            "created_at": manifest["created_at"],
            "config": json.dumps(manifest.get("config", {})),
            "metrics": json.dumps(manifest.get("metrics", {})),
            "gate": json.dumps(manifest["gate"]) if manifest.get("gate") else None,
        }
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        with self._db.transaction() as connection:
            connection.execute(f"INSERT INTO model_versions ({columns}) VALUES ({values})", row)
            connection.executemany(
                "INSERT INTO model_feedback VALUES (?, ?)",
                [(feedback_id, manifest["version"]) for feedback_id in manifest.get("feedback_ids", ())],
            )

    def _lookup(self, name: str) -> ModelVersion | None:
        # The hub and the packaged weights spell some names in different case.
        base = "kind='base' AND version=? COLLATE NOCASE"
        found = self._find(name) or self._one(base, name.removeprefix(_HUB_PREFIX))
        if found is None and ("/" in name or os.sep in name):
            return self._at(self._workspace.inside(name))
        return found

    def _find(self, version: str) -> ModelVersion | None:
        return self._one("version=?", version)

    def _at(self, path: Path) -> ModelVersion | None:
        return self._one("path=?", self._stored(path))

    def _one(self, condition: str, value: str) -> ModelVersion | None:
        query = f"SELECT * FROM model_versions WHERE {condition}"
        row = self._db.connection.execute(query, (value,)).fetchone()
        return None if row is None else self._from_row(row)

    def _from_row(self, row: sqlite3.Row) -> ModelVersion:
        return ModelVersion(
            version=row["version"],
            kind=cast(ModelKind, row["kind"]),
            path=self._workspace.root / row["path"],
            digest=row["digest"],
            base_model=row["base_model"],
            created_at=row["created_at"],
            dataset_id=row["dataset_id"],
            job_id=row["job_id"],
            config=json.loads(row["config"]),
            metrics=json.loads(row["metrics"]),
            gate=None if row["gate"] is None else json.loads(row["gate"]),
            stale=row["stale_at"] is not None,
        )

    def _stored(self, path: Path) -> str:
        absolute = Path(os.path.abspath(path))
        root = self._workspace.root
        return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)

    def _unknown(self, name: str) -> UnknownId:
        return UnknownId(
            f"There is no model version {name!r}.",
            code="unknown_version",
            hint="Call list_models for those there are.",
        )
