"""Reading the workspace's files: what kind each is, what is left alone, and how it is cut."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from ragtune_mcp.core.errors import PathOutsideWorkspace
from ragtune_mcp.core.retrieval.chunking import Section, cut
from ragtune_mcp.core.retrieval.definitions import SUFFIXES as CODE
from ragtune_mcp.core.retrieval.definitions import code_sections
from ragtune_mcp.core.retrieval.documents import Document, Scan, storable
from ragtune_mcp.core.retrieval.markup import markdown_sections, rst_sections, text_sections
from ragtune_mcp.core.retrieval.walk import match_files
from ragtune_mcp.core.workspace import Workspace

MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mdx"})
RST = frozenset({".rst", ".rest"})
TEXT = frozenset({".txt", ".text", ".adoc", ".asciidoc", ".org"})
CORPUS = frozenset({".jsonl"})

_SIZE_LIMIT = 2 * 1024 * 1024
_CORPUS_LIMIT = 512 * 1024 * 1024
# A line this long in a code file means generated or minified text.
_LINE_LIMIT = 5000

_SECRETS = re.compile(
    r"""(\.env(\..*)?|.*\.env|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|gpg)|id_(rsa|dsa|ecdsa|ed25519)(\..*)?
    |\.netrc|\.npmrc|\.pypirc|\.pgpass|\.htpasswd|credentials(\.\w+)?|secrets?\.\w+|\.dockercfg)\Z""",
    re.IGNORECASE | re.VERBOSE,
)
_PRIVATE_KEY = re.compile(r"^-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----", re.MULTILINE)


class Skip(Exception):
    """A file that is not used; `reason` is a countable word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def scan_files(workspace: Workspace, patterns: Sequence[str], known: frozenset[str]) -> Scan:
    """Read the files that the patterns match.

    Args:
        workspace: whose files.
        patterns: see `walk.match_files`; empty for the whole workspace.
        known: files indexed before, so that deleted ones are noticed.

    Returns:
        Their documents. Replaced are the files matched now and the known ones that no longer exist; skipped
        files are counted as ignored, secret, unsupported_type, too_large, binary, not_utf8, empty,
        generated, not_a_corpus, outside_workspace or unreadable.

    Raises:
        InvalidInput: a pattern matches nothing.
        PathOutsideWorkspace: a pattern leaves the workspace.
    """
    matches = match_files(workspace, patterns, known)
    documents: list[Document] = []
    skipped = Counter({"ignored": len(matches.ignored)}) if matches.ignored else Counter[str]()
    for match in matches.files:
        try:
            documents += read_file(workspace, match.path, named=match.named)
        except Skip as skip:
            skipped[skip.reason] += 1
    seen = {match.path for match in matches.files} | matches.ignored
    gone = {origin for origin in known if not (workspace.root / origin).is_file()}
    return Scan("files", tuple(documents), frozenset(seen | gone), skipped)


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
    suffix = PurePosixPath(path).suffix.lower()
    if _SECRETS.match(PurePosixPath(path).name):
        raise Skip("secret")
    if not (named or suffix in MARKDOWN | RST | TEXT | CORPUS | CODE):
        raise Skip("unsupported_type")
    text = _text(workspace, path, _CORPUS_LIMIT if suffix in CORPUS else _SIZE_LIMIT)
    if suffix in CORPUS:
        return list(_corpus(path, text))
    return cut("files", path, _sections(path, suffix, text))


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


def _text(workspace: Workspace, path: str, limit: int) -> str:
    try:
        file = workspace.inside(path)
        if file.stat().st_size > limit:
            raise Skip("too_large")
        raw = file.read_bytes()
    except PathOutsideWorkspace as error:
        raise Skip("outside_workspace") from error
    except OSError as error:
        raise Skip("unreadable") from error
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in raw[:8192]:
        raise Skip("binary")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise Skip("not_utf8") from error
    if _PRIVATE_KEY.search(text):
        raise Skip("secret")
    if not text.strip():
        raise Skip("empty")
    return storable(text.replace("\r\n", "\n").replace("\r", "\n"))


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
