"""What the documentation names exists, and what can be configured is documented."""

import re
from pathlib import Path

import pytest

from ragtune_mcp.core.settings import Settings
from ragtune_mcp.surface.tools import TOOLS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_variable_is_documented(name):
    assert f"`{name.upper()}`" in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    broken = []
    for path, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in path:
            continue
        target = page.parent / path if path else page
        if not target.exists():
            broken.append(path)
        elif anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor.removeprefix("#") not in map(_slug, headings):
                broken.append(path + anchor)
    assert broken == []


def test_the_readme_lists_every_tool_and_no_other():
    cells = [row.split("|")[1] for row in _section("The tools").splitlines() if row.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(spec.handler.__name__ for spec in TOOLS)


def test_every_path_in_the_readmes_tree_exists():
    folders, missing = [ROOT], []
    for line in _section("The tree").split("```")[1].splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        # Columns are two spaces apart or more; what is no path is prose.
        names = [each for each in re.split(r" {2,}", line.strip()) if re.fullmatch(r"[\w.*/-]+", each)]
        parent = folders[depth]
        missing += [str(parent / name) for name in names if not any(parent.glob(name.rstrip("/")))]
        folders[depth + 1 :] = [parent / names[0]]
    assert missing == []
