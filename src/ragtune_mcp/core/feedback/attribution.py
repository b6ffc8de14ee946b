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
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

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


class Match(NamedTuple):
    """One attributed document; overlap in (0, 1] says how sure the link is."""

    document_id: str
    overlap: float
    how: str


class Attributor:
    """A shingle index over all documents, built when the first answer needs it.

    Memory is about 100 bytes per distinct word position of the documents.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._documents: list[str] = []
        self._shingles: dict[int, list[int]] | None = None
        self._names: dict[str, str] = {}

    def match(self, answer: str) -> list[Match]:
        """The documents an answer quotes or names, surest first, at most `MAX_DOCUMENTS`."""
        if self._shingles is None:
            self._shingles = self._build()
        text = strip_html(answer[:_MAX_ANSWER_CHARS])
        words = _words(text)
        found = {m.document_id: m for m in self._named(text)}
        for match in self._quoted(words):
            known = found.get(match.document_id)
            if known is None or match.overlap > known.overlap:
                found[match.document_id] = match
        return sorted(found.values(), key=lambda m: (-m.overlap, m.document_id))[:MAX_DOCUMENTS]

    def _build(self) -> dict[int, list[int]]:
        index: dict[int, list[int]] = defaultdict(list)
        for doc_id in sorted(self._texts):
            number = len(self._documents)
            self._documents.append(doc_id)
            if any(c in doc_id for c in "/#._-0123456789") and len(doc_id) >= 4:
                self._names[doc_id.lower()] = doc_id
            for shingle in set(_runs(_words(self._texts[doc_id]), QUOTE_WORDS)):
                owners = index[shingle]
                # One more than allowed marks the shingle as common.
                if len(owners) <= MAX_SHARED:
                    owners.append(number)
        return index

    def _named(self, text: str) -> Iterator[Match]:
        for token in set(_ID.findall(text.lower())):
            doc_id = self._names.get(token) or self._names.get(token.strip(".:-"))
            if doc_id is not None:
                yield Match(doc_id, NAMED_OVERLAP, "named")

    def _quoted(self, words: list[str]) -> Iterator[Match]:
        votes: Counter[int] = Counter()
        shingles = self._shingles or {}
        for shingle in set(_runs(words, QUOTE_WORDS)):
            owners = shingles.get(shingle, ())
            if len(owners) <= MAX_SHARED:
                votes.update(owners)
        for number, _ in sorted(votes.items(), key=lambda v: (-v[1], v[0]))[: 4 * MAX_DOCUMENTS]:
            doc_id = self._documents[number]
            own = _words(self._texts[doc_id])
            aligned = _aligned(words, own)
            share = aligned / max(1, min(len(words), len(own)))
            if aligned >= min(MIN_WORDS, len(own)) and share >= MIN_SHARE:
                yield Match(doc_id, min(1.0, round(share, 6)), "quoted")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: list[str], n: int) -> Iterator[int]:
    # hash() of a tuple of str changes with PYTHONHASHSEED, which is fine for an index that lives in one
    # process: collisions apart, membership does not depend on it.
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))


def _aligned(answer: list[str], document: list[str]) -> int:
    """How many words of the answer stand in a run of three that the document also has."""
    own = set(_runs(document, BRIDGE_WORDS))
    covered = bytearray(len(answer))
    for i, run in enumerate(_runs(answer, BRIDGE_WORDS)):
        if run in own:
            covered[i : i + BRIDGE_WORDS] = b"\1" * BRIDGE_WORDS
    return sum(covered)
