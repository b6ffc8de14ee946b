"""Export to Ollama: a GGUF file, its Modelfile and instructions, proven to give the vectors of the source.

Needs torch, so only a worker calls it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.models.exporters.bert import BertSource, read_bert
from ragtune_mcp.core.models.exporters.gguf_file import Quantization, write_gguf
from ragtune_mcp.core.models.exporters.ollama_server import OllamaServer
from ragtune_mcp.core.models.exporters.parity import (
    THRESHOLDS,
    Reference,
    class_warnings,
    cosines,
    encode,
    make_reference,
    skipped,
)
from ragtune_mcp.core.models.exporters.staging import fresh_folder_beside, move_into_place
from ragtune_mcp.core.models.exporters.verification import read_back, run_llama_cpp, run_ollama
from ragtune_mcp.core.models.files import write_json
from ragtune_mcp.core.workspace import OllamaPaths, sha256_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_NAME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,79})?(?::[\w][\w.-]{0,79})?", re.ASCII
)
_LICENCE = re.compile(r"^license:\s*([\w.+-]+)\s*$", re.MULTILINE)


def export_ollama(
    model_folder: Path,
    name: str,
    target: Path,
    *,
    quantization: Quantization = "f16",
    texts: Sequence[str] = (),
    queries: Sequence[str] = (),
    host: str = "http://127.0.0.1:11434",
    base_folder: Path | None = None,
) -> dict[str, Any]:
    """Write `model-<quantization>.gguf`, `Modelfile`, `instructions.md` and `conversion.json`.

    Args:
        model_folder: a sentence-transformers BERT: Transformer + Pooling(mean or cls) [+ Normalize].
        name: the model's name in Ollama, with or without a tag.
        target: the export's folder; made complete or not at all, replacing an earlier export.
        quantization: of the weight matrices.
        texts: documents of the user, compared beside the fixed probes.
        queries: what the user asked; compared too, and the report says whether they still find the same documents.
        host: as in OLLAMA_HOST; the Ollama that answers there runs the model once, and the commands name it.
        base_folder: the model it was tuned from; the report then says how far the tuned vectors are from the
            base's, since a check that the base would pass as well proves nothing.

    Returns:
        The contents of `conversion.json`: name, quantization, dimensions, pooling, normalize, max_seq_length,
        lowercase, gguf {path, bytes, sha256}, modelfile {path, text}, instructions_path, commands, checks
        {read_back, llama_cpp, ollama}: {status passed or skipped, ...}, base_cosine, ollama, warnings.

    Raises:
        InvalidInput: the name is none for Ollama, the quantization is unknown, or llama.cpp cannot stand for
            the model (code "unsupported_model").
        ExportMismatch: the file does not give the source's vectors; nothing is written.
    """
    check_name(name)
    if quantization not in THRESHOLDS:
        raise InvalidInput(f"quantization {quantization!r} is not one of {sorted(THRESHOLDS)}.")
    source = read_bert(model_folder)
    half = OllamaPaths(fresh_folder_beside(target))
    final = OllamaPaths(target)
    try:
        write_gguf(source, model_folder, half.gguf(quantization), name, quantization)
        model = _load(model_folder)
        reference = make_reference(model, source, texts, queries)
        gguf = half.gguf(quantization)
        checks = _check(model, source, gguf, quantization, reference, host, base_folder)
        report = _describe(model_folder, source, name, quantization, half, final, checks)
        half.modelfile.write_text(report["modelfile"]["text"], encoding="utf-8")
        half.instructions.write_text(_instructions(report), encoding="utf-8")
        write_json(half.report, report)
        move_into_place(half.folder, target)
    finally:
        shutil.rmtree(half.folder, ignore_errors=True)
    return report


def check_name(name: str) -> None:
    """Raise InvalidInput unless Ollama takes the name for a model."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no name for an Ollama model.", hint="Use letters, digits, '.', '_' and '-'."
        )


def _check(
    model: SentenceTransformer,
    source: BertSource,
    gguf: Path,
    quantization: Quantization,
    reference: Reference,
    host: str,
    base_folder: Path | None,
) -> dict[str, Any]:
    checks = {
        "read_back": read_back(model, source, gguf, reference, quantization),
        "llama_cpp": run_llama_cpp(source, gguf, reference, quantization),
    }
    checks["ollama"], about = run_ollama(source, gguf, reference, quantization, host)
    base = _base_cosine(reference, base_folder)
    return {"checks": checks, "base_cosine": base, "ollama": about, "warnings": class_warnings(reference)}


def _base_cosine(reference: Reference, base_folder: Path | None) -> dict[str, Any]:
    if base_folder is None:
        return skipped("The base model was not given.")
    values = cosines(reference.vectors, encode(_load(base_folder), reference.texts))
    return {"min": round(float(values.min()), 7), "mean": round(float(values.mean()), 7)}


def _load(folder: Path) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
    )


