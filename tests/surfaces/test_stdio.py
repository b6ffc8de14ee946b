"""The server as a host starts it: a process that speaks JSON lines on stdin and stdout."""

import json
import subprocess
import sys

import pytest

LIMIT_S = 60
INITIALIZE = {
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
# Runs the server after `setup` has changed something; what it had imported at the end goes to stderr.
PROGRAM = """
import sys
from ragtune_mcp.cli import main
{setup}
main(["--workspace", sys.argv[1]])
print("loaded:", *sys.modules, file=sys.stderr)
"""


class Server:
    """A server process and the raw lines it wrote."""

    def __init__(self, workspace, setup=""):
        command = [sys.executable, "-c", PROGRAM.format(setup=setup), str(workspace)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
        )
        self.lines = []
        self._next = 0

    def send(self, message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def request(self, message):
        self._next += 1
        self.send({"id": self._next, **message})
        while True:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.lines.append(line)
            answer = json.loads(line)
            if answer.get("id") == self._next:
                return answer["result"]

    def initialize(self):
        self.request(INITIALIZE)
        self.send({"method": "notifications/initialized"})

    def end(self):
        out, err = self.process.communicate(timeout=LIMIT_S)
        self.lines += out.splitlines()
        return err


@pytest.fixture
def server(tmp_path):
    started = []

    def start(setup=""):
        started.append(Server(tmp_path, setup))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_tools_are_listed_before_anything_heavy_is_loaded(server):
    process = server()
    process.initialize()
    assert len(process.request({"method": "tools/list"})["tools"]) == 14
    loaded = process.end().split("loaded:")[1].split()
    packages = {name.partition(".")[0] for name in loaded}
    heavy = {
        "torch",
        "transformers",
        "sentence_transformers",
        "chromadb",
        "onnxruntime",
        "scipy",
        "typer",
        "datasets",
    }
    assert not packages & heavy


def test_the_server_ends_with_its_input(server):
    process = server()
    process.initialize()
    process.end()
    assert process.process.returncode == 0


def test_the_server_ends_although_a_call_hangs(server):
    setup = "import threading\nfrom ragtune_mcp.core.app import RagTune\n"
    setup += "started = threading.Event()\n"
    setup += (
        "def hang(self):\n    print('hanging', file=sys.stderr, flush=True)\n    threading.Event().wait()\n"
    )
    setup += "RagTune.list_models = hang\n"
    process = server(setup)
    process.initialize()
    process.send({"id": 99, "method": "tools/call", "params": {"name": "list_models", "arguments": {}}})
    while "hanging" not in process.process.stderr.readline():
        pass
    process.end()
    assert process.process.returncode == 0


def test_prints_inside_tools_never_reach_the_protocol(server):
    setup = "from ragtune_mcp.core.app import RagTune\nreal = RagTune.list_models\n"
    setup += "def noisy(self):\n    print('stray')\n    sys.__stdout__.write('')\n    return real(self)\n"
    setup += "RagTune.list_models = noisy\n"
    process = server(setup)
    process.initialize()
    answer = process.request({"method": "tools/call", "params": {"name": "list_models", "arguments": {}}})
    assert not answer.get("isError"), answer
    assert "stray" in process.end()
    assert len(process.lines) >= 2
    for line in process.lines:
        assert json.loads(line)["jsonrpc"] == "2.0"


def test_both_protocol_eras_are_served(server):
    process = server()
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    }
    listed = process.request({"method": "tools/list", "params": {"_meta": meta}})
    assert len(listed["tools"]) == 14


def test_a_call_over_the_wire_answers_text_and_structure(server):
    process = server()
    process.initialize()
    answer = process.request(
        {"method": "tools/call", "params": {"name": "job_status", "arguments": {"job_id": "no"}}}
    )
    assert answer["isError"] is True
    assert answer["content"][0]["text"].startswith("[unknown_job] ")
    models = process.request({"method": "tools/call", "params": {"name": "list_models", "arguments": {}}})
    assert models["structuredContent"]["models"] == []
