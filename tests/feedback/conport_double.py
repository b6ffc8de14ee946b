"""A ConPort small enough to start in a second, for failures the real one does not show on demand.

It is a real MCP server over stdio on ConPort's own tables. The file `double.json` in the workspace says what
goes wrong: {"die_before": tool} and {"die_after": tool} end the process once, {"hang": tool} never answers
once, {"locked": n} fails n writes with ConPort's message for a held database, {"locked_item": key} does so
once for one item of a batch, {"refuse": key} refuses what has that key, {"fail": word} fails every call
with that key or summary in words of its own, {"strict": true} wants text.
"""

import argparse
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

SCHEMA = """
CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
INSERT OR IGNORE INTO alembic_version VALUES ('20250617');
CREATE TABLE IF NOT EXISTS custom_data (id INTEGER PRIMARY KEY, timestamp DATETIME NOT NULL,
  category VARCHAR(255) NOT NULL, "key" VARCHAR(255) NOT NULL, value TEXT NOT NULL, UNIQUE (category, "key"));
CREATE TABLE IF NOT EXISTS decisions (id INTEGER PRIMARY KEY, timestamp DATETIME NOT NULL,
  summary TEXT NOT NULL, rationale TEXT, implementation_details TEXT, tags TEXT);
CREATE TABLE IF NOT EXISTS progress_entries (id INTEGER PRIMARY KEY, timestamp DATETIME NOT NULL,
  status VARCHAR(50) NOT NULL, description TEXT NOT NULL, parent_id INTEGER);
CREATE TABLE IF NOT EXISTS system_patterns (id INTEGER PRIMARY KEY, timestamp DATETIME NOT NULL,
  name VARCHAR(255) NOT NULL, description TEXT, tags TEXT, UNIQUE (name));
CREATE TABLE IF NOT EXISTS context_links (id INTEGER PRIMARY KEY, workspace_id VARCHAR(1024) NOT NULL,
  source_item_type VARCHAR(255) NOT NULL, source_item_id VARCHAR(255) NOT NULL,
  target_item_type VARCHAR(255) NOT NULL, target_item_id VARCHAR(255) NOT NULL,
  relationship_type VARCHAR(255) NOT NULL, description TEXT,
  timestamp DATETIME DEFAULT (CURRENT_TIMESTAMP) NOT NULL);
"""
NOW = "strftime('%Y-%m-%dT%H:%M:%S+00:00', 'now')"


def create(workspace: Path) -> Path:
    """ConPort's database of a workspace, empty."""
    path = workspace / "context_portal" / "context.db"
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    connection.close()
    return path


