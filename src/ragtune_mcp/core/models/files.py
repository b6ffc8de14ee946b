"""The files of a model folder and the digest that names them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragtune_mcp.core.errors import DigestMismatch, IntegrityError
from ragtune_mcp.core.workspace import manifest_path, sha256_file

# What decides a vector. A hub snapshot also holds pictures, read-mes and other formats of the same weights.
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "[0-9]*/*.safetensors", "[0-9]*/*.json")
_NOT_MODEL = frozenset({"data_config.json", "train_script.json", "requirements.txt"})
_CAN_RUN_CODE = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".py", ".so"})


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file that belongs to a model.

    A folder with our manifest is ours: every file in it counts, the manifest itself apart. In another folder
    only the files that sentence-transformers reads count.

    Args:
        folder: a model folder.

    Returns:
        Path relative to the folder, with `/` -> hex sha256; sorted.

    Raises:
        IntegrityError: no weights in safetensors form; in a folder of ours also a link or a file with code.
    """
    manifest = manifest_path(folder)
    if manifest.exists():
        return hash_every_file(folder)
    found = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.name not in _NOT_MODEL}
    return _hashes(folder, found)


def hash_every_file(folder: Path) -> dict[str, str]:
    """As `hash_files`, for a folder that is ours whether or not it has its manifest yet."""
    found = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    found.discard(manifest_path(folder))
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise IntegrityError(
                f"{name} in {folder.name} is a symbolic link; a model version holds only files."
            )
        if path.suffix.lower() in _CAN_RUN_CODE:
            raise IntegrityError(
                f"{name} in {folder.name} could run code when loaded.", hint="Save the model as safetensors."
            )
    return _hashes(folder, found)


def digest_of(files: Mapping[str, str]) -> str:
    """The name of a model: hex sha256 over its files' names and sha256, in order of name."""
    lines = "".join(f"{sha}  {name}\n" for name, sha in sorted(files.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def folder_digest(folder: Path) -> str:
    """The digest of a model folder as it lies there."""
    return digest_of(hash_files(folder))


def require_same(version: str, recorded: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Compare a version's files with what was recorded.

    Args:
        version: for the message.
        recorded: file -> sha256 at registration.
        present: file -> sha256 now.

    Raises:
        DigestMismatch: a file was changed, is missing, or was added; the message names it.
    """
    common = recorded.keys() & present.keys()
    for problem, names in (
        ("missing", recorded.keys() - present.keys()),
        ("not recorded", present.keys() - recorded.keys()),
        ("changed", {name for name in common if recorded[name] != present[name]}),
    ):
        if names:
            raise DigestMismatch(
                f"Version {version} is not what was registered; {problem}: {', '.join(sorted(names))}.",
                hint="Restore the folder from a backup, or use another version (list_models).",
            )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file so that it is there completely or not at all."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    half.replace(path)


def _hashes(folder: Path, paths: set[Path]) -> dict[str, str]:
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(paths) if path.is_file()
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise IntegrityError(
            f"{folder.name} holds no weights in safetensors form.",
            hint="Name the folder of a complete model.",
        )
    return files
