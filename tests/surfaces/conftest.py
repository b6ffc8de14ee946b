import pytest
from tests.surfaces.fakes import FakeCore


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def core(tmp_path):
    return FakeCore(tmp_path)
