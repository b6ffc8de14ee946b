"""Text written by others (documents, comments, file names), made safe to show to a model or on a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

DOCUMENT_LIMIT = 1200
# Zero-width joiners belong to several scripts and to emoji; a run of them can only be a hidden message.
_JOINERS = re.compile("[\u200c\u200d]{2,}")
_PLAIN = re.compile(r"[\x20-\x7e\n\t]*")
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\x85]")
_VARIATION_SUPPLEMENT = range(0xE0100, 0xE01F0)


def visible(text: str) -> str:
    """The text without control, invisible and bidirectional characters, tag characters and lone surrogates.

    Args:
        text: anything.

    Returns:
        The same text where it was plain; what was removed leaves no mark.
    """
    if _PLAIN.fullmatch(text):
        return text
    text = _JOINERS.sub("", _LINE_ENDS.sub("\n", text))
    return "".join(character for character in text if _is_visible(character))


def _is_visible(character: str) -> bool:
    if character in "\n\t\u200c\u200d":
        return True
    if ord(character) in _VARIATION_SUPPLEMENT:
        return False
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def shortened(text: str, limit: int = DOCUMENT_LIMIT) -> str:
    """The text, cut at a word where it is longer than `limit`, with a mark saying how much is missing."""
    if len(text) <= limit:
        return text
    cut = text.rfind(" ", limit - 80, limit)
    kept = text[: cut if cut > 0 else limit].rstrip()
    return f"{kept} […{len(text) - len(kept)} more characters]"


def presentable(value: Any) -> Any:
    """A JSON value with every string in it made visible; `text` fields are shortened.

    Args:
        value: what `model_dump(mode="json")` returns, or a part of it.

    Returns:
        A new value of the same shape.
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key): _field(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [presentable(item) for item in value]
    return value


def _field(key: str, value: Any) -> Any:
    shown = presentable(value)
    return shortened(shown) if key == "text" and isinstance(shown, str) else shown
