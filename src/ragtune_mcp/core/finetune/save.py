"""The folder of a trained model, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ragtune_mcp.core.finetune.backbone import FastBackbone, LibraryBackbone

if TYPE_CHECKING:
    from torch import Tensor


def save_model(
    backbone: FastBackbone | LibraryBackbone, weights: Mapping[str, Tensor], card: str, output: Path
) -> None:
    """Write the model with its card beside `output` and rename it into place."""
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    backbone.save(weights, partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    os.replace(partial, output)
