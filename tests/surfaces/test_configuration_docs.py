import importlib.util
from pathlib import Path

import pytest

from ragtune_mcp.core.settings import Settings

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_configuration_docs.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_configuration_docs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), (
        "run scripts/make_configuration_docs.py and read the difference"
    )


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_variable_says_what_it_does(name):
    assert Settings.model_fields[name].description
