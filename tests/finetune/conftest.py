from pathlib import Path

import pytest
from tests.finetune.tiny import write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_distil(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "distil", kind="distilbert", layers=2)
