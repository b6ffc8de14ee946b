import pytest
from tests.experiment.support import World

from ragtune_mcp.core.database import Database


@pytest.fixture
def world(tmp_path):
    db = Database(tmp_path / "ragtune.db")
    yield World(db)
    db.close()
