import subprocess
import sys

import pytest

import ragtune_mcp

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "chromadb",
    "onnxruntime",
    "scipy",
    "mcp",
    "typer",
    "pydantic",
)


def test_the_public_names_are_sorted_and_complete():
    names = [name for name in ragtune_mcp.__all__ if name != "__version__"]
    assert ragtune_mcp.__all__ == sorted(ragtune_mcp.__all__)
    assert set(names) == set(ragtune_mcp._HOMES)
    assert set(dir(ragtune_mcp)) == set(ragtune_mcp.__all__)


@pytest.mark.parametrize("name", ragtune_mcp.__all__)
def test_a_public_name_is_what_it_says(name):
    found = getattr(ragtune_mcp, name)
    assert name == "__version__" or found.__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ragtune_mcp.nonsense


def test_importing_the_package_loads_nothing_else():
    code = "import sys, ragtune_mcp; print(*sys.modules, sep=chr(10))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
    assert not [name for name in loaded if name.startswith("ragtune_mcp.")]


def test_the_public_names_load_no_machine_learning():
    code = "import sys; from ragtune_mcp import *; print(*sys.modules, sep=chr(10))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & {*HEAVY[:5]}
