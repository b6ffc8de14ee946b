"""The specification's factory functions: each builds its stage with the other stages it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.dataset.generator import TrainingDataGenerator
from ragtune_mcp.core.feedback.conport import ConPortClient
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.finetuner import ModelFineTuner


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
        chroma_db: a Chroma collection holding the documents the feedback names; None for the workspace's index.
        embedding_model: the model whose neighbours are mined as hard negatives from `chroma_db`.

    Returns:
        The generator.
    """
    raise NotImplementedError


def create_model_finetuner(config: FineTuningConfig | None = None) -> ModelFineTuner:
    """A fine-tuner with the exporters attached."""
    from ragtune_mcp.core.models.exporters.ollama import export_ollama

    return ModelFineTuner(config or FineTuningConfig(), export_ollama=export_ollama)
