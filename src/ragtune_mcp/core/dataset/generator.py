"""TrainingDataGenerator: feedback in ConPort to a data set on disk, and the specification's method names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ragtune_mcp import __version__
from ragtune_mcp.core.clock import utc_now
from ragtune_mcp.core.database import Database
from ragtune_mcp.core.dataset.assemble import Assembled, Progress, Sources, assemble, require_enough
from ragtune_mcp.core.dataset.card import render_card
from ragtune_mcp.core.dataset.export import dataset_file, export_pairs
from ragtune_mcp.core.dataset.negatives import EVERYWHERE, MiningRules
from ragtune_mcp.core.dataset.options import DatasetOptions
from ragtune_mcp.core.dataset.pairs import Corpus, TrainingPair
from ragtune_mcp.core.dataset.split import SliceLedger
from ragtune_mcp.core.dataset.validate import balance_warnings
from ragtune_mcp.core.feedback.cleaning import CleaningRules
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.feedback.judgements import DocumentCatalogue, JudgementOptions
from ragtune_mcp.core.feedback.outbox import Outbox
from ragtune_mcp.core.feedback.parsing import CATEGORY
from ragtune_mcp.core.feedback.reader import read_feedback
from ragtune_mcp.core.feedback.records import FeedbackBatch, FeedbackRecord
from ragtune_mcp.core.feedback.states import FeedbackStates
from ragtune_mcp.core.workspace import Workspace, new_id

__all__ = ["BuiltDataset", "DatasetOptions", "TrainingDataGenerator"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BuiltDataset:
    """A data set on disk; `statistics` holds the counts of the tool contract."""

    dataset_id: str
    path: Path
    statistics: dict[str, Any]
    warnings: tuple[str, ...]


class TrainingDataGenerator:
    """Feedback of one workspace to training pairs.

    Args:
        conport_client: where `UserFeedback` is read.
        workspace: where data sets are written and whose settings hold.
        outbox: entries on their way to ConPort, which count as well; None for the workspace's own.
        corpus: the live index for document texts and hard negatives; None where nothing is indexed.
        documents: all indexed texts, for answers rated without documents; None switches that off.
        db: the workspace's database, which remembers the test slice; None to open it.
        now: the clock.
    """

    def __init__(
        self,
        conport_client: ConPortClient,
        workspace: Workspace,
        *,
        outbox: Outbox | None = None,
        corpus: Corpus | None = None,
        documents: DocumentCatalogue | None = None,
        db: Database | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.workspace = workspace
        self._client = conport_client
        self._now = now
        workspace.prepare()
        self._db = db or Database(workspace.database)
        self._states = FeedbackStates(self._db, outbox or Outbox(self._db))
        self._ledger = SliceLedger(self._db)
        self._sources = Sources(corpus, documents, self._ledger)

    def build(self, options: DatasetOptions, progress: Progress | None = None) -> BuiltDataset:
        """Read the feedback and write a data set with its manifest, rejected entries and card.

        Args:
            options: thresholds, minima and switches.
            progress: told the share done, in [0, 1], and what is going on.

        Returns:
            What was written.

        Raises:
            NotEnoughData: fewer samples than the options ask for; nothing is written.
            ConPortUnavailable: the feedback cannot be read.
        """
        report = progress or _silent
        now = self._now()
        report(0.0, "reading feedback")
        batch = read_feedback(self._client, self._states, options.days_back, now)
        made = assemble(batch, options, self._sources, lambda s, m: report(0.1 + 0.8 * s, m))
        dataset_id = new_id("training", now)
        path = dataset_file(self.workspace.training_data, dataset_id, options.export_format)
        statistics = made.statistics()
        warnings = _warnings(made, options, self._sources)
        report(0.95, "writing")
        with self._db.transaction():
            self._ledger.record(made.pairs, dataset_id)
            export_pairs(
                made.pairs,
                path,
                options.export_format,
                dataset_id=dataset_id,
                details=_details(made, options, statistics, warnings)
                | {"conport": self._conport_entries(made)},
                rejected=made.rejected,
                card=render_card(dataset_id, made, statistics, options.to_dict(), warnings),
                now=now,
            )
        _log.info("data set %s: %d pairs of %d entries", dataset_id, len(made.pairs), made.read)
        report(1.0, "done")
        return BuiltDataset(dataset_id, path, statistics, warnings)

    def _conport_entries(self, made: Assembled) -> dict[str, Any]:
        """Where the used entries stand in ConPort, and what they held."""
        hashes = self._states.hashes()
        return {
            "workspace_id": self.workspace.id,
            "category": CATEGORY,
            "entries": {
                i: {"key": key, "sha256": hashes.get(key, "")} for i, key in sorted(made.entries.items())
            },
        }

    def get_feedback_data(self, days_back: int = 90, min_samples: int = 0) -> FeedbackBatch:
        """Read the feedback.

        Args:
            days_back: older entries are rejected as too_old.
            min_samples: fewest readable entries.

        Returns:
            The entries; `len()` counts the readable ones.

        Raises:
            NotEnoughData: fewer readable entries than `min_samples`.
        """
        options = DatasetOptions.from_settings(self.workspace.settings, days_back=days_back)
        batch = read_feedback(self._client, self._states, options.days_back, self._now())
        require_enough("feedback entries", len(batch), min_samples, len(batch), batch.rejected)
        return batch

    def generate_training_data_from_feedback(
        self, feedback: FeedbackBatch | Iterable[FeedbackRecord]
    ) -> list[TrainingPair]:
        """Pairs from entries already read; no minimum is asked for."""
        batch = feedback if isinstance(feedback, FeedbackBatch) else FeedbackBatch(tuple(feedback))
        options = DatasetOptions.from_settings(self.workspace.settings)
        return list(assemble(batch, options, self._sources, _silent, enforce_minimum=False).pairs)

    def generate_training_data(
        self,
        min_positive_samples: int | None = None,
        min_negative_samples: int | None = None,
        include_hard_negatives: bool | None = None,
    ) -> list[TrainingPair]:
        """Read the feedback of the last 90 days and make pairs of it; None means the workspace's setting.

        Args:
            min_positive_samples: fewest positive pairs.
            min_negative_samples: fewest negative pairs, hard negatives included.
            include_hard_negatives: mine them from the live index and from similar queries.

        Returns:
            The pairs in canonical order.

        Raises:
            NotEnoughData: fewer samples than asked for.
        """
        options = DatasetOptions.from_settings(
            self.workspace.settings,
            min_positive_samples=min_positive_samples,
            min_negative_samples=min_negative_samples,
            include_hard_negatives=include_hard_negatives,
        )
        batch = read_feedback(self._client, self._states, options.days_back, self._now())
        return list(assemble(batch, options, self._sources, _silent).pairs)

    def export_training_data(
        self, pairs: Iterable[TrainingPair], path: str | Path, format_type: str = "csv"
    ) -> Path:
        """Write pairs to a file inside the workspace, with a manifest beside it.

        What they hold out and what they train on is remembered, as with `build`.

        Args:
            pairs: what to write.
            path: relative to the workspace, or absolute inside it.
            format_type: csv, json, jsonl or triplets.

        Returns:
            The absolute path of the file.
        """
        target, pairs = self.workspace.inside(path), list(pairs)
        with self._db.transaction():
            self._ledger.record(pairs, target.stem)
            export_pairs(pairs, target, format_type, now=self._now())
        return target


def _silent(_share: float, _message: str) -> None:
    """Progress nobody asked for."""


def _warnings(made: Assembled, options: DatasetOptions, sources: Sources) -> tuple[str, ...]:
    warnings = list(balance_warnings(made.pairs))
    without = sum(r.reason == "no_documents" for r in made.rejected)
    if without:
        warnings.append(
            f"{without} ratings name no documents and could not be matched to any. Record them with "
            "record_feedback and the query_id of a search, or with documents [{id, text}] in the entry."
        )
    if options.include_hard_negatives and sources.corpus is None:
        warnings.append("Nothing is indexed, so no hard negatives were mined. Call index_documents first.")
    if options.include_synthetic and sources.documents is None:
        warnings.append("Nothing is indexed, so there are no synthetic pairs. Call index_documents first.")
    missed = made.mined.counts["positive_not_retrieved"] if made.mined is not None else 0
    if missed:
        warnings.append(f"{missed} queries have no mined negatives: the index does not find their positives.")
    return tuple(warnings)


def _details(
    made: Assembled,
    options: DatasetOptions,
    statistics: dict[str, Any],
    warnings: Sequence[str],
) -> dict[str, Any]:
    mined, cleaning = made.mined, CleaningRules()
    return {
        "made_by": f"ragtune-mcp {__version__}",
        "statistics": statistics,
        "options": options.to_dict(),
        "rules": {
            "cleaning": {**asdict(cleaning), "duplicate_window": cleaning.duplicate_window.total_seconds()},
            "judging": asdict(JudgementOptions(attribute_answers=options.attribute_answers)),
            "pairs": asdict(options.pair_rules),
            "mining": asdict(MiningRules()),
        },
        "warnings": list(warnings),
        "masked": dict(sorted(made.masked.items())),
        "contradictions": {
            "found": len(made.judged.contradictions),
            "resolved": sum(c.resolved for c in made.judged.contradictions),
        },
        "attributed": sorted(made.judged.attributed),
        "mining": None if mined is None else {"margin": mined.margin, "calibrated_on": mined.calibrated_on},
        "excluded_negatives": {
            "everywhere": sorted(made.excluded.get(EVERYWHERE, ())),
            "groups": {g: sorted(ids) for g, ids in sorted(made.excluded.items()) if g != EVERYWHERE},
        },
    }
