"""mcp.json as shipped: one client starts ConPort and ragtune for the same workspace, both at work at once."""

import json
import os
import sys
import time
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

pytestmark = [pytest.mark.real, pytest.mark.anyio]
CONFIGURATION = Path(__file__).resolve().parents[2] / "mcp.json"
LIMIT_S = 240
VALUE = {
    "query": "how",
    "rating": 5,
    "timestamp": time.time(),
    "documents": [{"id": "a.md", "text": "Like this."}],
}


@pytest.fixture
def anyio_backend():
    return "asyncio"


def _parameters(name: str, workspace: Path) -> StdioServerParameters:
    entry = json.loads(CONFIGURATION.read_text(encoding="utf-8"))["mcpServers"][name]
    # As a host does: started in the project's folder, programs found on PATH.
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": programs, "HF_HUB_OFFLINE": "1", "HF_HOME": str(workspace / "no-models")}
    command = next(
        str(path)
        for folder in programs.split(os.pathsep)
        if (path := Path(folder) / entry["command"]).exists()
    )
    return StdioServerParameters(command=command, args=entry["args"], env=environment, cwd=workspace)


async def test_both_servers_of_mcp_json_serve_the_same_workspace_at_once(tmp_path):
    (tmp_path / ".git").mkdir()
    workspace = str(tmp_path)
    with open(tmp_path / "stderr.log", "w", encoding="utf-8") as log, anyio.fail_after(LIMIT_S):
        conport_process = stdio_client(_parameters("conport", tmp_path), errlog=log)
        ragtune_process = stdio_client(_parameters("ragtune", tmp_path), errlog=log)
        async with (
            Client(ragtune_process, mode="legacy") as ragtune,
            Client(conport_process, mode="legacy", read_timeout_seconds=LIMIT_S) as conport,
        ):
            status = json.loads((await ragtune.read_resource("ragtune://status")).contents[0].text)
            detected = await conport.call_tool("get_workspace_detection_info", {"start_path": workspace})
            assert status["workspace"] == workspace
            assert detected.structured_content["detected_workspace"] == workspace

            answers = {}

            async def ask(name, client, tool, arguments):
                answers[name] = await client.call_tool(tool, arguments)

            entry = {"category": "UserFeedback", "key": "fb_1", "value": VALUE}
            async with anyio.create_task_group() as group:
                group.start_soon(
                    ask, "conport", conport, "log_custom_data", {"workspace_id": workspace, **entry}
                )
                group.start_soon(ask, "ragtune", ragtune, "list_models", {})
            assert not answers["conport"].is_error
            assert not answers["ragtune"].is_error

            refused = await ragtune.call_tool("generate_training_data", {})
            text = refused.content[0].text
            assert text.startswith("[not_enough_data] ")
            assert "have 1" in text
