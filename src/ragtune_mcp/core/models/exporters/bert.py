"""A BERT sentence encoder as its files describe it, and whether llama.cpp's fixed graph can stand for it.

llama.cpp computes one kind of BERT: WordPiece with BERT's normalizer, absolute positions, GELU, mean or CLS
pooling. Whatever differs is refused here with its reason, because it would be converted without a word and
embed wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.models.layout import ModelLayout, read_layout

TokenKind = Literal["normal", "control", "user_defined", "unused"]
SPECIALS = ("unk", "sep", "pad", "mask", "cls")

_ARCHITECTURES = (["BertModel"], ["BertForMaskedLM"])
_NOT_ENCODER = ("pooler.", "cls.", "embeddings.position_ids")
_SUBWORD = "##"
_WORD_START = "\u2581"
_HINT = "Export it as onnx, or serve the folder with a server that runs sentence-transformers."


class Token(NamedTuple):
    """One row of the word embeddings, its text as llama.cpp spells it."""

    text: str
    kind: TokenKind


@dataclass(frozen=True, slots=True)
class BertSource:
    """What the converter needs to know of a model folder.

    Attributes:
        layout: the module chain.
        config: the transformer's config.json.
        tokens: one entry per row of the word embeddings, by id.
        special_ids: ids of the unk, sep, pad, mask and cls tokens.
        lowercase: whether the tokenizer lowers case.
        strip_accents: whether it strips accents.
        max_word_chars: a longer word is unknown to the tokenizer.
        warnings: what the export cannot carry but does not change a vector by itself.
    """

    layout: ModelLayout
    config: dict[str, Any]
    tokens: tuple[Token, ...]
    special_ids: dict[str, int]
    lowercase: bool
    strip_accents: bool
    max_word_chars: int
    warnings: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.config["num_hidden_layers"])


def read_bert(folder: Path) -> BertSource:
    """Read a model folder, in the layout of either generation of sentence-transformers.

    Args:
        folder: a sentence-transformers model.

    Returns:
        Its description.

    Raises:
        InvalidInput: llama.cpp would compute something else (code "unsupported_model"), as the message says.
    """
    layout = read_layout(folder)
    if (layout.transformer / "adapter_config.json").exists():
        raise unsupported(
            folder, "it is an adapter that is not merged", "Merge the adapter into its base first."
        )
    config = _read(layout.transformer / "config.json", folder)
    tokenizer = _read(layout.transformer / "tokenizer.json", folder)
    _check_config(config, folder)
    _check_tokenizer(tokenizer, folder)
    normalizer = tokenizer["normalizer"]
    lowercase = bool(normalizer["lowercase"])
    accents = normalizer.get("strip_accents")
    ids = _ids(tokenizer)
    return BertSource(
        layout=layout,
        config=config,
        tokens=_tokens(tokenizer, ids, int(config["vocab_size"]), folder),
        special_ids=_special_ids(_read(layout.transformer / "tokenizer_config.json", folder), ids, folder),
        lowercase=lowercase,
        strip_accents=lowercase if accents is None else bool(accents),
        max_word_chars=int(tokenizer["model"].get("max_input_chars_per_word", 100)),
        warnings=tuple(_warnings(layout, folder)),
    )


def read_tensors(source: BertSource, folder: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The encoder's tensors, float32, in order of name; poolers and language-model heads are left out.

    Names stand without the prefix `bert.`. Raises InvalidInput, which names `folder`, where there are no
    safetensors or a value is not finite.
    """
    from safetensors import safe_open

    files = sorted(source.layout.transformer.glob("*.safetensors"))
    if not files:
        raise unsupported(folder, "it has no weights in safetensors form", "Save it as safetensors.")
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            for name in sorted(tensors.keys()):
                short = name.removeprefix("bert.")
                if short.startswith(_NOT_ENCODER):
                    continue
                values = _values(file, tensors, name)
                if not np.isfinite(values).all():
                    raise unsupported(
                        folder, f"its tensor {name} holds values that are not finite", "Train it again."
                    )
                yield short, values


