"""What a sentence-transformers folder says about itself, in the layout of either generation.

Since sentence-transformers 5.4 a saved folder names its modules, its pooling mode and its window differently;
programs that know the old names only mis-pool the new folders without a word. Everything that reads a model
folder without sentence-transformers goes through `read_layout`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ragtune_mcp.core.errors import InvalidInput

PoolingMode = Literal["mean", "cls"]

# What encode_query and encode_document of sentence-transformers look for.
_PROMPTS = ("query", "document", "passage", "corpus")
_OLD_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """A chain Transformer + Pooling [+ Normalize].

    Attributes:
        transformer: folder of the transformer: config.json, weights, tokenizer.
        pooling: how token vectors become one vector.
        normalize: whether the chain ends with unit vectors.
        dimension: of the vectors.
        max_tokens: the window, special tokens included.
        prompt: what sentence-transformers puts before every text; "" for nothing.
    """

    transformer: Path
    pooling: PoolingMode
    normalize: bool
    dimension: int
    max_tokens: int
    prompt: str


def read_layout(folder: Path) -> ModelLayout:
    """Read a model folder's module chain.

    Args:
        folder: a sentence-transformers model.

    Returns:
        Its layout.

    Raises:
        InvalidInput: another chain, pooling mode or layout (code "unsupported_model"), which is named.
    """
    modules = sorted(_read(folder / "modules.json", folder), key=lambda module: int(module["idx"]))
    names = [str(module["type"]).rpartition(".")[2] for module in modules]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _unsupported(folder, f"its modules are {' + '.join(names) or 'none'}")
    transformer, pooling_folder = (_below(folder, str(module["path"])) for module in modules[:2])
    pooling = _read(pooling_folder / "config.json", folder)
    config = _read(transformer / "config.json", folder)
    return ModelLayout(
        transformer=transformer,
        pooling=_pooling_mode(pooling, folder),
        normalize="Normalize" in names,
        dimension=int(pooling.get("embedding_dimension") or pooling["word_embedding_dimension"]),
        max_tokens=_max_tokens(transformer, config, folder),
        prompt=_prompt(folder),
    )


def refuse_prompts(folder: Path) -> None:
    """Raise InvalidInput (code "unsupported_model") where queries or documents should begin with a prompt.

    A default prompt is left to `read_layout`; these are applied only by who asks for them by name, so a model
    encoded without them would look well and rank below what it can.
    """
    config = _optional(folder / "config_sentence_transformers.json")
    prompts = {} if config.get("default_prompt_name") else config.get("prompts") or {}
    for name in _PROMPTS:
        if prompts.get(name):
            raise InvalidInput(
                f"The model {folder.name} wants {prompts[name]!r} before every {name}; queries and documents are "
                "encoded alike here, without prompts.",
                code="unsupported_model",
                hint="Use a model without prompts, e.g. all-MiniLM-L6-v2. To tune and serve this one without, name a "
                'copy inside the workspace whose config_sentence_transformers.json has "prompts": {}.',
            )


def _pooling_mode(pooling: dict[str, Any], folder: Path) -> PoolingMode:
    mode = pooling.get("pooling_mode")
    if mode is None:
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on]
        modes = [_OLD_MODES.get(name, name) for name in modes]
    else:
        modes = [mode] if isinstance(mode, str) else list(mode)
    if modes not in (["mean"], ["cls"]):
        raise _unsupported(folder, f"its pooling is {' + '.join(map(str, modes)) or 'none'}")
    return cast(PoolingMode, modes[0])


def _max_tokens(transformer: Path, config: dict[str, Any], folder: Path) -> int:
    # Never tokenizer.json's own truncation: MiniLM's says 128 where the model was trained with 256.
    window = _optional(transformer / "sentence_bert_config.json").get("max_seq_length")
    window = window or _read(transformer / "tokenizer_config.json", folder).get("model_max_length")
    positions = config.get("max_position_embeddings")
    known = [int(value) for value in (window, positions) if value]
    if not known:
        raise _unsupported(folder, "neither its tokenizer nor its configuration names a window")
    return min(known)


def _prompt(folder: Path) -> str:
    config = _optional(folder / "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    return str((config.get("prompts") or {}).get(name, "")) if name else ""


def _below(folder: Path, relative: str) -> Path:
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _unsupported(folder, f"modules.json names {relative!r}, outside the folder")
    return path


def _read(path: Path, folder: Path) -> Any:
    if not path.is_file():
        raise _unsupported(folder, f"{path.relative_to(folder).as_posix()} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def _optional(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _unsupported(folder: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"The model {folder.name} cannot be served: {reason}.",
        code="unsupported_model",
        hint="Use a sentence-transformers model of Transformer + Pooling (mean or cls) [+ Normalize].",
    )
