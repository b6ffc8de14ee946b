"""Finding files: patterns inside the workspace, `.gitignore` respected, folders of tools left out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ragtune_mcp.core.errors import InvalidInput, PathOutsideWorkspace
from ragtune_mcp.core.workspace import Workspace

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_SKIPPED_FOLDERS = frozenset(
    """.git .hg .svn .ragtune .venv venv node_modules bower_components __pycache__ .tox .nox .mypy_cache
    .ruff_cache .pytest_cache .hypothesis .cache .idea .gradle context_portal site-packages""".split()
)
_MAGIC = re.compile(r"[*?\[]")
_FOLDERS_BELOW = re.compile(r"/\*\*/$")


class Match(NamedTuple):
    """A file that matches: path relative to the workspace with "/", and whether it was named itself."""

    path: str
    named: bool


@dataclass(frozen=True, slots=True)
class Matches:
    """What the patterns match: files to read, and files excluded by `.gitignore` or as our own.

    Of folders that are excluded only the files indexed before are listed: nobody else needs to be told.
    """

    files: tuple[Match, ...]
    ignored: frozenset[str]


class _Pattern(NamedTuple):
    shown: str
    start: str
    spec: GitIgnoreSpec
    excludes: bool


def match_files(workspace: Workspace, patterns: Sequence[str], known: frozenset[str]) -> Matches:
    """Find the files that the patterns match.

    Args:
        workspace: whose files.
        patterns: in `.gitignore` syntax from the workspace's root, so that a folder means all beneath it
            and a leading "!" takes files out again; empty for everything.
        known: files indexed before: a pattern may match one of them that has been deleted.

    Returns:
        The files, sorted. A file that was named itself is read even where `.gitignore` lists it.

    Raises:
        InvalidInput: a pattern matches nothing.
        PathOutsideWorkspace: a pattern leaves the workspace.
    """
    parsed = [_parse(workspace, pattern) for pattern in patterns or ["."]]
    hits = [pattern.excludes or not patterns for pattern in parsed]
    excluded = [pattern.spec for pattern in parsed if pattern.excludes]
    files: dict[str, Match] = {}
    ignored: set[str] = set()
    rules = _IgnoreRules(workspace.root)
    own = _own_folders(workspace)
    for n, pattern in enumerate(parsed):
        if pattern.excludes:
            continue
        for path, is_ignored in _candidates(workspace.root, pattern.start, rules, own):
            if not pattern.spec.match_file(path) or any(spec.match_file(path) for spec in excluded):
                continue
            hits[n] = True
            named = path == pattern.start
            if is_ignored and not (named and not _is_private(path, own)):
                ignored.add(path)
            elif path not in files or named:
                files[path] = Match(path, named)
    # Indexed before a rule or a setting came to exclude their folder, which is not entered any more.
    for path in known - files.keys() - ignored:
        is_meant = any(pattern.spec.match_file(path) for pattern in parsed if not pattern.excludes)
        if is_meant and not any(spec.match_file(path) for spec in excluded):
            if (workspace.root / path).is_file() and _is_left_out(workspace.root, path, rules, own):
                ignored.add(path)
    for hit, pattern in zip(hits, parsed, strict=True):
        if not hit and not any(pattern.spec.match_file(path) for path in known):
            raise InvalidInput(
                f"No file in the workspace matches {pattern.shown!r}.",
                hint="Name files or folders from the workspace's root, as in .gitignore: docs, docs/**/*.md. "
                "Ignored folders are not searched.",
            )
    return Matches(tuple(files[path] for path in sorted(files)), frozenset(ignored - files.keys()))


def _parse(workspace: Workspace, pattern: str) -> _Pattern:
    from pathspec import GitIgnoreSpec

    text = pattern.removeprefix("!")
    if not text or "\0" in text:
        workspace.inside(text)
    relative = os.path.relpath(os.path.normpath(os.path.join(workspace.root, text)), workspace.root).replace(
        os.sep, "/"
    )
    magic = _MAGIC.search(relative)
    start = relative[: magic.start()].rpartition("/")[0] if magic else relative
    try:
        workspace.inside(start or ".")
    except PathOutsideWorkspace as error:
        raise PathOutsideWorkspace(
            f"The pattern {pattern!r} is outside the workspace {workspace.root}."
        ) from error
    start = "" if start == "." else start
    spec = GitIgnoreSpec.from_lines(["**" if relative == "." else f"/{relative}"])
    return _Pattern(pattern, start, spec, pattern.startswith("!"))


def _own_folders(workspace: Workspace) -> frozenset[str]:
    folders = (workspace.state, workspace.training_data, workspace.models)
    return frozenset(
        f.relative_to(workspace.root).as_posix() for f in folders if f.is_relative_to(workspace.root)
    )


def _is_private(path: str, own: frozenset[str]) -> bool:
    folders = path.split("/")[:-1]
    return any(f in _SKIPPED_FOLDERS for f in folders) or any(path.startswith(f"{folder}/") for folder in own)


def is_private(workspace: Workspace, path: str) -> bool:
    """True for a file in a folder of tools or of our own; `path` is relative to the workspace, with "/"."""
    return _is_private(path, _own_folders(workspace))


def _is_left_out(root: Path, path: str, rules: _IgnoreRules, own: frozenset[str]) -> bool:
    """Whether the walk does not come to a file, for the reasons that `_candidates` leaves things out."""
    names = path.split("/")[:-1]
    folders = ["".join(f"{name}/" for name in names[:n]) for n in range(len(names) + 1)]
    for folder in folders:
        rules.enter(folder)
    return (
        _is_private(path, own)
        or any(_is_environment(root / folder) for folder in folders[1:])
        or rules.ignores_any(path)
    )


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists()


def _candidates(
    root: Path, start: str, rules: _IgnoreRules, own: frozenset[str]
) -> Iterator[tuple[str, bool]]:
    """Every file at or below `start`, and whether it is ignored; ignored folders are not entered."""
    place = root / start
    parents = start.split("/")[:-1] if start else []
    for n in range(len(parents) + 1):
        rules.enter("".join(f"{p}/" for p in parents[:n]))
    if place.is_file():
        yield start, _is_private(start, own) or rules.ignores_any(start)
        return
    if start and (_is_private(f"{start}/", own) or rules.ignores_any(f"{start}/")):
        return
    for folder, names, files in os.walk(place):
        here = Path(folder).relative_to(root).as_posix()
        prefix = "" if here == "." else f"{here}/"
        rules.enter(prefix)
        names[:] = sorted(
            name
            for name in names
            if not _is_private(f"{prefix}{name}/", own)
            and not _is_environment(Path(folder, name))
            and not rules.ignores(f"{prefix}{name}/")
        )
        for file in sorted(files):
            yield f"{prefix}{file}", rules.ignores(f"{prefix}{file}")


def _verdict(spec: GitIgnoreSpec, path: str) -> bool | None:
    """True for ignored, False for taken back, None when no line speaks of this very path."""
    for pattern in reversed(spec.patterns):
        found = pattern.match_file(path) if pattern.include is not None else None
        if found is None:
            continue
        # The group marks where the pattern named a folder. Only the path itself counts here: a match
        # through a folder above it was decided when that folder was entered, as git does.
        folder_end = found.match.end("ps_d") if "ps_d" in found.match.re.groupindex else -1
        if folder_end in (-1, len(path)):
            return bool(pattern.include)
    return None


class _IgnoreRules:
    """The `.gitignore` files from the repository's root down to a folder; the deepest that speaks decides."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._specs: dict[str, GitIgnoreSpec | None] = {}
        self._above: list[tuple[str, GitIgnoreSpec]] = []
        self._read_above()

    def enter(self, prefix: str) -> None:
        """Read the rules of a folder; `prefix` is its relative path with a trailing "/", "" for the root."""
        if prefix not in self._specs:
            self._specs[prefix] = self._read(self._root / prefix / ".gitignore")

    def ignores_any(self, path: str) -> bool:
        """True when git would not track the path or a folder it lies in; those must have been entered."""
        names = path.rstrip("/").split("/")
        folders = ["/".join(names[:n]) + "/" for n in range(1, len(names))]
        return any(self.ignores(p) for p in (*folders, path))

    def ignores(self, path: str) -> bool:
        """True when git would not track the path itself; a folder ends with "/"."""
        folder = path.rstrip("/")
        while folder:
            folder = folder.rpartition("/")[0]
            prefix = f"{folder}/" if folder else ""
            spec = self._specs.get(prefix)
            verdict = None if spec is None else _verdict(spec, path[len(prefix) :])
            if verdict is not None:
                return verdict
        for inner, spec in self._above:
            verdict = _verdict(spec, inner + path)
            if verdict is not None:
                return verdict
        return False

    def _read_above(self) -> None:
        """Rules of the folders between the workspace and the repository it lies in, nearest first."""
        inner, folder = "", self._root
        while not (folder / ".git").exists():
            if folder.parent == folder:
                self._above.clear()
                return
            inner, folder = f"{folder.name}/{inner}", folder.parent
            if (spec := self._read(folder / ".gitignore")) is not None:
                self._above.append((inner, spec))
        if (spec := self._read(folder / ".git" / "info" / "exclude")) is not None:
            self._above.append((inner, spec))

    @staticmethod
    def _read(path: Path) -> GitIgnoreSpec | None:
        from pathspec import GitIgnoreSpec

        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            return None
        # "x/**/" means the folders below x, which the library reads as x itself.
        return GitIgnoreSpec.from_lines(_FOLDERS_BELOW.sub("/**/*/", line.rstrip("\r")) for line in lines)
