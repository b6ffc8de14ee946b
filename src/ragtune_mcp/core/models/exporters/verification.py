"""The three checks of a GGUF file: read back, run by llama.cpp, run by Ollama.

Only the first always runs. It proves the tensors and compares the keys one by one; the others run the file in
the programs that will serve it, tokenizer included.
"""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragtune_mcp.core.errors import ExportMismatch, OllamaUnavailable, RagTuneError
from ragtune_mcp.core.models.exporters.bert import BertSource
from ragtune_mcp.core.models.exporters.gguf_file import Quantization, read_gguf, require_keys, tensor_names
from ragtune_mcp.core.models.exporters.ollama_server import OllamaServer
from ragtune_mcp.core.models.exporters.parity import (
    Reference,
    Vectors,
    compare,
    cosines,
    encode,
    require_known,
    skipped,
    unit,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_FIRST_GOOD_OLLAMA = (0, 30)
# One request of many texts must give what many requests give.
_TOGETHER = 16
_SAME = 0.9999


def read_back(
    model: SentenceTransformer,
    source: BertSource,
    gguf: Path,
    reference: Reference,
    quantization: Quantization,
) -> dict[str, Any]:
    """Put the file's tensors into the source model and encode again; the model keeps them.

    Args:
        model: the source, loaded.
        source: its description.
        gguf: the file.
        reference: the source's vectors.
        quantization: of the file.

    Returns:
        The report of `compare`.

    Raises:
        ExportMismatch: a key differs, a tensor is missing, or the vectors differ.
    """
    import torch

    keys, tensors = read_gguf(gguf)
    require_keys(source, keys)
    names = tensor_names(source)
    missing = sorted(set(names.values()) - tensors.keys())
    if missing:
        raise ExportMismatch(f"The GGUF file lacks the tensors {missing[:3]}.")
    transformer: Any = model[0].auto_model
    state = {name: torch.from_numpy(tensors[written]) for name, written in names.items()}
    left = transformer.load_state_dict(state, strict=False)
    if left.unexpected_keys or any(not name.startswith("pooler.") for name in left.missing_keys):
        raise ExportMismatch(f"The GGUF file's tensors do not fill the model: {left}.")
    return compare(reference, encode(model, reference.texts), quantization)


def run_llama_cpp(
    source: BertSource, gguf: Path, reference: Reference, quantization: Quantization
) -> dict[str, Any]:
    """Tokenize and encode with llama.cpp, where the package xllamacpp is installed.

    Vectors are compared on the source's token ids, tokens text by text, so that a difference of either kind
    is seen for what it is.

    Args:
        source: the source model's description.
        gguf: the file.
        reference: the source's vectors and tokens.
        quantization: of the file.

    Returns:
        The report of `compare`, or that it was skipped.

    Raises:
        ExportMismatch: vectors or, for no known reason, tokens differ.
    """
    try:
        from xllamacpp import CommonParams, Server
    except ImportError:
        return skipped("The package xllamacpp is not installed (pip install xllamacpp).")
    parameters = CommonParams()
    parameters.model.path = str(gguf)
    parameters.embedding = True
    parameters.n_parallel = 1
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = source.layout.max_tokens
    parameters.verbosity = -1
    server = Server(parameters)
    found = [_llama_tokens(server, text) for text in reference.texts]
    window = source.layout.max_tokens
    expected = [[*tokens[: window - 1], tokens[-1]] if len(tokens) > window else tokens for tokens in found]
    different = [i for i, ids in enumerate(reference.ids) if expected[i] != ids]
    apart = require_known(reference, different)
    report = compare(reference, _llama_vectors(server, reference.ids), quantization)
    if apart:
        own = _llama_vectors(server, [expected[index] for index in apart])
        values = cosines(reference.vectors[list(apart)], own)
        report["token_differences"] = {
            name: {
                "n": sum(of == name for of in apart.values()),
                "cosine_min": round(
                    min(float(v) for v, of in zip(values, apart.values(), strict=True) if of == name), 7
                ),
            }
            for name in sorted(set(apart.values()))
        }
    return report


def run_ollama(
    source: BertSource, gguf: Path, reference: Reference, quantization: Quantization, host: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Create the model in an Ollama under a passing name, encode, and delete it.

    Args:
        source: the model.
        gguf: its file.
        reference: what the source makes of the texts.
        quantization: chooses the thresholds.
        host: as in OLLAMA_HOST.

    Returns:
        The report of `compare`, or that it was skipped: none answers, it is too old, or it went away; and what is
        known of the Ollama: {reachable, url, version, digest, warnings}.

    Raises:
        ExportMismatch: Ollama refuses the file, or gives other vectors or tokens.
    """
    server = OllamaServer(host)
    try:
        version = server.version()
    except OllamaUnavailable as error:
        return skipped(error.message), {"reachable": False, "url": server.url}
    about: dict[str, Any] = {"reachable": True, "url": server.url, "version": version, "warnings": []}
    if _is_old(version):
        reason = f"Ollama {version} tokenizes BERT models differently; update to 0.30.0 or later."
        about["warnings"].append(reason)
        return skipped(reason), about
    name = f"ragtune-check-{secrets.token_hex(4)}"
    try:
        server.create(name, gguf, source.layout.max_tokens)
        about["digest"] = server.digest(name)
        report = _run(server, name, reference, quantization, source.layout.max_tokens)
    except OllamaUnavailable as error:
        # It went away on the way, which says nothing against the file.
        about["warnings"].append(error.message)
        report = skipped(error.message)
    finally:
        _delete(server, name, about)
    return report, about


def _run(
    server: OllamaServer, name: str, reference: Reference, quantization: Quantization, window: int
) -> dict[str, Any]:
    shown = server.show(name)
    if "embedding" not in shown.get("capabilities", ()):
        raise ExportMismatch(f"Ollama takes the file for no embedding model: {shown.get('capabilities')}.")
    singles, different = [], []
    for index, text in enumerate(reference.texts):
        vector, tokens = server.embed(name, [text], window)
        singles.extend(vector)
        whole = reference.token_counts[index] <= window
        if reference.classes[index] or (whole and tokens and tokens != reference.token_counts[index]):
            different.append(index)
    vectors = unit(np.array(singles, dtype=np.float32))
    report = compare(reference, vectors, quantization, require_known(reference, different))
    _require_same_together(server, name, reference, vectors, window)
    return report


def _delete(server: OllamaServer, name: str, about: dict[str, Any]) -> None:
    """Remove the model made for the check; failing at that must not hide what the check found."""
    try:
        server.delete(name)
    except RagTuneError as error:
        about["warnings"].append(f"Ollama may still hold {name} (ollama rm {name}): {error.message}")


def _require_same_together(
    server: OllamaServer, name: str, reference: Reference, singles: Vectors, window: int
) -> None:
    together, _ = server.embed(name, list(reference.texts[:_TOGETHER]), window)
    if len(together) != len(reference.texts[:_TOGETHER]):
        raise ExportMismatch(f"Ollama gave {len(together)} vectors for {_TOGETHER} texts.")
    values = cosines(singles[: len(together)], unit(np.array(together, dtype=np.float32)))
    if not values.min() >= _SAME:
        raise ExportMismatch(
            f"Ollama gives other vectors for texts sent together (cosine {values.min():.6f})."
        )


def _is_old(version: str) -> bool:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return bool(numbers) and numbers < _FIRST_GOOD_OLLAMA


def _llama_tokens(server: Any, text: str) -> list[int]:
    address = server.listening_address
    address = address if "://" in address else f"http://{address}"
    body = json.dumps({"content": text, "add_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    # On this machine, so past any proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        return [int(token) for token in json.load(response)["tokens"]]


def _llama_vectors(server: Any, ids: Sequence[list[int]]) -> Vectors:
    vectors = []
    for tokens in ids:
        answer = server.handle_embeddings({"input": [tokens], "model": "model"})
        # A failed call returns its error.
        if "error" in answer:
            raise ExportMismatch(f"llama.cpp cannot run the file: {answer['error']}.")
        vectors.append(answer["data"][0]["embedding"])
    return unit(np.array(vectors, dtype=np.float32))
