"""The demo's steps. Every action on the loop goes through an MCP tool; ConPort is read by a client of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo_data import Collection
from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.experiment.assignment import bucket, unit_of
from ragtune_mcp.core.experiment.ramp import RAMP_SHARE
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.finetune.intervals import paired_interval
from ragtune_mcp.core.finetune.metrics import evaluate_run
from ragtune_mcp.core.settings import Settings

CUTOFF = 10
# Long enough for the replay on two slow cores; the rest of it is waited out, so that the planned end is reached.
TEST_HOURS = 45 / 3600


class DemoFailed(Exception):
    """A step did not do what it should; the message says which and why."""


class Demo:
    """One run: `run()` does every step in order and prints what it saw."""

    def __init__(
        self, console: Console, workspace: Path, collection: Collection, sessions: int, seed: int
    ) -> None:
        self.console = console
        self.workspace = workspace
        self.collection = collection
        self.sessions = sessions
        self.seed = seed
        self._salt = f"demo-{seed}"
        self.server: Client

    async def run(self) -> None:
        """The loop, from an empty workspace to the roll-back."""
        collection = self.collection
        self.console.rule("[bold]ragtune-mcp demo")
        self.console.print(
            f"Collection: {collection.name} ({collection.note}).\n"
            "[green]Real[/green]: ConPort, Chroma, all-MiniLM-L6-v2, the training process, every number below.\n"
            f"[yellow]Replayed[/yellow]: the {self.sessions} live searches of the A/B stage are rated from held-out judgements "
            f"with noise (seed {self.seed})."
        )
        for source in collection.files:
            target = self.workspace / source.name
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        await anyio.to_thread.run_sync(self._fill_conport)
        environment = {**os.environ, "RAGTUNE_AB_SALT": self._salt}
        server = StdioServerParameters(
            command=sys.executable,
            args=["-m", "ragtune_mcp", "--workspace", str(self.workspace)],
            env=environment,
        )
        async with AsyncExitStack() as stack:
            log = stack.enter_context(open(self.workspace / "server.log", "w", encoding="utf-8"))
            self.server = await stack.enter_async_context(
                Client(stdio_client(server, errlog=log), read_timeout_seconds=120)
            )
            await self._index()
            dataset = await self._dataset()
            version = await self._train(dataset)
            if version is None:
                return
            await anyio.to_thread.run_sync(self._measure, version)
            await self._ab_test(version)
            await self._promote_and_roll_back(version)
        await self._read_conport()

    def _fill_conport(self) -> None:
        self.console.rule("1. Ratings into ConPort")
        client = ConPortClient(str(self.workspace), Settings.load(self.workspace))
        entries = [{"category": "UserFeedback", **row} for row in self.collection.feedback]
        items = self.collection.conport
        entries += items.get("custom_data", [])
        try:
            with _bar(self.console) as bar:
                task = bar.add_task("starting ConPort", total=None)
                client.log_custom_data_many(
                    entries,
                    progress=lambda done, total: bar.update(
                        task, description="ratings", completed=done, total=total
                    ),
                )
            for decision in items.get("decisions", []):
                client.log_decision(**decision)
        finally:
            client.close()
        self.console.print(f"{len(self.collection.feedback)} UserFeedback entries written to a real ConPort.")

    async def _index(self) -> None:
        self.console.rule("2. Documents into the index")
        answer = await self._call("index_documents", paths=self.collection.paths)
        await self._wait(answer["job_id"])
        if self.collection.conport:
            answer = await self._call("index_documents", source="conport")
            if answer["job_id"]:
                await self._wait(answer["job_id"])
        status = json.loads((await self.server.read_resource("ragtune://status")).contents[0].text)
        self.console.print(f"{status['documents']} documents indexed; champion {status['champion']}.")

    async def _dataset(self) -> str:
        self.console.rule("3. Ratings to training pairs")
        answer = await self._call("generate_training_data", min_positive_samples=20, min_negative_samples=20)
        counts = answer["statistics"]
        self.console.print(
            f"feedback read {counts['feedback_read']}, used {counts['feedback_used']}, skipped {counts['skipped']}\n"
            f"pairs: {counts['positive_pairs']} positive, {counts['negative_pairs']} negative "
            f"(of which {counts['hard_negative_pairs']} hard), {counts['synthetic_pairs']} synthetic; "
            f"train/validation/test {counts['train_pairs']}/{counts['validation_pairs']}/{counts['test_pairs']} "
            f"over {counts['queries']} queries\n{answer['training_data_path']}"
        )
        for warning in answer["warnings"]:
            self.console.print(f"[yellow]warning[/yellow]: {warning}")
        return answer["dataset_id"]

    async def _train(self, dataset: str) -> str | None:
        self.console.rule("4. Fine-tuning in the background")
        started = await self._call("start_finetune", dataset_id=dataset, model_name_suffix="demo")
        status = await self._wait(started["job_id"])
        gate = status["gate"]
        self.console.print(
            f"{status['model_version']} after {status['training_duration']:.0f} s; metrics {_short(status['metrics'])}"
        )
        self.console.print(f"Gate: [bold]{gate['verdict']}[/bold]. " + " ".join(gate["reasons"]))
        if gate["verdict"] == "block":
            self.console.print("The base model keeps serving: nothing to test or promote.")
            return None
        return str(status["model_version"])

    def _measure(self, version: str) -> None:
        """nDCG@10 of both versions on queries no rating belongs to, through the live index."""
        self.console.rule("5. Held-out queries, base and tuned")
        app = RagTune.open(self.workspace)
        try:
            base = app.champion()
            values = {}
            for name in (base, version):
                app.encoders.get(name, wait_s=60)
                judged = list(self.collection.qrels)
                found = app.searcher.search_all(
                    name, [self.collection.queries[query] for query in judged], CUTOFF
                )
                run = {query: [hit.id for hit in hits] for query, hits in zip(judged, found, strict=True)}
                values[name] = evaluate_run(run, self.collection.qrels)[f"ndcg@{CUTOFF}"]
        finally:
            app.close()
        queries = sorted(values[base])
        before = np.array([values[base][query] for query in queries])
        after = np.array([values[version][query] for query in queries])
        interval = paired_interval(after - before, seed=self.seed)
        table = Table("model", f"nDCG@{CUTOFF}", "")
        for name, scores in ((base, before), (version, after)):
            table.add_row(name, f"{scores.mean():.4f}", "█" * round(scores.mean() * 50))
        self.console.print(table)
        self.console.print(
            f"n = {len(queries)} held-out queries; difference {(after - before).mean():+.4f}, 95 % interval {interval.low:+.4f} .. {interval.high:+.4f}; "
            f"better on {(after > before).sum()}, worse on {(after < before).sum()}."
        )

    async def _ab_test(self, version: str) -> None:
        self.console.rule("6. A/B test over live retrieval")
        started = await self._call("start_ab_test", test_model=version, duration_hours=TEST_HOURS)
        for warning in started["warnings"]:
            self.console.print(f"[yellow]warning[/yellow]: {warning}")
        ends = time.monotonic() + TEST_HOURS * 3600
        await self._replay()
        while (left := ends - time.monotonic()) > 0:
            self.console.print(f"{left:.0f} s to the planned end of the test.")
            await anyio.sleep(min(left + 0.5, 15))
        result = await self._call("ab_results", test_id=started["test_id"])
        baseline, test = result["baseline_metrics"], result["test_metrics"]
        table = Table("variant", "rated", "response quality", "relevance")
        for name, metrics in (("baseline", baseline), ("test", test)):
            table.add_row(
                name,
                str(metrics["n_rated"]),
                f"{metrics['avg_response_quality']:.3f}",
                f"{metrics['avg_relevance_score']:.3f}",
            )
        self.console.print(table)
        self.console.print(
            f"p_value {result['p_value']:.4g} (valid at the planned end: {result['p_value_valid']}), "
            f"p_anytime {result['p_anytime']:.4g} (valid at every look)\n"
            f"Verdict: [bold]{result['recommendation']}[/bold]. " + " ".join(result["reasons"])
        )
        app = RagTune.open(self.workspace)
        try:
            self.console.print(
                f"Plot: {app.plot_ab_results(started['test_id']).relative_to(self.workspace.parent.parent)}"
            )
        finally:
            app.close()

    async def _replay(self) -> None:
        """Searches and ratings of simulated sessions: a user sees five results and judges them with noise."""
        queries = sorted(self.collection.qrels)
        with _bar(self.console) as bar:
            task = bar.add_task("replayed sessions", total=self.sessions)
            for session in range(self.sessions):
                rng = random.Random(f"{self.seed}/{session}")
                query = rng.choice(queries)
                judged = self.collection.qrels[query]
                answer = await self._call(
                    "search", query=self.collection.queries[query], k=5, unit_id=f"session-{session}"
                )
                gains = [judged.get(hit["id"], 0) / self.collection.max_grade for hit in answer["results"]]
                found = max(
                    (gain / np.log2(rank + 1) for rank, gain in enumerate(gains, start=1)), default=0.0
                )
                ratings = {
                    hit["id"]: _noisy(1 + 4 * gain, rng)
                    for hit, gain in zip(answer["results"], gains, strict=True)
                }
                await self._call(
                    "record_feedback",
                    query_id=answer["query_id"],
                    rating=_noisy(1 + 4 * found, rng),
                    document_ratings=ratings,
                )
                bar.advance(task)

    async def _promote_and_roll_back(self, version: str) -> None:
        self.console.rule("7. Promote, search, roll back")
        query = self._query_in_ramp()
        await self._show_search("before", query)
        preview = await self._call("promote_model", version=version)
        self.console.print("Preview: " + "; ".join(preview["will_change"]))
        done = await self._call("promote_model", version=version, confirm=True)
        self.console.print(
            f"Promoted: {done['from']} -> [bold]{done['to']}[/bold]. Checks: {'; '.join(done['checks'])}."
        )
        await self._show_search("after", query)
        back = await self._call(
            "rollback_model", confirm=True, reason="demo: show that every deployment can be undone"
        )
        self.console.print(f"Rolled back: {back['from']} -> [bold]{back['to']}[/bold].")

    def _query_in_ramp(self) -> str:
        """The first query that the new version answers at once: a promoted winner gets 80 % of them for a day."""
        for query in sorted(self.collection.qrels):
            text = self.collection.queries[query]
            if bucket(self._salt, "", unit_of(text)) < RAMP_SHARE:
                return text
        raise LookupError("no query falls into the ramp")

    async def _show_search(self, moment: str, query: str) -> None:
        answer = await self._call("search", query=query, k=3)
        self.console.print(f"Search {moment}: {query!r}")
        for hit in answer["results"]:
            self.console.print(f"  {hit['rank']}. {hit['score']:.3f}  {hit['id']}", markup=False)

    async def _read_conport(self) -> None:
        self.console.rule("8. What ConPort remembers, read by a second client")
        app = RagTune.open(self.workspace)
        try:
            flushed = await anyio.to_thread.run_sync(app.flush_outbox)
        finally:
            app.close()
        self.console.print(f"outbox: {flushed.pending} waiting")
        command = shutil.which(
            "conport-mcp", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        )
        second = StdioServerParameters(
            command=str(command),
            args=[
                "--mode",
                "stdio",
                "--workspace_id",
                str(self.workspace),
                "--log-file",
                "second-client.log",
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.workspace / ".no-models")},
            cwd=self.workspace,
        )
        with open(os.devnull, "w", encoding="utf-8") as quiet:
            async with Client(
                stdio_client(second, errlog=quiet), mode="legacy", read_timeout_seconds=180
            ) as client:
                for category in ("ModelTraining", "ModelVersions", "ABTests"):
                    for row in await _custom_data(client, self.workspace, category):
                        value = row["value"]
                        outcome = value.get("status") or (value.get("gate") or {}).get("verdict", "")
                        self.console.print(
                            f"  {category:14} {row['key']}  {outcome} {value.get('recommendation', '')}",
                            markup=False,
                        )
                feedback = await _custom_data(client, self.workspace, "UserFeedback")
                kinds = Counter(
                    "replayed" if "ab_test_id" in (row["value"].get("retrieval") or {}) else "loaded"
                    for row in feedback
                )
                self.console.print(f"  UserFeedback   {dict(kinds)}", markup=False)
                answer = await client.call_tool(
                    "get_decisions", {"workspace_id": str(self.workspace), "limit": 5}
                )
                for decision in _unwrap(answer):
                    self.console.print(f"  decision       {decision['summary']}", markup=False)

    async def _wait(self, job_id: str) -> dict[str, Any]:
        with _bar(self.console) as bar:
            task = bar.add_task(job_id, total=100)
            while True:
                status = await self._call("job_status", job_id=job_id, wait_s=2)
                bar.update(
                    task, completed=status["progress"], description=status["message"][:60] or status["status"]
                )
                if status["status"] == "completed":
                    return status
                if status["status"] not in ("queued", "running"):
                    raise DemoFailed(f"{job_id} {status['status']}: {status['error']}")

    async def _call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await self.server.call_tool(tool, arguments)
        if answer.is_error:
            raise DemoFailed(f"{tool}: {answer.content[0].text}")
        return dict(answer.structured_content)


async def _custom_data(client: Client, workspace: Path, category: str) -> list[dict[str, Any]]:
    answer = await client.call_tool("get_custom_data", {"workspace_id": str(workspace), "category": category})
    return [
        {**row, "value": json.loads(row["value"]) if isinstance(row["value"], str) else row["value"]}
        for row in _unwrap(answer)
    ]


def _unwrap(answer: Any) -> list[dict[str, Any]]:
    content = answer.structured_content
    return list(content["result"]) if content and list(content) == ["result"] else []


def _noisy(rating: float, rng: random.Random) -> int:
    return min(5, max(1, round(rating + rng.gauss(0, 0.7))))


def _short(metrics: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if value is not None)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<60}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )
