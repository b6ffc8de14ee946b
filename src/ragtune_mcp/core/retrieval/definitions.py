"""Sections of source code: one a definition, with the comments and decorators above it.

Python is cut by its own parser. Other languages are cut at lines that begin a definition, recognised by one
pattern a language family: that needs no grammar per language and fails soft, since a missed definition only
stays in the section before it.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ragtune_mcp.core.retrieval.chunking import WORDS, Section, count_words

_MODIFIERS = (
    r"(?:(?:public|private|protected|internal|fileprivate|static|final|abstract|sealed|partial|open|data|async"
    r"|override|virtual|readonly|export|default|declare|inline|suspend|mutating|extern|unsafe|const"
    r"|pub(?:\([^)]*\))?)\s+)*"
)
_TYPES = (
    r"(?:class|interface|enum|record|object|trait|struct|protocol|extension|namespace|module|union|mixin)"
)


@dataclass(frozen=True, slots=True)
class _Language:
    """Patterns of definitions, each with a group `name`: at the margin, and inside a long one of those."""

    top: tuple[re.Pattern[str], ...]
    member: tuple[re.Pattern[str], ...] = ()


def _language(top: Sequence[str], member: Sequence[str] = (), flags: int = 0) -> _Language:
    return _Language(
        tuple(re.compile(p, flags) for p in top),
        tuple(re.compile(rf"(?:\t| {{2}}| {{4}})(?=\S){p}", flags) for p in member),
    )


_NOT_KEYWORD = (
    r"(?!(?:if|for|while|switch|return|catch|else|do|throw|new|await|with|using|lock|foreach|elif|case)\b)"
)
_SCRIPT = _language(
    [
        rf"{_MODIFIERS}(?:function\*?|type|{_TYPES})\s+(?P<name>[\w$]+)",
        r"(?:export\s+)?(?:const|let|var)\s+(?P<name>[\w$]+)\s*(?::[^=]+)?=\s*(?:async\b|function\b|\(|<|[\w$]+\s*=>|class\b)",
    ],
    [
        rf"{_NOT_KEYWORD}(?:(?:public|private|protected|static|async|override|get|set)\s+)*\*?(?P<name>[\w$#]+)\s*(?:<[^>]*>)?\([^;]*$"
    ],
)
_CURLY = _language(
    [
        rf"{_MODIFIERS}(?:(?:data|enum|value|annotation|inner)\s+)?(?:{_TYPES}|func|fun|function|def|typealias)\s+(?P<name>[\w.]+)"
    ],
    [
        rf"{_MODIFIERS}(?:{_TYPES}|func|fun|function|def)\s+(?P<name>\w+)",
        rf"{_NOT_KEYWORD}{_MODIFIERS}(?:[\w<>\[\],.?]+\s+)+(?P<name>\w+)\s*\([^;]*$",
    ],
)
_GO = _language(
    [
        r"func\s+\(\s*(?:\w+\s+)?\*?(?P<owner>\w+)[^)]*\)\s*(?P<name>\w+)",
        r"func\s+(?P<name>\w+)",
        r"type\s+(?P<name>\w+)",
    ]
)
_RUST = _language(
    [
        rf"{_MODIFIERS}(?:extern\s+\"[^\"]*\"\s+)?(?:fn|struct|enum|trait|mod|type|union)\s+(?P<name>\w+)",
        r"macro_rules!\s*(?P<name>\w+)",
        r"(?:unsafe\s+)?impl(?:<[^{]*?>)?\s+(?P<name>[^{]+?)\s*(?:\bwhere\b.*)?\{?$",
    ],
    [rf"{_MODIFIERS}fn\s+(?P<name>\w+)"],
)
_C = _language(
    [
        r"(?:typedef\s+)?(?:template\s*<[^>]*>\s*)?(?:struct|class|enum(?:\s+class)?|union|namespace)\s+(?P<name>\w+)[^;]*$",
        rf"{_NOT_KEYWORD}(?!typedef\b|using\b)[A-Za-z_][\w:*&<>,\s]*?(?P<name>~?[\w:]+)\s*\([^;]*$",
    ]
)
_RUBY = _language(
    [r"(?:def|class|module)\s+(?P<name>[\w.:?!]+)"], [r"(?:def|class|module)\s+(?P<name>[\w.:?!]+)"]
)
_SHELL = _language([r"(?:function\s+)?(?P<name>[\w:-]+)\s*\(\)\s*\{?", r"function\s+(?P<name>[\w:-]+)"])
_LUA = _language([r"(?:local\s+)?function\s+(?P<name>[\w.:]+)"])
_SQL = _language(
    [
        r"create\s+(?:or\s+replace\s+)?(?:\w+\s+)*?(?:table|view|function|procedure|trigger|index|type)\s+"
        r"(?:if\s+not\s+exists\s+)?(?P<name>[\w.\"]+)"
    ],
    flags=re.IGNORECASE,
)

_LANGUAGES: dict[str, _Language] = {
    **dict.fromkeys(
        (".js", ".jsx", ".mjs", ".cjs", ".ts", ".tsx", ".mts", ".cts", ".vue", ".svelte"), _SCRIPT
    ),
    **dict.fromkeys((".java", ".kt", ".kts", ".cs", ".swift", ".scala", ".dart", ".php", ".groovy"), _CURLY),
    **dict.fromkeys((".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".m", ".mm"), _C),
    **dict.fromkeys((".sh", ".bash", ".zsh"), _SHELL),
    ".go": _GO,
    ".rs": _RUST,
    ".rb": _RUBY,
    ".lua": _LUA,
    ".sql": _SQL,
}
SUFFIXES = frozenset({".py", ".pyi", *_LANGUAGES})

_ATTACHED = re.compile(r"\s*(?://|#(?!include|define|if|endif|else|pragma)|/\*|\*|@|--|\[\w)")


class _Cut(NamedTuple):
    """A definition: its first line and the line after its last, counted from 0."""

    start: int
    end: int
    name: str


def code_sections(text: str, name: str, suffix: str) -> list[Section]:
    """Cut source code at its definitions.

    Args:
        text: the file, with Unix newlines.
        name: how the file is called in titles.
        suffix: lower case, with the dot; one of `SUFFIXES`.

    Returns:
        What belongs to no definition first, then one section a definition; a long class is cut at its members
        (`Class.member`).
    """
    lines = text.split("\n")
    if suffix in (".py", ".pyi"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            # Another version of the language, or a template: found by the form of its lines instead.
            return _by_pattern(lines, name, _language([r"(?:async\s+)?(?:def|class)\s+(?P<name>\w+)"]))
        return _by_tree(lines, name, tree)
    return _by_pattern(lines, name, _LANGUAGES[suffix])


def _by_tree(lines: list[str], name: str, tree: ast.Module) -> list[Section]:
    cuts = [_python_cut(lines, node) for node in tree.body if _is_definition(node)]
    sections = [Section("", name, _outside(lines, 0, len(lines), cuts))]
    nodes = {_python_cut(lines, node).start: node for node in tree.body if _is_definition(node)}
    for cut in cuts:
        node = nodes[cut.start]
        members = [_python_cut(lines, n) for n in getattr(node, "body", []) if _is_definition(n)]
        is_class = isinstance(node, ast.ClassDef)
        sections += _definition(lines, name, cut, members if is_class else [])
    return sections


def _by_pattern(lines: list[str], name: str, language: _Language) -> list[Section]:
    cuts = _find(lines, 0, len(lines), language.top)
    first = cuts[0].start if cuts else len(lines)
    sections = [Section("", name, "\n".join(lines[:first]))]
    for cut in cuts:
        sections += _definition(lines, name, cut, _find(lines, cut.start + 1, cut.end, language.member))
    return sections


def _definition(lines: list[str], name: str, cut: _Cut, members: list[_Cut]) -> Iterator[Section]:
    body = "\n".join(lines[cut.start : cut.end])
    if not members or count_words(body) <= WORDS:
        yield Section(_anchor(cut.name), f"{name} > {cut.name}", body)
        return
    yield Section(_anchor(cut.name), f"{name} > {cut.name}", _outside(lines, cut.start, cut.end, members))
    for member in members:
        full = f"{cut.name}.{member.name}"
        yield Section(
            _anchor(full), f"{name} > {full}", textwrap.dedent("\n".join(lines[member.start : member.end]))
        )


def _find(lines: list[str], start: int, end: int, patterns: Sequence[re.Pattern[str]]) -> list[_Cut]:
    starts: list[tuple[int, str]] = []
    for n in range(start, end):
        for pattern in patterns:
            if match := pattern.match(lines[n]):
                owner = match.groupdict().get("owner")
                name = match["name"].strip()
                starts.append((_with_comments(lines, n, start), f"{owner}.{name}" if owner else name))
                break
    if not starts:
        return []
    ends = [s for s, _ in starts[1:]] + [end]
    return [_Cut(s, e, name) for (s, name), e in zip(starts, ends, strict=True) if e > s]


def _python_cut(lines: list[str], node: ast.stmt) -> _Cut:
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
    return _Cut(_with_comments(lines, first, 0), node.end_lineno or node.lineno, node.name)


def _is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _with_comments(lines: list[str], n: int, floor: int) -> int:
    """The first of the comment, attribute and decorator lines that stand directly above line n."""
    while n > floor and _ATTACHED.match(lines[n - 1]):
        n -= 1
    return n


def _outside(lines: list[str], start: int, end: int, cuts: Sequence[_Cut]) -> str:
    inside = {n for cut in cuts for n in range(cut.start, cut.end)}
    kept = "\n".join(line for n, line in enumerate(lines[start:end], start) if n not in inside)
    return re.sub(r"\n{3,}", "\n\n", kept)


def _anchor(name: str) -> str:
    return re.sub(r"[^\w.$:]+", "-", name).strip("-") or "definition"
