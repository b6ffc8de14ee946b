"""Export to ONNX: one graph from token ids to the finished vector. Needs torch, so only a worker calls it."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.errors import DigestMismatch, ExportMismatch, InvalidInput
from ragtune_mcp.core.models.encoder import OnnxEncoder, Vectors
from ragtune_mcp.core.models.exporters.graft import graft_weights
from ragtune_mcp.core.models.exporters.staging import fresh_folder_beside, move_into_place
from ragtune_mcp.core.models.files import folder_digest, write_json
from ragtune_mcp.core.models.layout import ModelLayout, read_layout
from ragtune_mcp.core.models.pool import MIN_COSINE
from ragtune_mcp.core.models.probes import PROBE_TEXTS
from ragtune_mcp.core.workspace import EncoderPaths, sha256_file

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_LOG = logging.getLogger(__name__)
_RECORDED_PROBES = 4
_TOP = 10
# Cosines this near count as equal: float32 in another order of operations moves them by some 1e-6.
_TIE = 1e-3


def export_onnx(
    model_folder: Path, target_folder: Path, base: tuple[Path, Path] | None = None
) -> dict[str, Any]:
    """Write `model.onnx`, `tokenizer.json` and `encoder.json` of a model, or keep those that are there.

    Args:
        model_folder: a model in safetensors form, Transformer + Pooling(mean or cls) [+ Normalize].
        target_folder: made complete or not at all.
        base: the model folder it was tuned from and that one's export, whose graph is used again where it can
            be; see `graft_weights`.

    Returns:
        The contents of `encoder.json`: digest, dimension, max_tokens, pooling, normalize, files and `parity`:
        {texts, cosine_min, cosine_mean, worst_text, top_10_overlap} against sentence-transformers.

    Raises:
        ExportMismatch: a vector's cosine with that of the source is below 0.9999, or a probe's ten nearest probes
            are not those of the source, ties apart; nothing is written.
        InvalidInput: the model is built otherwise (code "unsupported_model").
    """
    layout = read_layout(model_folder)
    if layout.prompt:
        raise InvalidInput(
            f"The model {model_folder.name} puts {layout.prompt!r} before every text; the export cannot.",
            code="unsupported_model",
        )
    digest = folder_digest(model_folder)
    target = EncoderPaths(target_folder)
    if target.config.exists():
        try:
            present = OnnxEncoder(target_folder).spec
        except DigestMismatch as error:
            _LOG.warning("exporting again: %s", error.message)
        else:
            if present.digest == digest:
                return asdict(present)
    half = fresh_folder_beside(target_folder)
    try:
        report = _export(model_folder, layout, digest, EncoderPaths(half), base)
        move_into_place(half, target_folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return report


def _export(
    model_folder: Path,
    layout: ModelLayout,
    digest: str,
    paths: EncoderPaths,
    base: tuple[Path, Path] | None,
) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(model_folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
    )
    expected: Vectors = model.encode(list(PROBE_TEXTS), convert_to_numpy=True, show_progress_bar=False)
    if base is None or not graft_weights(base[0], EncoderPaths(base[1]).model, model_folder, paths.model):
        _write_graph(model, layout, paths.model)
    shutil.copyfile(layout.transformer / paths.tokenizer.name, paths.tokenizer)
    report: dict[str, Any] = {
        "digest": digest,
        "dimension": expected.shape[1],
        "max_tokens": layout.max_tokens,
        "pooling": layout.pooling,
        "normalize": layout.normalize,
        "files": {path.name: sha256_file(path) for path in (paths.model, paths.tokenizer)},
        "parity": {},
        "probes": [
            {"text": text, "vector": [round(float(value), 7) for value in vector]}
            for text, vector in zip(PROBE_TEXTS[:_RECORDED_PROBES], expected, strict=False)
        ],
    }
    write_json(paths.config, report)
    report["parity"] = _parity(expected, OnnxEncoder(paths.folder).encode(PROBE_TEXTS), model_folder.name)
    write_json(paths.config, report)
    return report


def _write_graph(model: SentenceTransformer, layout: ModelLayout, path: Path) -> None:
    import torch

    class Graph(torch.nn.Module):
        """Token ids to vectors: the model's transformer, pooling and, where it has it, Normalize."""

        transformer: Any

        def __init__(self) -> None:
            super().__init__()
            self.transformer = model[0].auto_model
            # The graph of explicit matrix products is a sixth faster in onnxruntime than that of sdpa.
            self.transformer.set_attn_implementation("eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            vectors = tokens[:, 0]
            if layout.pooling == "mean":
                mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
                vectors = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            return torch.nn.functional.normalize(vectors, dim=1) if layout.normalize else vectors

    # Any ids of the vocabulary will do: the export follows shapes, not values.
    ids = torch.ones((2, 5), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    dynamic = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("tokens", min=2, max=layout.max_tokens),
    }
    with torch.no_grad():
        torch.onnx.export(
            Graph().eval(),
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["vector"],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _parity(expected: Vectors, actual: Vectors, name: str) -> dict[str, Any]:
    source = expected / np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    cosines = np.sum(source * actual, axis=1)
    worst = int(cosines.argmin())
    if not cosines[worst] >= MIN_COSINE:
        raise ExportMismatch(
            f"The export of {name} gives another vector than its source for {PROBE_TEXTS[worst][:60]!r}"
            f" (cosine {cosines[worst]:.6f}, at least {MIN_COSINE} is needed).",
            hint="The model does something that the export does not carry; serve another model.",
        )
    overlap = _top_10_overlap(source, actual, name)
    return {
        "texts": len(PROBE_TEXTS),
        "cosine_min": round(float(cosines[worst]), 8),
        "cosine_mean": round(float(cosines.mean()), 8),
        "worst_text": PROBE_TEXTS[worst][:60],
        "top_10_overlap": round(overlap, 4),
    }


def _top_10_overlap(source: Vectors, actual: Vectors, name: str) -> float:
    """Mean share of each probe's ten nearest probes that stay; a text may only give way to one as near as it."""
    similar = source @ source.T
    best, found = (
        np.argsort(-scores, axis=1, kind="stable")[:, :_TOP] for scores in (similar, actual @ actual.T)
    )
    shares = []
    for query, (before, after) in enumerate(zip(best.tolist(), found.tolist(), strict=True)):
        left, entered = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        shares.append(1 - len(left) / _TOP)
        gap = float(similar[query, left].max() - similar[query, entered].min()) if left else 0.0
        if gap >= _TIE:
            raise ExportMismatch(
                f"The export of {name} ranks otherwise than its source: for {PROBE_TEXTS[query][:60]!r} a text"
                f" left the ten nearest for one whose cosine is {gap:.4f} lower.",
                hint="The model does something that the export does not carry; serve another model.",
            )
    return float(np.mean(shares))
