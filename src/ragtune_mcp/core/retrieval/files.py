"""Reading the workspace's files: what kind each is, what is left alone, and how it is cut."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from ragtune_mcp.core.retrieval.chunking import Section, cut
from ragtune_mcp.core.retrieval.definitions import SUFFIXES as CODE
from ragtune_mcp.core.retrieval.definitions import code_sections
from ragtune_mcp.core.retrieval.documents import Document, Scan, storable
from ragtune_mcp.core.retrieval.markup import markdown_sections, rst_sections, text_sections
from ragtune_mcp.core.retrieval.reading import CONVERTED, Skip, convert, read_text, refuse_name
from ragtune_mcp.core.retrieval.walk import is_private, match_files
from ragtune_mcp.core.workspace import Workspace

MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mdx"})
RST = frozenset({".rst", ".rest"})
TEXT = frozenset({".txt", ".text", ".adoc", ".asciidoc", ".org"})
CORPUS = frozenset({".jsonl"})

_SIZE_LIMIT = 2 * 1024 * 1024
_CORPUS_LIMIT = 512 * 1024 * 1024
_CONVERTED_LIMIT = 64 * 1024 * 1024
# A line this long in a code file means generated or minified text.
_LINE_LIMIT = 5000


def scan_files(workspace: Workspace, patterns: Sequence[str], known: frozenset[str]) -> Scan:
    """Read the files that the patterns match.

    Args:
        workspace: whose files.
        patterns: see `walk.match_files`; empty for the whole workspace.
        known: files indexed before, so that deleted ones are noticed.

    Returns:
        Their documents. Replaced are the files matched now, and the known ones that no longer exist or that are
        ignored by now, but not those that could not be read just now. Skipped files are counted by reason:
        ignored, secret, unsupported_type, too_large, binary, not_utf8, empty, generated, not_a_corpus,
        converter_missing, not_convertible, outside_workspace, unreadable.

    Raises:
        InvalidInput: a pattern matches nothing.
        PathOutsideWorkspace: a pattern leaves the workspace.
    """
    matches = match_files(workspace, patterns, known)
    documents: list[Document] = []
    skipped = Counter({"ignored": len(matches.ignored)}) if matches.ignored else Counter[str]()
    replaced = set(matches.ignored)
    for match in matches.files:
        try:
            documents += read_file(workspace, match.path, named=match.named)
        except Skip as skip:
            skipped[skip.reason] += 1
            if skip.reason == "unreadable":
                continue
        replaced.add(match.path)
    gone = {origin for origin in known if not (workspace.root / origin).is_file()}
    return Scan("files", tuple(documents), frozenset(replaced | gone), skipped)


def read_file(workspace: Workspace, path: str, *, named: bool) -> list[Document]:
    """Cut one file into documents.

    Args:
        workspace: where it is.
        path: relative to the workspace, with "/".
        named: the caller named this file, so that an unknown kind is read as plain text.

    Returns:
        Its documents.

    Raises:
        Skip: it is not used.
    """
    _refuse(workspace, path)
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in CONVERTED:
        return cut("files", path, markdown_sections(convert(workspace, path, _CONVERTED_LIMIT), path))
    if suffix in CORPUS:
        return list(_corpus(path, read_text(workspace, path, _CORPUS_LIMIT)))
    if not (named or suffix in MARKDOWN | RST | TEXT | CODE):
        raise Skip("unsupported_type")
    return cut("files", path, _sections(path, suffix, read_text(workspace, path, _SIZE_LIMIT)))


def _refuse(workspace: Workspace, path: str) -> None:
    """Raise Skip for what must not be read, by the file's own name and by that of what it links to."""
    refuse_name(path)
    real_root, real = workspace.root.resolve(), (workspace.root / path).resolve()
    if real.is_relative_to(real_root):
        target = real.relative_to(real_root).as_posix()
        refuse_name(target)
        if is_private(workspace, target):
            raise Skip("ignored")


def _sections(path: str, suffix: str, text: str) -> list[Section]:
    if suffix in MARKDOWN:
        return markdown_sections(text, path)
    if suffix in RST:
        return rst_sections(text, path)
    if suffix in CODE:
        if max(map(len, text.split("\n"))) > _LINE_LIMIT:
            raise Skip("generated")
        return code_sections(text, path, suffix)
    return text_sections(text, path)


def _corpus(path: str, text: str) -> Iterator[Document]:
    """One document a line of a BEIR-style corpus, never cut: its id is what judgements refer to."""
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            doc_id, title, body = str(row["_id"]), str(row.get("title") or ""), str(row["text"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Skip("not_a_corpus") from error
        full = storable(f"{title} {body}".strip())
        if full and doc_id:
            yield Document(storable(doc_id), "files", path, storable(title), full)
