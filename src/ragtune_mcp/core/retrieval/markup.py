"""Sections of prose files: Markdown, reStructuredText, plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from ragtune_mcp.core.retrieval.chunking import Section, slug

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_UNDERLINE = re.compile(r"([!-/:-@\[-`{-~])\1+[ \t]*\Z")
_JOIN = " > "


def markdown_sections(text: str, name: str) -> list[Section]:
    """Cut at headings as CommonMark defines them: ATX and setext, not inside code, quotes or lists.

    Args:
        text: the file, with Unix newlines; YAML front matter is dropped.
        name: title of what stands before the first heading.

    Returns:
        One section a heading, with its headings above as title.
    """
    text = _FRONT_MATTER.sub("", text, count=1)
    lines = text.split("\n")
    tokens = _block_parser().parse(text)
    headings = []
    for opening, inline in zip(tokens, tokens[1:], strict=False):
        if opening.type == "heading_open" and opening.level == 0 and opening.map is not None:
            headings.append((opening.map[0], opening.map[1], int(opening.tag[1:]), _plain(inline.content)))
    return list(_nested(lines, headings, name))


def rst_sections(text: str, name: str) -> list[Section]:
    """Cut at reStructuredText section titles: underlined, or over- and underlined, with punctuation.

    Args:
        text: the file, with Unix newlines.
        name: title of what stands before the first title.

    Returns:
        One section a title, with its titles above; levels follow the order in which the styles appear.
    """
    lines = text.split("\n")
    headings: list[tuple[int, int, int, str]] = []
    styles: list[tuple[str, bool]] = []
    n = 0
    while n < len(lines):
        found = _rst_title(lines, n)
        if found is None:
            n += 1
            continue
        end, title, style = found
        if style not in styles:
            styles.append(style)
        headings.append((n, end, styles.index(style) + 1, title))
        n = end
    return list(_nested(lines, headings, name))


def text_sections(text: str, name: str) -> list[Section]:
    """A plain text is one section; its paragraphs decide where long ones are cut."""
    return [Section("", name, text)]


def _nested(lines: list[str], headings: list[tuple[int, int, int, str]], name: str) -> Iterator[Section]:
    """Sections from headings given as (first line, line after, level, title)."""
    first = headings[0][0] if headings else len(lines)
    yield Section("", name, "\n".join(lines[:first]))
    above: list[tuple[int, str]] = []
    for n, (_, end, level, title) in enumerate(headings):
        above = [*((depth, upper) for depth, upper in above if depth < level), (level, title)]
        following = headings[n + 1][0] if n + 1 < len(headings) else len(lines)
        yield Section(slug(title), _JOIN.join(upper for _, upper in above), "\n".join(lines[end:following]))


def _rst_title(lines: list[str], n: int) -> tuple[int, str, tuple[str, bool]] | None:
    """(line after, title, style) of a section title that begins at line n."""
    if n + 2 < len(lines) and _UNDERLINE.match(lines[n]) and lines[n].rstrip() == lines[n + 2].rstrip():
        title = lines[n + 1].strip()
        if title and len(title) <= len(lines[n].rstrip()) and not _UNDERLINE.match(lines[n + 1]):
            return n + 3, title, (lines[n][0], True)
    if n + 1 >= len(lines) or not lines[n] or lines[n][0].isspace() or _UNDERLINE.match(lines[n]):
        return None
    title, rule = lines[n].rstrip(), lines[n + 1].rstrip()
    starts_paragraph = n == 0 or not lines[n - 1].strip()
    if starts_paragraph and _UNDERLINE.match(rule) and len(rule) >= len(title):
        return n + 2, title, (rule[0], False)
    return None


@cache
def _block_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


@cache
def _inline_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark")


def _plain(heading: str) -> str:
    """A heading's words without its markup."""
    tokens = _inline_parser().parseInline(heading)[0].children or []
    words = "".join(" " if t.type.endswith("break") else t.content for t in tokens if t.type != "html_inline")
    return words.strip() or heading.strip()
