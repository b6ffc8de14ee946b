"""From sections to documents: ids that stay, and pieces that fit the encoder's window.

A MiniLM reads 256 word pieces, about 200 English words; what lies beyond is not encoded. Longer sections are
therefore cut at paragraph, line or sentence ends into parts of at most `WORDS`, each with the section's
title.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ragtune_mcp.core.retrieval.documents import Document

WORDS = 210
_CHARACTERS = 1600
# A last part smaller than this is joined to the one before it.
_TAIL = 40

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
# Scripts without spaces: one character is about one word piece.
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_SENTENCE_END = re.compile("(?<=[.!?])\\s+|(?<=[\u3002\uff01\uff1f])")
_SLUG_DROP = re.compile(r"[^\w\- ]")


@dataclass(frozen=True, slots=True)
class Section:
    """A titled piece of a file.

    Attributes:
        anchor: names it inside the file; "" for what stands before the first heading or definition.
        title: shown, and encoded with every part.
    """

    anchor: str
    title: str
    body: str


def slug(heading: str) -> str:
    """The anchor of a heading as code hosts make it: lower case, punctuation dropped, spaces to hyphens."""
    return _SLUG_DROP.sub("", heading.strip().lower()).replace(" ", "-") or "section"


def count_words(text: str) -> int:
    """Words, each ideograph, kana or hangul syllable being one."""
    return sum(1 for _ in _WORD.finditer(text))


def cut(source: str, origin: str, sections: Iterable[Section]) -> list[Document]:
    """Make documents of a file's sections.

    Args:
        source: files, conport, ...
        origin: the file or item; the first half of every id.
        sections: in the order of the file; those without a body are dropped.

    Returns:
        Documents with unique ids `origin#anchor`, later parts `~2`, `~3`; a repeated anchor gets `-1`, `-2`.
    """
    base = origin.replace("#", "%23")
    documents, used = [], set[str]()
    for section in sections:
        body = section.body.strip("\n").rstrip()
        if not body.strip():
            continue
        anchor = _unique(section.anchor, used)
        doc_id = f"{base}#{anchor}" if anchor else base
        for n, part in enumerate(parts(body), 1):
            text = f"{section.title}\n\n{part}" if section.title else part
            documents.append(
                Document(doc_id if n == 1 else f"{doc_id}~{n}", source, origin, section.title, text)
            )
    return documents


def parts(text: str) -> list[str]:
    """Cut a text into parts of at most `WORDS` words at the best places there are."""
    if _fits(text):
        return [text]
    packed: list[str] = []
    joints: list[str] = []
    sizes: list[int] = []
    for piece, joint in _pieces(text):
        words = count_words(piece)
        if packed and sizes[-1] + words <= WORDS and len(packed[-1]) + len(piece) <= _CHARACTERS:
            packed[-1] += joint + piece
            sizes[-1] += words
        else:
            packed.append(piece)
            joints.append(joint)
            sizes.append(words)
    if len(packed) > 1 and sizes[-1] < _TAIL and len(packed[-1]) < _CHARACTERS // 5:
        packed[-2:] = [f"{packed[-2]}{joints[-1]}{packed[-1]}"]
    return [part for part in (part.strip("\n") for part in packed) if part.strip()]


def _fits(text: str) -> bool:
    return len(text) <= _CHARACTERS and count_words(text) <= WORDS


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Pieces that fit, each with what joins it to the piece before."""
    for block in _blocks(text):
        if _fits(block):
            yield block, "\n\n"
            continue
        for n, line in enumerate(block.split("\n")):
            joint = "\n" if n else "\n\n"
            if _fits(line):
                yield line, joint
                continue
            for m, sentence in enumerate(_SENTENCE_END.split(line)):
                yield from _forced(sentence, " " if m else joint)


def _forced(text: str, joint: str) -> Iterator[tuple[str, str]]:
    if _fits(text):
        yield text, joint
        return
    start = end = words = 0
    for match in _WORD.finditer(text):
        if end > start and (words == WORDS or match.end() - start > _CHARACTERS):
            yield text[start:end], joint
            start, words, joint = match.start(), 0, " "
        end, words = match.end(), words + 1
        while end - start > _CHARACTERS:
            yield text[start : start + _CHARACTERS], joint
            start, words, joint = start + _CHARACTERS, 1, ""
    yield text[start:end], joint


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs; a fenced code block is one, blank lines and all."""
    block: list[str] = []
    fence = ""
    for line in text.split("\n"):
        if fence:
            block.append(line)
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
            continue
        opening = _FENCE.match(line)
        if opening:
            fence = opening.group(1)
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)


def _unique(anchor: str, used: set[str]) -> str:
    candidate, n = anchor, 0
    while candidate in used:
        n += 1
        candidate = f"{anchor}-{n}"
    used.add(candidate)
    return candidate
