import importlib.util
from pathlib import Path

import pytest
import typer

from ragtune_mcp.surface.commands import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("make_tool_docs", ROOT / "scripts" / "make_tool_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.documents()


@pytest.mark.parametrize("path", ["docs/tools.md", "tests/surfaces/tools.json"])
def test_generated_files_are_current(generated, path):
    expected = generated[ROOT / path]
    assert (ROOT / path).read_text(encoding="utf-8") == expected, (
        "run scripts/make_tool_docs.py and read the difference"
    )


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)
def test_every_command_and_option_is_documented(name):
    command = typer.main.get_command(app).commands[name]
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    assert command.help in section
    for parameter in command.params:
        if parameter.name != "as_json":
            assert all(f"`{each}`" in section for each in parameter.opts)


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)
def test_every_command_can_print_json(name):
    command = typer.main.get_command(app).commands[name]
    assert "--json" in [each for parameter in command.params for each in parameter.opts]
