"""Who gets which variant: a hash bucket of (salt, test, unit), the same in every process."""

from __future__ import annotations

import hashlib
import unicodedata
from enum import StrEnum

from ragtune_mcp.core.errors import InvalidInput

_SHOWN = 100


class Variant(StrEnum):
    """The two sides of a test, and `BOTH` for an interleaved list."""

    BASELINE = "baseline"
    TEST = "test"
    BOTH = "both"


def normalise_query(query: str) -> str:
    """NFKC, case-folded, runs of white space as one blank: repeated queries become one unit."""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split())


def check_text(name: str, text: str) -> None:
    """Refuse what SQLite cannot find again: a lone surrogate has no UTF-8, and its JSON ends at a NUL."""
    bad = next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        raise InvalidInput(
            f"{name} is {text[:_SHOWN]!r}; it holds the character {bad!r}, which cannot be stored.",
            hint="Remove the character and repeat the call.",
        )


def unit_of(query: str, unit_id: str = "") -> str:
    """The unit of randomisation: the caller's id where given, else the normalised query text."""
    return f"unit:{unit_id}" if unit_id else f"query:{normalise_query(query)}"


def bucket(salt: str, experiment_id: str, unit_id: str) -> float:
    """A number in [0, 1), uniform over units: the first 53 bits of sha256(salt, experiment, unit)."""
    digest = hashlib.sha256(
        f"{salt}\x1f{experiment_id}\x1f{unit_id}".encode("utf-8", "surrogatepass")
    ).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign(salt: str, experiment_id: str, unit_id: str, split: float) -> Variant:
    """The test variant for a `split` share of units, in (0, 1], the baseline for the rest."""
    return Variant.TEST if bucket(salt, experiment_id, unit_id) < split else Variant.BASELINE


def coin_flips(salt: str, experiment_id: str, unit_id: str) -> int:
    """256 fair coins of a unit as the bits of one integer, independent of its bucket: for team drafting."""
    digest = hashlib.sha256(
        f"{salt}/draft\x1f{experiment_id}\x1f{unit_id}".encode("utf-8", "surrogatepass")
    ).digest()
    return int.from_bytes(digest, "big")