def unsupported(folder: Path, reason: str, hint: str = _HINT) -> InvalidInput:
    """The error for a model that cannot become a GGUF."""
    return InvalidInput(
        f"The model {folder.name} cannot be exported to Ollama: {reason}.",
        code="unsupported_model",
        hint=hint,
    )


def _check_config(config: dict[str, Any], folder: Path) -> None:
    if config.get("architectures") not in _ARCHITECTURES:
        raise unsupported(folder, f"its architecture is {config.get('architectures')}, not a BertModel")
    if config.get("hidden_act") != "gelu":
        raise unsupported(folder, f"its activation is {config.get('hidden_act')!r}, not 'gelu'")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise unsupported(folder, f"its positions are {positions!r}, not 'absolute'")


def _check_tokenizer(tokenizer: dict[str, Any], folder: Path) -> None:
    model, normalizer = tokenizer.get("model") or {}, tokenizer.get("normalizer") or {}
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix", _SUBWORD) != _SUBWORD:
        raise unsupported(folder, f"its tokenizer is {model.get('type')}, not BERT's WordPiece")
    if normalizer.get("type") != "BertNormalizer":
        raise unsupported(folder, f"its normalizer is {normalizer.get('type')}, not BertNormalizer")
    for option in ("clean_text", "handle_chinese_chars"):
        if not normalizer.get(option):
            raise unsupported(folder, f"its normalizer has {option} switched off")
    splitter = (tokenizer.get("pre_tokenizer") or {}).get("type")
    if splitter != "BertPreTokenizer":
        raise unsupported(folder, f"its pre-tokenizer is {splitter}, not BertPreTokenizer")


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    ids = {str(text): int(id_) for text, id_ in tokenizer["model"]["vocab"].items()}
    ids.update({str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens", ())})
    return ids


def _tokens(tokenizer: dict[str, Any], ids: dict[str, int], rows: int, folder: Path) -> tuple[Token, ...]:
    added = {str(token["content"]): bool(token["special"]) for token in tokenizer.get("added_tokens", ())}
    tokens = [Token(f"[PAD{id_}]", "unused") for id_ in range(rows)]
    for text, id_ in ids.items():
        if id_ >= rows:
            raise unsupported(folder, f"its token {text!r} has the id {id_} but there are {rows} embeddings")
        if text in added:
            tokens[id_] = Token(text, "control" if added[text] else "user_defined")
        elif text.startswith(_SUBWORD):
            tokens[id_] = Token(text.removeprefix(_SUBWORD), "normal")
        else:
            tokens[id_] = Token(_WORD_START + text, "normal")
    return tuple(tokens)


def _special_ids(config: dict[str, Any], ids: dict[str, int], folder: Path) -> dict[str, int]:
    special = {}
    for name in SPECIALS:
        given = config.get(f"{name}_token", f"[{name.upper()}]")
        text = given["content"] if isinstance(given, dict) else given
        if text not in ids:
            raise unsupported(folder, f"its {name} token {text!r} is not in the vocabulary")
        special[name] = ids[text]
    return special


def _warnings(layout: ModelLayout, folder: Path) -> Iterator[str]:
    if layout.prompt:
        yield f"Ollama knows no prompts: put {layout.prompt!r} before every text yourself."
    if not layout.normalize:
        yield "The model gives vectors of any length; Ollama gives unit vectors. Their angles are the same."
    sentence = layout.transformer / "sentence_bert_config.json"
    if sentence.is_file() and _read(sentence, folder).get("do_lower_case"):
        yield "sentence-transformers lowers case before tokenizing (do_lower_case); do so yourself."


def _values(file: Path, tensors: Any, name: str) -> npt.NDArray[np.float32]:
    if tensors.get_slice(name).get_dtype() != "BF16":
        values: npt.NDArray[np.float32] = tensors.get_tensor(name).astype(np.float32)
        return values
    # numpy has no bfloat16.
    from safetensors import safe_open

    with safe_open(file, framework="pt") as torch_tensors:
        widened: npt.NDArray[np.float32] = torch_tensors.get_tensor(name).float().numpy()
        return widened


def _read(path: Path, folder: Path) -> dict[str, Any]:
    if not path.is_file():
        raise unsupported(folder, f"{path.name} is missing")
    return dict(json.loads(path.read_text(encoding="utf-8")))
