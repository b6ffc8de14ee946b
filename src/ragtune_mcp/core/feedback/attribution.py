"""Answers rated without documents, matched to the indexed documents they quote or name.

No model takes part, so that the model under training cannot label its own training data. A document is
attributed

- by **quotation**: the answer and the document share runs of words. Shingles of six words that occur in at
  most `MAX_SHARED` documents vote for documents; each candidate is then aligned with the answer by runs of
  three words, which bridges small edits. It counts when its aligned words reach `MIN_WORDS` and `MIN_SHARE`
  of the answer's or of its own words, whichever is fewer.
- by **name**: its id stands in the answer as a word of its own and looks like an id (holds a digit or one of
  / # . _ -).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from ragtune_mcp.core.feedback.text import strip_html

QUOTE_WORDS = 6
BRIDGE_WORDS = 3
MIN_WORDS = 12
MIN_SHARE = 0.2
MAX_SHARED = 5
MAX_DOCUMENTS = 5
NAMED_OVERLAP = 0.8
# An answer is read this far; a longer one is a dump of documents, not a quotation.
_MAX_ANSWER_CHARS = 40_000
_WORD = re.compile(r"\w+")
_ID = re.compile(r"[\w./#:~-]+")
_ID_MARK = re.compile(r"[/#._\-0-9]")

# Word numbers stay below 2^21 (two million distinct words), so three of them fit one int64 exactly.
_PLACES = np.array([1 << 42, 1 << 21, 1], dtype=np.int64)
_Words = npt.NDArray[np.int32]


class Match(NamedTuple):
    """One attributed document; overlap in (0, 1] says how sure the link is."""

    document_id: str
    overlap: float
    how: str


class Attributor:
    """A shingle index over all documents, built when the first answer needs it.

    It holds 16 bytes per word of the documents, and their texts.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._index: _ShingleIndex | None = None
        self._names = {
            i.lower(): i for i in sorted(texts, reverse=True) if len(i) >= 4 and _ID_MARK.search(i)
        }

    def match(self, answer: str) -> list[Match]:
        """The documents an answer quotes or names, surest first, at most `MAX_DOCUMENTS`."""
        if self._index is None:
            self._index = _ShingleIndex(self._texts)
        text = strip_html(answer[:_MAX_ANSWER_CHARS])
        found = {m.document_id: m for m in self._named(text)}
        for match in self._index.quoted(text):
            known = found.get(match.document_id)
            if known is None or match.overlap > known.overlap:
                found[match.document_id] = match
        return sorted(found.values(), key=lambda m: (-m.overlap, m.document_id))[:MAX_DOCUMENTS]

    def _named(self, text: str) -> Iterator[Match]:
        for token in set(_ID.findall(text.lower())):
            doc_id = self._names.get(token) or self._names.get(token.strip(".:-"))
            if doc_id is not None:
                yield Match(doc_id, NAMED_OVERLAP, "named")


class _ShingleIndex:
    """Runs of six words -> documents, as two sorted arrays."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._vocabulary: dict[str, int] = {}
        self._ids = sorted(texts)
        known = self._vocabulary
        self._words = [
            np.array([known.setdefault(w, len(known)) for w in _words(texts[i])], dtype=np.int32)
            for i in self._ids
        ]
        runs = [np.unique(_runs(words, QUOTE_WORDS)) for words in self._words]
        owners = np.repeat(np.arange(len(runs), dtype=np.int32), [len(r) for r in runs])
        shingles = np.concatenate([np.zeros(0, dtype=np.uint64), *runs])
        order = np.argsort(shingles, kind="stable")
        self._shingles, self._owners = shingles[order], owners[order]

    def quoted(self, text: str) -> Iterator[Match]:
        """The documents that share enough runs of words with a text."""
        words = np.array([self._vocabulary.get(w, -1) for w in _words(text)], dtype=np.int32)
        for number in self._candidates(words):
            own = self._words[number]
            aligned = _aligned(words, own)
            share = aligned / max(1, min(len(words), len(own)))
            if aligned >= min(MIN_WORDS, len(own)) and share >= MIN_SHARE:
                yield Match(self._ids[number], min(1.0, round(share, 6)), "quoted")

    def _candidates(self, words: _Words) -> list[int]:
        """Documents by the number of rare shingles they share with the words."""
        wanted = np.unique(_runs(words, QUOTE_WORDS))
        start = np.searchsorted(self._shingles, wanted, side="left")
        end = np.searchsorted(self._shingles, wanted, side="right")
        rare = (end > start) & (end - start <= MAX_SHARED)
        owners = [self._owners[a:b] for a, b in zip(start[rare], end[rare], strict=True)]
        if not owners:
            return []
        numbers, votes = np.unique(np.concatenate(owners), return_counts=True)
        best = np.lexsort((numbers, -votes))[: 2 * MAX_DOCUMENTS]
        return [int(number) for number in numbers[best]]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: _Words, length: int) -> npt.NDArray[np.uint64]:
    """A hash for every run of that many words; runs with a word no document has are left out."""
    if len(words) < length:
        return np.zeros(0, dtype=np.uint64)
    hashed = np.zeros(len(words) - length + 1, dtype=np.uint64)
    known = np.ones(len(hashed), dtype=bool)
    for i in range(length):
        part = words[i : i + len(hashed)]
        known &= part >= 0
        hashed = (hashed ^ part.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)
    return hashed[known]


def _aligned(answer: _Words, document: _Words) -> int:
    """How many words of the answer stand in a run of three that the document also has."""
    if min(len(answer), len(document)) < BRIDGE_WORDS:
        return 0
    shared = np.isin(_places_of(answer), _places_of(document))
    covered = np.zeros(len(answer), dtype=bool)
    for i in range(BRIDGE_WORDS):
        covered[i : i + len(shared)] |= shared
    return int(covered.sum())


def _places_of(words: _Words) -> npt.NDArray[np.int64]:
    runs: npt.NDArray[np.int64] = sliding_window_view(words, BRIDGE_WORDS) @ _PLACES
    return runs
