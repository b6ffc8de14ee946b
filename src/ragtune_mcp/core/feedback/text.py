"""Plain text out of what people type and paste, and the key two texts are compared by."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser
from typing import Any

_TAGS = frozenset(
    """a abbr article aside b blockquote body br caption center code col colgroup dd del details div dl dt em
    figcaption figure font footer h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins kbd label li
    link main mark meta nav ol option p pre q s samp script section select small span strike strong style sub
    summary sup svg table tbody td textarea tfoot th thead title tr u ul var video""".split()
)
_BLOCKS = frozenset(
    """article aside blockquote br caption dd details div dl dt figcaption figure footer h1 h2 h3 h4 h5 h6
    header hr li main nav ol option p pre section table td th title tr ul""".split()
)
_DROPPED = frozenset({"script", "style", "head", "iframe", "svg"})
_TAG = re.compile(r"<(?P<close>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]{0,15})(?=[\s/>])[^<>]{0,2000}>")
_MARKDOWN = (
    (re.compile(r"!?\[([^\]\n]{0,500})\]\((?:[^()\s]|\([^()\s]*\)){0,1000}\)"), r"\1"),
    (re.compile(r"^[ \t]{0,3}(?:#{1,6}|>)[ \t]+", re.MULTILINE), ""),
    (re.compile(r"\*\*(?=\S)([^\n]{1,500}?)(?<=\S)\*\*"), r"\1"),
    (re.compile(r"`{1,3}([^`\n]{1,500})`{1,3}"), r"\1"),
)
# What no text field means to hold: C0/C1 controls but tab and line feeds, lone surrogates, the byte order
# mark.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+")


class _Stripper(HTMLParser):
    """Keeps character data outside dropped elements; a block element ends a line."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        lower = text.lower()
        # An element that is never closed must not swallow the rest of the text.
        self._droppable = {tag for tag in _DROPPED if f"</{tag}" in lower}
        self.parts: list[str] = []
        self._dropped: list[str] = []

    def set_cdata_mode(self, elem: str, **kwargs: Any) -> None:
        if elem in self._droppable:
            super().set_cdata_mode(elem, **kwargs)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            self.parts.append(self.get_starttag_text() or "")
        elif tag in self._droppable:
            self._dropped.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag not in _TAGS:
            self.parts.append(f"</{tag}>")
        elif self._dropped and self._dropped[-1] == tag:
            self._dropped.pop()
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self.parts.append(data)


def scrub(text: str) -> str:
    """The text without control characters (tab and line feed stay); a lone surrogate becomes U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def has_html(text: str) -> bool:
    """Whether the text is HTML: one of HTML's elements is opened and closed, or a line is broken by `<br>`.

    A text about HTML ("removes the <base> tag"), `List<String>` and `a < b` are not.
    """
    if "<" not in text:
        return False
    opened: set[str] = set()
    for match in _TAG.finditer(text):
        name = match.group("name").lower()
        if name == "br" or (match.group("close") and name in opened):
            return True
        if not match.group("close") and name in _TAGS:
            opened.add(name)
    return False


def strip_html(text: str) -> str:
    """The text with HTML elements replaced by their character data; text without HTML is returned as it is.

    Entities are resolved only where tags show that the text is HTML; contents of script, style, head, iframe
    and svg are dropped; tags outside HTML's vocabulary (generics, placeholders) stay.
    """
    if not has_html(text):
        return text
    parser = _Stripper(text)
    parser.feed(text)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def plain_query(text: str) -> str:
    """A query or answer as one line of plain text: HTML and Markdown stripped, white space collapsed."""
    text = strip_html(scrub(text))
    if any(mark in text for mark in "[#>*`"):
        for pattern, replacement in _MARKDOWN:
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


def query_key(query: str) -> str:
    """What makes two spellings the same query: NFKC, case folded, words and their order only.

    A query without word characters is its own key, so that two of them never meet.
    """
    folded = query.lower() if query.isascii() else unicodedata.normalize("NFKC", query).casefold()
    return " ".join(_WORD.findall(folded)) or " ".join(folded.split())


def text_key(text: str) -> str:
    """What makes two document texts the same: white space collapsed."""
    return " ".join(text.split())


def document_key(text: str) -> str:
    """What makes two documents the same wherever their texts come from: `text_key` of the text without its HTML.

    An indexed text keeps its HTML, a text that an entry carries loses it; both have one key.
    """
    text = text_key(text)
    return text_key(strip_html(text)) if "<" in text else text
