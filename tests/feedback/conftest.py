from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.feedback import conport_double

from ragtune_mcp.core.database import Database
from ragtune_mcp.core.feedback import conport_session
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.outbox import Outbox
from ragtune_mcp.core.feedback.states import FeedbackStates
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

DOUBLE = f"{sys.executable} {Path(conport_double.__file__)}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path, Settings())
    workspace.prepare()
    return workspace


@pytest.fixture
def outbox(workspace: Workspace) -> Iterator[Outbox]:
    db = Database(workspace.database)
    yield Outbox(db)
    db.close()


@pytest.fixture
def states(outbox: Outbox) -> FeedbackStates:
    return FeedbackStates(outbox._db, outbox)


@pytest.fixture
def file_client(workspace: Workspace) -> ConPortClient:
    """A client on ConPort's SQLite file; no process."""
    conport_double.create(workspace.root)
    return ConPortClient(workspace.id, Settings(ragtune_conport="sqlite"))


@pytest.fixture
def make_client(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ConPortClient]]:
    """Clients of a small ConPort process; `faults` says what goes wrong in it."""
    clients = []
    monkeypatch.setattr(conport_session.time, "sleep", lambda seconds: None)

    def make(faults: dict[str, object] | None = None, **settings: object) -> ConPortClient:
        if faults:
            (workspace.root / "double.json").write_text(json.dumps(faults), encoding="utf-8")
        values = {"ragtune_conport": "stdio", "ragtune_conport_command": DOUBLE, **settings}
        client = ConPortClient(workspace.id, Settings(**values))
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def absent_client(workspace: Workspace) -> ConPortClient:
    return ConPortClient(
        workspace.id, Settings(ragtune_conport="stdio", ragtune_conport_command="no-such-conport")
    )
