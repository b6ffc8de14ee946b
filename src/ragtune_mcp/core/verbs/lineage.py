"""Verbs of upkeep: bring ratings in, walk the lineage of an id, end the vector store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ragtune_mcp.core.dataset.export import find_dataset, load_dataset
from ragtune_mcp.core.dataset.lineage import descendants, rejections
from ragtune_mcp.core.errors import InvalidInput, UnknownId
from ragtune_mcp.core.experiment.entry import exposed_search, feedback_of, query_of
from ragtune_mcp.core.experiment.report import summary
from ragtune_mcp.core.feedback.importers import import_feedback
from ragtune_mcp.core.retrieval.store import stop_store
from ragtune_mcp.core.verbs.models import ModelVerbs

_SHOWN = 20


class LineageVerbs(ModelVerbs):
    """import_feedback, explain, stop_store."""

    def import_feedback(self, paths: Sequence[str]) -> dict[str, Any]:
        """Take ratings from files or folders of the workspace into ConPort, through the outbox.

        Args:
            paths: JSON, JSONL or CSV files, or folders of them, inside the workspace.

        Returns:
            Counts, reasons of the rows left out, and the first of those rows.

        Raises:
            InvalidInput: no path, or one that does not exist.
            PathOutsideWorkspace: a path leaves the workspace.
        """
        if not paths:
            raise InvalidInput("No file was named.", hint="Name JSON, JSONL or CSV files of the workspace.")
        report = import_feedback([self.workspace.inside(path) for path in paths], self.outbox, self.conport)
        return {
            "read": report.read,
            "imported": report.imported,
            "unchanged": report.unchanged,
            "skipped": report.skipped,
            "problems": [asdict(problem) for problem in report.problems[:_SHOWN]],
            "waiting_for_conport": report.delivery.pending,
            "conport_error": report.delivery.error,
        }

    def explain(self, identifier: str) -> dict[str, Any]:
        """What an id is and what it is linked to: search -> rating -> data sets -> versions -> tests, and back.

        Args:
            identifier: a query_id, feedback id or ConPort key, data set, job, version or test id.

        Returns:
            `kind`, `id` and the links of that kind.

        Raises:
            UnknownId: nothing here has that id.
        """
        lookups = (
            self._explain_version,
            self._explain_dataset,
            self._explain_job,
            self._explain_test,
            self._explain_query,
            self._explain_feedback,
        )
        for lookup in lookups:
            found = lookup(identifier)
            if found is not None:
                return found
        raise UnknownId(
            f"Nothing here has the id {identifier!r}.",
            hint="Name a query_id, feedback id, data set, job, model version or test; list_models shows some.",
        )

    def stop_store(self) -> bool:
        """End the process that owns the vector store; the next search starts it again. False if none ran."""
        return stop_store(self.workspace)

    def _explain_version(self, identifier: str) -> dict[str, Any] | None:
        if not self.registry.has(identifier):
            return None
        info = self.model(identifier)
        ratings = self.registry.feedback_ids(info.version)
        return {
            "kind": "version",
            "id": info.version,
            **info.model_dump(
                include={"base_model", "dataset_id", "job_id", "digest", "gate", "aliases", "stale"}
            ),
            "feedback": {"count": len(ratings), "ids": list(ratings[:_SHOWN])},
            "tests": self._tests_of(info.version),
        }

    def _explain_dataset(self, identifier: str) -> dict[str, Any] | None:
        path = find_dataset(self.workspace.training_data, identifier)
        if path is None:
            return None
        dataset = load_dataset(path)
        ratings = sorted({i for pair in dataset.pairs for i in pair.feedback_ids})
        return {
            "kind": "dataset",
            "id": dataset.dataset_id,
            "path": self.workspace.relative(path),
            "statistics": dataset.manifest.get("statistics", {}),
            "feedback": {"count": len(ratings), "ids": ratings[:_SHOWN]},
            "stale": dataset.manifest.get("stale", {}),
            "versions": [
                model.version for model in self.registry.list() if model.dataset_id == dataset.dataset_id
            ],
        }

    def _explain_job(self, identifier: str) -> dict[str, Any] | None:
        try:
            job = self.jobs.get(identifier)
        except UnknownId:
            return None
        return {
            "kind": "job",
            "id": identifier,
            "job_kind": job.kind,
            "status": job.status,
            "dataset_id": job.spec.get("dataset_id"),
            "version": job.result.get("model_version"),
            "log": self.workspace.relative(self.workspace.job(identifier).log),
        }

    def _explain_test(self, identifier: str) -> dict[str, Any] | None:
        try:
            return {"kind": "test", "id": identifier, **summary(self.trials.get(identifier))}
        except UnknownId:
            return None

    def _explain_query(self, identifier: str) -> dict[str, Any] | None:
        try:
            search = exposed_search(self.db.connection, identifier)
        except UnknownId:
            return None
        # Who rates a search of a running test must not know which version answered it.
        is_blind = search.test_id is not None and self.trials.get(search.test_id).is_running
        return {
            "kind": "query",
            "id": identifier,
            "query": search.query,
            "documents": list(search.shown),
            "version": None if is_blind else search.version,
            "test_id": search.test_id,
            "feedback_ids": list(feedback_of(self.db.connection, identifier)),
        }

    def _explain_feedback(self, identifier: str) -> dict[str, Any] | None:
        self.watch_feedback()
        datasets = descendants(self.workspace.training_data, identifier)
        entry = self.feedback_states.find(identifier)
        known = [entry.feedback_id] if entry else [found.feedback_id for found in datasets]
        feedback_id = known[0] if known else identifier
        versions = self.registry.trained_on(feedback_id)
        query_id = query_of(self.db.connection, feedback_id)
        if not (known or versions or query_id):
            return None
        rejected = rejections(self.workspace.training_data, feedback_id, entry.key if entry else identifier)
        return {
            "kind": "feedback",
            "id": feedback_id,
            "query_id": query_id,
            "datasets": [
                {
                    "dataset_id": found.dataset_id,
                    "in_conport": found.stale or "unchanged",
                    "pairs": [
                        {
                            "query": pair.query,
                            "document_id": pair.document_id,
                            "kind": pair.kind,
                            "split": pair.split,
                        }
                        for pair in found.pairs[:_SHOWN]
                    ],
                }
                for found in datasets
            ],
            "not_used": [
                {"dataset_id": dataset_id, "reason": found.reason, "detail": found.detail}
                for dataset_id, found in rejected.items()
            ],
            "note": "" if datasets or rejected else "No data set was made since it was given.",
            "versions": [{"version": version, "tests": self._tests_of(version)} for version in versions],
        }

    def _tests_of(self, version: str) -> list[str]:
        return [
            trial.test_id
            for trial in self.trials.list()
            if version in (trial.baseline_version, trial.test_version)
        ]
