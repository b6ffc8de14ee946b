"""Reading single values of a feedback entry: accepted as clients really send them, else refused by reason."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ragtune_mcp.core.clock import from_iso
from ragtune_mcp.core.errors import FeedbackInvalid, InvalidInput

_RATING_TEXT = re.compile(r"\s*([1-5])(?:\.0+)?\s*", re.ASCII)
_TRUTH_WORDS = {"true": True, "false": False, "1": True, "0": False}
_UNIX_TEXT = re.compile(r"\d{9,}(?:\.\d+)?", re.ASCII)
# Beyond the year 5138 in seconds: such a number is JavaScript's milliseconds.
_MILLISECONDS_FROM = 1e11
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def invalid(reason: str, what: str, value: Any) -> FeedbackInvalid:
    """The error for one malformed value, which the message repeats shortened."""
    return FeedbackInvalid(reason, f"{what} is {reprlib.repr(value)}.")


def decode_json(text: str) -> Any:
    """Parse JSON text.

    Args:
        text: what should be JSON.

    Returns:
        The value.

    Raises:
        FeedbackInvalid: reason invalid_json; the text is truncated, nested too deep or otherwise broken.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise FeedbackInvalid("invalid_json", f"Not valid JSON ({why}): {reprlib.repr(text)}.") from error


def encode_json(value: Any) -> str:
    """Any JSON-able value as text that every reader takes: whole characters, NaN and infinities as null.

    Args:
        value: made of what JSON has a form for.

    Returns:
        The text.

    Raises:
        InvalidInput: the value holds something that JSON has no form for.
    """
    try:
        text = whole(json.dumps(value, ensure_ascii=False))
        if "NaN" in text or "Infinity" in text:
            text = json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"The value {reprlib.repr(value)} cannot be written as JSON: {error}.") from error
    return text


def rating(value: Any, what: str, *, reason: str = "invalid_rating") -> int | None:
    """A rating 1..5 as a number or digit string; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        match = _RATING_TEXT.fullmatch(value)
        if match:
            return int(match[1])
    elif not isinstance(value, bool) and isinstance(value, int | float) and value in (1, 2, 3, 4, 5):
        return int(value)
    raise invalid(reason, what, value)


def signal(value: Any, what: str) -> bool | None:
    """An implicit signal: a truth value, 0 or 1, or one of these as text; None where there is none."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return value == 1
    if isinstance(value, str) and value.strip().lower() in _TRUTH_WORDS:
        return _TRUTH_WORDS[value.strip().lower()]
    raise invalid("invalid_signal", what, value)


def moment(value: Any, fallback: datetime) -> datetime:
    """A time, aware UTC, from unix seconds (or milliseconds) or ISO-8601 text; a text without zone is UTC."""
    if value is None or value == "":
        return fallback
    try:
        parsed = _moment(value)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise invalid("invalid_timestamp", "timestamp", value) from error
    if parsed < _EPOCH:
        raise invalid("invalid_timestamp", "timestamp", value)
    return parsed


def _moment(value: Any) -> datetime:
    if isinstance(value, bool):
        raise TypeError("a truth value is no time")
    if isinstance(value, str):
        text = value.strip()
        if not _UNIX_TEXT.fullmatch(text):
            return from_iso(text)
        value = float(text)
    return datetime.fromtimestamp(value / 1000 if value >= _MILLISECONDS_FROM else value, UTC)


def query(value: Any) -> str:
    """The query, not blank."""
    if value is not None and not isinstance(value, str):
        raise invalid("invalid_query", "query", value)
    if value is None or not value.strip():
        raise invalid("empty_query", "query", value)
    return whole(value)


def optional_text(value: Any, reason: str, what: str) -> str | None:
    """A text or None."""
    if value is not None and not isinstance(value, str):
        raise invalid(reason, what, value)
    return None if value is None else whole(value)


def document_id(value: Any) -> str:
    """A document id: text that is not empty, or a number."""
    id_ = name(value)
    if not id_:
        raise invalid("invalid_documents", "a document id", value)
    return id_


def rank(value: Any) -> int | None:
    """A rank from 1, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid("invalid_documents", "rank", value)
    return value


def score(value: Any) -> float | None:
    """A finite score, or None."""
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise invalid("invalid_documents", "score", value)


def name(value: Any) -> str:
    """Ids and names: a text as it is, a whole number as its digits, anything else as nothing."""
    if isinstance(value, str):
        return whole(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def mapping(value: Any) -> Mapping[str, Any]:
    """An object, or an empty one."""
    return value if isinstance(value, Mapping) else {}


def whole(text: str) -> str:
    """The text with halves of surrogate pairs replaced by U+FFFD, so that it can be written as UTF-8.

    Clients that cut a text by UTF-16 units leave such halves behind.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
