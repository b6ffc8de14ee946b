"""Every tool over stdio through the MCP Inspector's command line, each call in a server process of its own.

    scripts/inspect_tools

Works on a fresh workspace of two documents in .demo/inspect. Tools that need more than that are expected to
refuse with the code that says so. Exit code 1 when anything differs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = ROOT / ".demo" / "inspect"
INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
NPX = ("npx", "-y", "-p", "node@22", "-p", INSPECTOR, "mcp-inspector", "--cli")
SERVER = (sys.executable, "-m", "ragtune_mcp", "--workspace", str(WORKSPACE))
LIMIT_S = 300
DOCUMENTS = {
    "install.md": "# Install\n\nInstall the server with pip install ragtune-mcp.\n",
    "rollback.md": "# Roll back\n\nCall rollback_model to return to the model that served before.\n",
}


def inspect(method: str, *arguments: str) -> dict[str, Any]:
    """One run of the Inspector: a fresh server, one request."""
    command = [*NPX, *SERVER, "--method", method, *arguments, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)
    try:
        return dict(json.loads(done.stdout)["result"])
    except (ValueError, KeyError):
        sys.exit(f"inspect_tools: the Inspector failed ({done.returncode}): {done.stderr.strip()[-500:]}")


class Run:
    """Calls tools and keeps the score."""

    def __init__(self) -> None:
        self.called: set[str] = set()
        self.failed = 0

    def call(self, tool: str, expected: str = "ok", **arguments: Any) -> dict[str, Any]:
        """Call a tool; `expected` is "ok" or the code it should refuse with."""
        started = time.monotonic()
        answer = inspect("tools/call", "--tool-name", tool, "--tool-args-json", json.dumps(arguments))
        text = answer["content"][0]["text"]
        outcome = text.partition("]")[0].lstrip("[") if answer.get("isError") else "ok"
        self.called.add(tool)
        self.report(outcome == expected, f"{tool} ({outcome}, {time.monotonic() - started:.1f} s)")
        if outcome != expected:
            print(f"      expected {expected}: {text[:300]}")
        return dict(answer.get("structuredContent") or {})

    def report(self, passed: bool, line: str) -> None:
        self.failed += not passed
        print(f"{'pass' if passed else 'FAIL'}  {line}", flush=True)


def main() -> int:
    if shutil.which("npx") is None:
        sys.exit("inspect_tools: npx is not on PATH; install Node.js.")
    shutil.rmtree(WORKSPACE, ignore_errors=True)
    (WORKSPACE / "docs").mkdir(parents=True)
    for name, text in DOCUMENTS.items():
        (WORKSPACE / "docs" / name).write_text(text, encoding="utf-8")
    run = Run()
    try:
        tools = {tool["name"] for tool in inspect("tools/list")["tools"]}
        run.report(len(tools) == 14, f"tools/list names {len(tools)} tools")
        call_every_tool(run)
        run.report(
            run.called == tools, f"every tool was called; not called: {sorted(tools - run.called) or 'none'}"
        )
        status = json.loads(inspect("resources/read", "--uri", "ragtune://status")["contents"][0]["text"])
        run.report(
            status["documents"] == len(DOCUMENTS), f"ragtune://status counts {status['documents']} documents"
        )
    finally:
        subprocess.run([*SERVER, "stop-store"], capture_output=True, timeout=LIMIT_S)
    print("all passed" if not run.failed else f"{run.failed} failed")
    return 1 if run.failed else 0


def call_every_tool(run: Run) -> None:
    job = run.call("index_documents")["job_id"]
    while run.call("job_status", job_id=job, wait_s=30)["status"] in ("queued", "running"):
        pass
    found = run.call("search", query="undo a deployment", k=2)
    best = found["results"][0]["id"]
    run.call("record_feedback", query_id=found["query_id"], rating=5, document_ratings={best: 5})
    run.call("cancel_job", job_id=job)
    champion = run.call("list_models")["champion"]
    export = run.call("export_model", version=champion, format="onnx")
    run.call("cancel_job", job_id=export["job_id"])
    run.call("promote_model", "conflict", version=champion)
    run.call("rollback_model", "conflict")
    run.call("generate_training_data", "not_enough_data")
    run.call("start_finetune", "invalid_input", training_data_path="training_data/none.csv")
    run.call("start_ab_test", "unknown_version", test_model="none")
    run.call("ab_results", "unknown_test")
    run.call("stop_ab_test", "unknown_test", test_id="none", reason="inspection")


if __name__ == "__main__":
    sys.exit(main())