class Double:
    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.connection = sqlite3.connect(create(workspace), isolation_level=None)
        self.connection.execute("PRAGMA synchronous=OFF")
        self.connection.row_factory = sqlite3.Row
        self.faults = workspace / "double.json"

    async def log_custom_data(self, workspace_id: str, category: str, key: str, value: Any) -> dict[str, Any]:
        await self.before("log_custom_data")
        if self.plan().get("refuse") == key:
            raise ToolError(f"1 validation error for call[tool_log_custom_data]: key {key}")
        self.fail_for(key)
        row = self.store(category, key, value)
        self.after("log_custom_data")
        return row

    async def log_custom_data_text(
        self, workspace_id: str, category: str, key: str, value: str
    ) -> dict[str, Any]:
        return self.store(category, key, json.loads(value))

    async def batch_log_items(
        self, workspace_id: str, item_type: str, items: list[dict[str, Any]]
    ) -> dict[str, Any]:
        await self.before("batch_log_items")
        done, failed = [], []
        for item in items:
            self.fail_for(item["key"])
        for index, item in enumerate(items):
            plan = self.plan()
            error = "1 validation error" if plan.get("refuse") == item["key"] else ""
            if plan.get("locked_item") == item["key"]:
                self.faults.unlink()
                error = "Database error: database is locked"
            if error:
                failed.append({"item_index": index, "error": error, "data": item})
            else:
                done.append(self.store(**item))
        self.after("batch_log_items")
        return {"status": "success", "message": "", "successful_items": done, "failed_items": failed}

    async def get_custom_data(
        self, workspace_id: str, category: str = "", key: str = ""
    ) -> list[dict[str, Any]]:
        await self.before("get_custom_data")
        found = sorted(self.rows("custom_data"), key=lambda row: (row["category"], row["key"]))
        return [r for r in found if category in ("", r["category"]) and key in ("", r["key"])]

    async def log_decision(
        self,
        workspace_id: str,
        summary: str,
        rationale: str | None = None,
        implementation_details: str | None = None,
        tags: list[str] | None = None,
    ) -> dict[str, Any]:
        await self.before("log_decision")
        self.fail_for(summary)
        row = self.insert(
            "decisions",
            summary=summary,
            rationale=rationale,
            implementation_details=implementation_details,
            tags=json.dumps(tags),
        )
        self.after("log_decision")
        return row

    async def get_decisions(self, workspace_id: str, limit: int = 0) -> list[dict[str, Any]]:
        return self.rows("decisions")

    async def link_conport_items(
        self,
        workspace_id: str,
        source_item_type: str,
        source_item_id: str,
        target_item_type: str,
        target_item_id: str,
        relationship_type: str,
        description: str | None = None,
    ) -> dict[str, Any]:
        await self.before("link_conport_items")
        row = self.insert(
            "context_links",
            workspace_id=workspace_id,
            source_item_type=source_item_type,
            source_item_id=source_item_id,
            target_item_type=target_item_type,
            target_item_id=target_item_id,
            relationship_type=relationship_type,
            description=description,
        )
        self.after("link_conport_items")
        return row

    async def get_linked_items(self, workspace_id: str, item_type: str, item_id: str) -> list[dict[str, Any]]:
        links = self.rows("context_links")
        return [r for r in links if (r["source_item_type"], r["source_item_id"]) == (item_type, item_id)]

    def fail_for(self, word: str) -> None:
        if self.plan().get("fail") == word:
            raise ToolError(f"Unexpected error in the tool: {word}")

    def plan(self) -> dict[str, Any]:
        return json.loads(self.faults.read_text()) if self.faults.exists() else {}

    async def before(self, tool: str) -> None:
        with (self.workspace / "calls.txt").open("a") as calls:
            calls.write(tool + "\n")
        plan = self.plan()
        if plan.get("die_before") == tool:
            self.faults.unlink()
            os._exit(1)
        if plan.get("hang") == tool:
            self.faults.unlink()
            await anyio.sleep_forever()
        if plan.get("locked") and not tool.startswith("get_"):
            self.faults.write_text(json.dumps({**plan, "locked": plan["locked"] - 1}))
            raise ToolError("Database error: database is locked")

    def after(self, tool: str) -> None:
        if self.plan().get("die_after") == tool:
            self.faults.unlink()
            os._exit(1)

    def store(self, category: str, key: str, value: Any) -> dict[str, Any]:
        return self.insert("custom_data", category=category, key=key, value=json.dumps(value))

    def insert(self, table: str, **row: Any) -> dict[str, Any]:
        marks = ", ".join("?" * len(row))
        names = ", ".join(row)
        cursor = self.connection.execute(
            f"INSERT OR REPLACE INTO {table} (timestamp, {names}) VALUES ({NOW}, {marks})",
            tuple(row.values()),
        )
        return next(row for row in self.rows(table) if row["id"] == cursor.lastrowid)

    def rows(self, table: str) -> list[dict[str, Any]]:
        found = [dict(row) for row in self.connection.execute(f"SELECT * FROM {table} ORDER BY id")]
        for row in found:
            row["timestamp"] = row["timestamp"].replace("+00:00", "Z")
            for name in ("value", "tags"):
                if row.get(name):
                    row[name] = json.loads(row[name])
        return found


def serve(workspace: Path) -> None:
    double = Double(workspace)
    server = MCPServer("double")
    strict = double.plan().get("strict")
    server.tool(name="log_custom_data")(double.log_custom_data_text if strict else double.log_custom_data)
    for tool in (
        double.batch_log_items,
        double.get_custom_data,
        double.log_decision,
        double.get_decisions,
        double.link_conport_items,
        double.get_linked_items,
    ):
        server.tool()(tool)
    server.run("stdio")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace_id", required=True)
    known, _ = parser.parse_known_args()
    serve(Path(known.workspace_id))
