"""The specification's factory functions: each builds its stage with the other stages it needs."""

from __future__ import annotations

from typing import Any

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.dataset.generator import TrainingDataGenerator
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.finetuner import ModelFineTuner
from ragtune_mcp.core.models.library_encoder import LibraryEncoder
from ragtune_mcp.core.retrieval.user_collection import UserCollection


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
    """A fine-tuner with the exporters attached.

    Args:
        config: how to train; None for the defaults.
        workspace_id: the folder that paths are relative to; empty for the current project.

    Returns:
        The fine-tuner.
    """
    from ragtune_mcp.core.models.exporters.ollama import export_ollama

    return ModelFineTuner(config, workspace=workspace_id, export_ollama=export_ollama)
