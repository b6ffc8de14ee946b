"""ragtune-mcp: retrieval that improves with every rating.

The public names are imported on first use, so that `import ragtune_mcp` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragtune_mcp.core.app import RagTune
    from ragtune_mcp.core.dataset.generator import TrainingDataGenerator
    from ragtune_mcp.core.dataset.pairs import TrainingPair
    from ragtune_mcp.core.errors import RagTuneError
    from ragtune_mcp.core.factories import create_model_finetuner, create_training_data_generator
    from ragtune_mcp.core.feedback.conport import ConPortClient
    from ragtune_mcp.core.finetune.config import FineTuningConfig, TrainingMetrics
    from ragtune_mcp.core.finetune.finetuner import ModelFineTuner

__version__ = "0.1.0"

__all__ = [
    "ConPortClient",
    "FineTuningConfig",
    "ModelFineTuner",
    "RagTune",
    "RagTuneError",
    "TrainingDataGenerator",
    "TrainingMetrics",
    "TrainingPair",
    "__version__",
    "create_model_finetuner",
    "create_training_data_generator",
]

_HOMES = {
    "ConPortClient": "feedback.conport",
    "FineTuningConfig": "finetune.config",
    "ModelFineTuner": "finetune.finetuner",
    "RagTune": "app",
    "RagTuneError": "errors",
    "TrainingDataGenerator": "dataset.generator",
    "TrainingMetrics": "finetune.config",
    "TrainingPair": "dataset.pairs",
    "create_model_finetuner": "factories",
    "create_training_data_generator": "factories",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.core.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
