"""The specification's factory functions: each builds its stage with the other stages it needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.dataset.generator import TrainingDataGenerator
from ragtune_mcp.core.errors import ModelUnavailable
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.finetuner import ModelFineTuner
from ragtune_mcp.core.models.library_encoder import LibraryEncoder
from ragtune_mcp.core.retrieval.user_collection import UserCollection
from ragtune_mcp.core.settings import Settings, find_workspace

log = logging.getLogger(__name__)


def create_training_data_generator(
    conport_client: ConPortClient | None = None,
    workspace_id: str = "",
    chroma_db: Any = None,
    embedding_model: str = "all-MiniLM-L6-v2",
) -> TrainingDataGenerator:
    """A generator over the feedback of one workspace.

    Args:
        conport_client: where the feedback is read; None for the workspace's own ConPort.
        workspace_id: the workspace folder; empty for the current project.
        chroma_db: a Chroma collection with the documents that the feedback names; None for the workspace's index.
        embedding_model: ranks the documents of `chroma_db` when hard negatives are mined.

    Returns:
        The generator.

    Raises:
        InvalidInput: the workspace does not exist.
    """
    app = RagTune.open(workspace_id)
    if chroma_db is None:
        generator = app.generator(conport_client)
    else:
        base = resolve_base_model(embedding_model, app.workspace.root, app.settings.ragtune_allow_downloads)
        corpus = UserCollection(chroma_db, LibraryEncoder(base.path).encode)
        generator = TrainingDataGenerator(
            conport_client or app.conport, app.workspace, outbox=app.outbox, corpus=corpus, documents=corpus
        )
    return generator


def create_model_finetuner(config: FineTuningConfig | None = None, workspace_id: str = "") -> ModelFineTuner:
    """A fine-tuner that exports as the workspace's settings say and compares with the configured base model.

    Args:
        config: how to train; None for the defaults.
        workspace_id: the folder that paths are relative to; empty for the current project.

    Returns:
        The fine-tuner.
    """
    from ragtune_mcp.core.models.exporters.ollama import export_ollama

    chosen, root = config or FineTuningConfig(), find_workspace(workspace_id)
    settings = Settings.load(root)

    def export(folder: Path, name: str, target: Path, **options: Any) -> dict[str, Any]:
        try:
            base = resolve_base_model(chosen.base_model_name, root, settings.ragtune_allow_downloads).path
        except ModelUnavailable as error:
            # The distance from the base is told besides; it says nothing against the file.
            log.warning("not compared with the base model: %s", error.message)
            base = None
        return export_ollama(folder, name, target, host=settings.ollama_host, base_folder=base, **options)

    return ModelFineTuner(chosen, workspace=workspace_id, export_ollama=export)
