"""What a file says: its text, or why it is not read."""

from __future__ import annotations

import codecs
import re
from pathlib import Path, PurePosixPath

from ragtune_mcp.core.errors import PathOutsideWorkspace
from ragtune_mcp.core.retrieval.documents import storable
from ragtune_mcp.core.workspace import Workspace

# Read through the extra `convert`.
CONVERTED = frozenset({".pdf", ".docx", ".pptx", ".xlsx", ".epub", ".html", ".htm"})

_SECRETS = re.compile(
    r"""(\.env(\..*)?|.*\.env|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|gpg)|id_(rsa|dsa|ecdsa|ed25519)(\..*)?
    |\.netrc|\.npmrc|\.pypirc|\.pgpass|\.htpasswd|credentials(\.\w+)?|secrets?\.\w+|\.dockercfg)\Z""",
    re.IGNORECASE | re.VERBOSE,
)
_HEADER = r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
# Line ends, also spelt ones, and what surrounds a line in a literal, a comment or a quotation. Possessive, so that
# no text makes the search slow.
_GAP = r"(?:\\++[nr]|[^A-Za-z0-9]){0,60}+"
_FIELD = r"[A-Z][A-Za-z-]{2,30}+: [^\n\\\"']{1,80}+"
# A name of a program or a long word is no base64.
_BASE64 = r"(?:(?=[A-Za-z]*[0-9+/])[A-Za-z0-9+/=]{16,}|[A-Za-z]{40,})"
# A header that does not begin its line counts only with key material behind it: a page may speak of the header.
_PRIVATE_KEY = re.compile(rf"^{_HEADER}|{_HEADER}{_GAP}(?:{_FIELD}{_GAP}){{0,4}}+{_BASE64}", re.MULTILINE)


class Skip(Exception):
    """A file that is not used; `reason` is a countable word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def refuse_name(path: str) -> None:
    """Raise Skip for a file whose name says that it holds a secret, or is not UTF-8 and so can be no id."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Skip("not_utf8") from error
    if _SECRETS.match(PurePosixPath(path).name):
        raise Skip("secret")


def read_text(workspace: Workspace, path: str, limit: int) -> str:
    """The text of a text file, with Unix newlines.

    Args:
        workspace: where it is.
        path: relative to the workspace.
        limit: bytes.

    Returns:
        Its text; UTF-8, or UTF-16 with a byte order mark.

    Raises:
        Skip: too_large, outside_workspace, unreadable, binary, not_utf8, secret (a private key), or empty.
    """
    try:
        raw = _inside(workspace, path, limit).read_bytes()
    except OSError as error:
        raise Skip("unreadable") from error
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in raw[:8192]:
        raise Skip("binary")
    try:
        return _usable(raw.decode(encoding))
    except UnicodeDecodeError as error:
        raise Skip("not_utf8") from error


def convert(workspace: Workspace, path: str, limit: int) -> str:
    """The text of a document in another format, as Markdown.

    Args:
        workspace: where it is.
        path: relative to the workspace; its suffix is one of `CONVERTED`.
        limit: bytes.

    Returns:
        Markdown.

    Raises:
        Skip: converter_missing (the extra `convert` is not installed), not_convertible, or as `read_text`.
    """
    file = _inside(workspace, path, limit)
    try:
        import markitdown
    except ImportError as error:
        raise Skip("converter_missing") from error
    try:
        return _usable(markitdown.MarkItDown(enable_plugins=False).convert_local(str(file)).markdown)
    except (markitdown.MarkItDownException, OSError, ValueError) as error:
        raise Skip("not_convertible") from error


def _inside(workspace: Workspace, path: str, limit: int) -> Path:
    try:
        file = workspace.inside(path)
        size = file.stat().st_size
    except PathOutsideWorkspace as error:
        raise Skip("outside_workspace") from error
    except OSError as error:
        raise Skip("unreadable") from error
    if size > limit:
        raise Skip("too_large")
    return file


def _usable(text: str) -> str:
    if _PRIVATE_KEY.search(text):
        raise Skip("secret")
    if not text.strip():
        raise Skip("empty")
    return storable(text.replace("\r\n", "\n").replace("\r", "\n"))
