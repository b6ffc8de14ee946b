"""Distinct texts, tokenised once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


class TokenTable:
    """Every distinct text gets a row; its token ids are computed once and kept.

    Args:
        tokenizer_file: `tokenizer.json` of the model.
        max_tokens: texts are cut to this many tokens, special tokens included.
    """

    def __init__(self, tokenizer_file: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        self._rows: dict[str, int] = {}
        self._ids: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Row of each text, (n,) int64; texts not seen before are tokenised."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if fresh:
            for text, encoding in zip(fresh, self._tokenizer.encode_batch(fresh), strict=True):
                self._rows[text] = len(self._ids)
                self._ids.append(np.asarray(encoding.ids, dtype=np.int64))
        return np.fromiter((self._rows[text] for text in texts), dtype=np.int64, count=len(texts))

    def ids(self, row: int) -> np.ndarray:
        """Token ids of a row, (length,) int64."""
        return self._ids[row]

    def lengths(self, rows: Iterable[int]) -> np.ndarray:
        """Token counts, (n,) int64."""
        return np.fromiter((len(self._ids[row]) for row in rows), dtype=np.int64)


def length_groups(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut items into groups of similar length, so that padding costs little.

    Args:
        lengths: (n,) tokens per item.
        max_tokens: bound on items x longest item of a group; a single longer item stands alone.

    Returns:
        Positions of each group, shortest items first.
    """
    order = np.argsort(lengths, kind="stable")
    groups: list[np.ndarray] = []
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > max_tokens:
            groups.append(order[start:end])
            start = end
    return groups
