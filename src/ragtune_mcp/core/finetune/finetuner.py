"""`ModelFineTuner`: the specification's class over `fine_tune`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragtune_mcp.core.dataset.export import FORMATS, load_dataset
from ragtune_mcp.core.dataset.pairs import Dataset, TrainingPair
from ragtune_mcp.core.dataset.validate import refuse_leaks
from ragtune_mcp.core.errors import FeatureDisabled, InvalidInput, NotEnoughData
from ragtune_mcp.core.finetune.backbone import open_backbone
from ragtune_mcp.core.finetune.base import BaseModel, resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.evaluation import PRIMARY, rank_corpus
from ragtune_mcp.core.finetune.examples import grades, hold_out_groups
from ragtune_mcp.core.finetune.metrics import evaluate_run
from ragtune_mcp.core.finetune.parts import document_ids
from ragtune_mcp.core.finetune.similarity import pair_metrics
from ragtune_mcp.core.finetune.tuning import FineTuneResult, fine_tune
from ragtune_mcp.core.settings import Settings, find_workspace
from ragtune_mcp.core.workspace import Workspace, new_id, sha256_text

__all__ = ["FineTuneResult", "ModelFineTuner", "fine_tune"]

logger = logging.getLogger(__name__)

ExportOllama = Callable[..., dict[str, Any]]
_EXPORT_TEXTS = 200
# The default, under which a data set's own validation part is kept.
_OWN_SPLIT = FineTuningConfig().validation_split


class ModelFineTuner:
    """Load data, train, evaluate, convert: one object, one base model.

    Args:
        config: how to train.
        workspace: the folder that all paths are relative to; None for the current project.
        corpus: document id -> text of the whole index; without it, models are evaluated on the documents of
            the training data alone, which is easier than the index.
        export_ollama: writes a model folder as an Ollama model: (folder, name, target, quantization=, texts=)
            -> report.
    """

    def __init__(
        self,
        config: FineTuningConfig | None = None,
        *,
        workspace: str | Path = "",
        corpus: Mapping[str, str] | None = None,
        export_ollama: ExportOllama | None = None,
    ) -> None:
        root = find_workspace(str(workspace))
        self.config = config or FineTuningConfig()
        self._workspace = Workspace(root, Settings.load(root))
        self._corpus = dict(corpus) if corpus is not None else None
        self._export_ollama = export_ollama
        self._base: BaseModel | None = None
        self._tuned: Path | None = None
        self._test: tuple[TrainingPair, ...] = ()
        self._manifest: Mapping[str, Any] = {}
        self._texts: dict[str, str] = {}

    def load_base_model(self) -> BaseModel:
        """Find the base model's files.

        Returns:
            Its name and folder.

        Raises:
            ModelUnavailable: it is in none of the places looked at.
        """
        allowed = self._workspace.settings.ragtune_allow_downloads
        self._base = resolve_base_model(self.config.base_model_name, self._workspace.root, allowed)
        return self._base

    def load_training_data(
        self, path: str | Path, format_type: str = "csv", validation_split: float | None = None
    ) -> tuple[list[TrainingPair], list[TrainingPair]]:
        """Read a data set and split it into training and validation examples by query group.

        Args:
            path: file inside the workspace.
            format_type: csv, json, jsonl or triplets.
            validation_split: share of the query groups to hold out; None keeps the file's own validation
                part, or holds out the configured share where it has none.

        Returns:
            Training and validation examples. The file's test part is in neither: it is kept for the
            evaluation.

        Raises:
            InvalidInput: unknown format, unreadable file, or a share outside (0, 0.9).
            DigestMismatch: the file is not the one its manifest describes.
            LeakySplit: a held-out query stands in train as well.
        """
        if format_type not in FORMATS:
            raise InvalidInput(f"The format {format_type!r} is not one of {', '.join(FORMATS)}.")
        config = (
            self.config
            if validation_split is None
            else replace(self.config, validation_split=validation_split)
        )
        dataset = load_dataset(self._workspace.inside(path))
        refuse_leaks(dataset)
        self._manifest = dataset.manifest
        self._test = tuple(pair for pair in dataset.pairs if pair.split == "test")
        train = tuple(pair for pair in dataset.pairs if pair.split == "train")
        validation = tuple(pair for pair in dataset.pairs if pair.split == "validation")
        if validation_split is not None or not validation:
            train, validation = hold_out_groups(
                (*train, *validation), config.validation_split, config.random_seed
            )
        return [replace(pair, split="train") for pair in train], [
            replace(pair, split="validation") for pair in validation
        ]

    def fine_tune_model(
        self,
        train_examples: Sequence[TrainingPair],
        val_examples: Sequence[TrainingPair] | None = None,
        model_name_suffix: str = "feedback",
    ) -> dict[str, Any]:
        """Train on the examples and save the model as `<output_model_path>/<suffix>_<stamp>`.

        Args:
            train_examples: as returned by `load_training_data`.
            val_examples: for early stopping and the choice of candidate; None holds out a share of the
                training part.
            model_name_suffix: first part of the model's folder name.

        Returns:
            model_path, model_version, training_duration in seconds, metrics, evaluation, gate, history,
            chosen.

        Raises:
            FeatureDisabled: FINETUNING_ENABLED is false.
            NotEnoughData: fewer than 2 positive training examples.
            InvalidInput: the suffix is not a plain name.
        """
        if not self._workspace.settings.finetuning_enabled:
            raise FeatureDisabled(
                "Fine-tuning is switched off by FINETUNING_ENABLED=false.",
                hint="Set FINETUNING_ENABLED=true.",
            )
        if not model_name_suffix.replace("-", "").replace("_", "").isalnum():
            raise InvalidInput(
                f"model_name_suffix {model_name_suffix!r} may hold letters, digits, '-' and '_' only."
            )
        if not train_examples:
            raise NotEnoughData("There are no training examples.", hint="Call load_training_data first.")
        base = self._base or self.load_base_model()
        pairs = (
            *(replace(pair, split="train") for pair in train_examples),
            *(replace(pair, split="validation") for pair in val_examples or ()),
            *self._test,
        )
        # The caller has divided them already.
        config = replace(self.config, validation_split=_OWN_SPLIT) if val_examples else self.config
        version = new_id(model_name_suffix)
        output = self._workspace.inside(self.config.output_model_path) / version
        result = fine_tune(
            Dataset(version, pairs, self._manifest),
            self._documents(pairs),
            base,
            config,
            output,
            report=_log_progress,
            cancelled=lambda: None,
            checkpoints=None,
        )
        self._tuned = result.model_path
        return {
            "model_path": str(result.model_path),
            "model_version": version,
            "training_duration": result.duration_s,
            "metrics": result.metrics,
            "evaluation": result.evaluation,
            "gate": result.gate.to_dict(),
            "history": [entry.to_dict() for entry in result.history],
            "chosen": result.chosen,
        }

    def evaluate_model(
        self, test_examples: Sequence[TrainingPair], model_path: str | Path = ""
    ) -> dict[str, Any]:
        """Retrieval and similarity metrics of a model on held-out examples.

        Args:
            test_examples: pairs that were not trained on.
            model_path: a model folder inside the workspace; empty for the last one trained, else the base
                model.

        Returns:
            queries, documents, the mean of every ranking metric, accuracies and correlations.
        """
        folder = (
            self._workspace.inside(model_path)
            if model_path
            else self._tuned or (self._base or self.load_base_model()).path
        )
        backbone = open_backbone(folder, self.config.max_seq_length, low_precision=self.config.use_amp)
        corpus = self._documents(test_examples)
        qrels = grades(test_examples, document_ids(test_examples, corpus))
        values = evaluate_run(rank_corpus(backbone.encode, {query: query for query in qrels}, corpus), qrels)
        means = {name: sum(found.values()) / len(found) if found else None for name, found in values.items()}
        return {
            "queries": len(values[PRIMARY]),
            "documents": len(corpus),
            **means,
            **pair_metrics(backbone.encode, list(test_examples)),
        }

    def convert_to_ollama_format(self, model_path: str | Path, ollama_model_name: str) -> dict[str, Any]:
        """Write a model as GGUF with a Modelfile, and prove that it gives the same vectors.

        Args:
            model_path: a model folder inside the workspace.
            ollama_model_name: name of the model in Ollama.

        Returns:
            The exporter's report, with `instructions_path`.

        Raises:
            InvalidInput: no model stands at the path.
            FeatureDisabled: the fine-tuner was made without an exporter.
            ExportMismatch: the written model does not reproduce the vectors.
        """
        if self._export_ollama is None:
            raise FeatureDisabled(
                "This ModelFineTuner has no Ollama exporter.",
                hint="Make it with create_model_finetuner(config=...).",
            )
        folder = self._workspace.inside(model_path)
        if not folder.is_dir():
            raise InvalidInput(
                f"There is no model folder {str(model_path)!r}.",
                hint="Use the model_path of fine_tune_model.",
            )
        target = self._workspace.exports / f"{folder.name}-ollama"
        texts = list(self._texts.values())[:_EXPORT_TEXTS]
        return self._export_ollama(folder, ollama_model_name, target, quantization="f16", texts=texts)

    def _documents(self, pairs: Sequence[TrainingPair]) -> dict[str, str]:
        """The corpus; without one, the documents of all examples seen so far."""
        if self._corpus is not None:
            return self._corpus
        for pair in pairs:
            self._texts.setdefault(sha256_text(pair.document)[:16], pair.document)
        return dict(self._texts)


def _log_progress(share: float, message: str, fields: Mapping[str, Any]) -> None:
    logger.info("%3.0f %% %s %s", 100 * share, message, dict(fields))