def _describe(
    model_folder: Path,
    source: BertSource,
    name: str,
    quantization: Quantization,
    written: OllamaPaths,
    final: OllamaPaths,
    checks: Mapping[str, Any],
) -> dict[str, Any]:
    gguf, layout = written.gguf(quantization), source.layout
    warnings = [*source.warnings, *checks["warnings"], *checks["ollama"].get("warnings", ())]
    for check in checks["checks"].values():
        warnings.extend(check.get("warnings", ()))
    return {
        "name": name,
        "quantization": quantization,
        "dimensions": layout.dimension,
        "pooling": layout.pooling,
        "normalize": layout.normalize,
        "max_seq_length": layout.max_tokens,
        "lowercase": source.lowercase,
        "prompt": layout.prompt,
        "gguf": {
            "path": str(final.gguf(quantization)),
            "bytes": gguf.stat().st_size,
            "sha256": sha256_file(gguf),
        },
        "modelfile": {
            "path": str(final.modelfile),
            "text": _modelfile(gguf.name, layout.max_tokens, model_folder),
        },
        "instructions_path": str(final.instructions),
        "commands": _commands(name, final.folder, gguf, layout.max_tokens, checks["ollama"]["url"]),
        **checks,
        "warnings": warnings,
    }


def _modelfile(gguf_name: str, window: int, model_folder: Path) -> str:
    # Without num_ctx Ollama reads further than the model was trained for: overlap@10 fell to .972.
    lines = [f"FROM ./{gguf_name}", f"PARAMETER num_ctx {window}", "REQUIRES 0.30.0"]
    readme = model_folder / "README.md"
    licence = (
        _LICENCE.search(readme.read_text(encoding="utf-8", errors="replace")) if readme.is_file() else None
    )
    if licence:
        lines.append(f'LICENSE """{licence[1]}"""')
    return "\n".join(lines) + "\n"


def _commands(name: str, folder: Path, gguf: Path, window: int, url: str) -> dict[str, str]:
    repository, cd = name.partition(":")[0], f"cd {shlex.quote(str(folder))}"
    # The program asks the usual place unless told otherwise; the model belongs where it was checked.
    ollama = "ollama" if url == OllamaServer("").url else f"OLLAMA_HOST={shlex.quote(url)} ollama"
    digest = f"sha256:{sha256_file(gguf)}"
    blob = shlex.quote(f"{url}/api/blobs/{digest}")
    request = {"model": name, "files": {"model.gguf": digest}, "parameters": {"num_ctx": window}}
    return {
        "create": f"{cd} && {ollama} create {name} -f Modelfile",
        # Asked first: where the blob is there, the upload is answered before it is read.
        "create_over_http": f"{cd} && {{ curl -sfI -o /dev/null {blob} || curl -fsS -X POST -T {gguf.name} {blob}; }}"
        f" && {_post(url, '/api/create', {**request, 'stream': False})}",
        "embed": _post(url, "/api/embed", {"model": name, "input": ["a text"]}),
        "promote": f"{ollama} cp {name} {repository}:active",
        "remove": f"{ollama} rm {name}",
    }


def _post(url: str, path: str, request: Mapping[str, Any]) -> str:
    return f"curl -fsS {shlex.quote(url + path)} -d {shlex.quote(json.dumps(request))}"


def _instructions(report: Mapping[str, Any]) -> str:
    commands, url = report["commands"], report["ollama"]["url"]
    lines = [
        f"# {report['name']}",
        "",
        f"{report['dimensions']} dimensions, {report['pooling']} pooling, {report['max_seq_length']} tokens, "
        f"{report['quantization']}. Needs Ollama 0.30 or later; older ones tokenize differently.",
        "",
        "## Install",
        "",
        f"    {commands['create']}",
        "",
        "Without the program `ollama` on this machine, the same over HTTP:",
        "",
        f"    {commands['create_over_http']}",
        "",
        "## Use",
        "",
        f"    {commands['embed']}",
        "",
        "Always send a list. The vectors are of unit length. From Python:",
        "",
        "    import ollama",
        f"    client = ollama.Client(host={url!r})",
        f"    client.embed(model={report['name']!r}, input=['a text'])['embeddings']",
        "",
        "In Chroma, give each model its own collection: vectors of two models cannot be compared.",
        "",
        "    from chromadb.utils.embedding_functions import OllamaEmbeddingFunction",
        f"    OllamaEmbeddingFunction(url={url!r}, model_name={report['name']!r})",
        "",
        "## Promote, roll back, remove",
        "",
        "A copy moves the tag at once; copy the earlier model to go back.",
        "",
        f"    {commands['promote']}",
        f"    {commands['remove']}",
        "",
        "## How it was checked",
        "",
        *(_check_line(name, check) for name, check in report["checks"].items()),
    ]
    if report["warnings"]:
        lines += ["", "## Mind", "", *(f"- {warning}" for warning in report["warnings"])]
    return "\n".join(lines) + "\n"


def _check_line(name: str, check: Mapping[str, Any]) -> str:
    if check["status"] == "skipped":
        return f"- {name}: skipped. {check['reason']}"
    own = check["own_queries"]
    found = (
        f" Of your {own['queries']} last queries, {own['top_10_overlap']} of the ten nearest documents."
        if own["queries"]
        else ""
    )
    return (
        f"- {name}: passed on {check['texts']} texts; cosine with the source {check['cosine_min']} at least, "
        f"{check['cosine_mean']} on average; {check['top_10_overlap']} of the ten nearest texts the same.{found}"
    )
