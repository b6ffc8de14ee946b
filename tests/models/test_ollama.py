from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.models.tiny_bert import WINDOW, make_tiny_bert

from ragtune_mcp.core.errors import ExportMismatch, InvalidInput, OllamaUnavailable
from ragtune_mcp.core.models.exporters import parity, verification
from ragtune_mcp.core.models.exporters.bert import read_bert
from ragtune_mcp.core.models.exporters.gguf_file import read_gguf, require_keys, write_gguf
from ragtune_mcp.core.models.exporters.ollama import export_ollama
from ragtune_mcp.core.models.exporters.ollama_server import OllamaServer
from ragtune_mcp.core.models.exporters.parity import compare, encode, make_reference
from ragtune_mcp.core.models.exporters.verification import read_back, run_llama_cpp
from ragtune_mcp.core.models.probes import PROBE_TEXTS

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return make_tiny_bert(tmp_path_factory.mktemp("other") / "model", seed=1)


@pytest.fixture
def changed(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with one JSON file changed."""

    def change(file: str, edit: Callable[[dict], object]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny, folder)
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        edit(content)
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
        return folder

    return change


def load(folder: Path):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def rewrite_weights(folder: Path, edit: Callable[[dict], object]) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("quantization", "variant"),
    [
        ("f16", {}),
        ("f32", {"pooling": "cls", "normalize": False}),
        ("q8_0", {"lowercase": False, "layers": 1}),
        # 100 is no multiple of a block of 32: those matrices fall back to f16.
        ("q8_0", {"intermediate": 100, "layers": 3}),
    ],
)
def test_an_export_gives_the_vectors_of_its_source(tmp_path, quantization, variant):
    folder = make_tiny_bert(tmp_path / "model", **variant)
    report = export_ollama(folder, "tiny:v1", tmp_path / "out", quantization=quantization, host=NOWHERE)
    check = report["checks"]["read_back"]
    assert check["status"] == "passed"
    assert check["texts"] == len(PROBE_TEXTS)
    assert check["cosine_min"] >= (0.995 if quantization == "q8_0" else 0.9999)
    assert report["pooling"] == variant.get("pooling", "mean")
    assert report["lowercase"] == variant.get("lowercase", True)
    assert any("unit vectors" in warning for warning in report["warnings"]) != variant.get("normalize", True)


def test_the_folder_holds_the_model_its_modelfile_instructions_and_report(tiny, tmp_path):
    out = tmp_path / "exports" / "v1-ollama"
    report = export_ollama(tiny, "ns/tiny:v1", out, texts=["my own text"], host=NOWHERE)
    assert sorted(path.name for path in out.iterdir()) == [
        "Modelfile",
        "conversion.json",
        "instructions.md",
        "model-f16.gguf",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["v1-ollama"]
    gguf = out / "model-f16.gguf"
    assert report["gguf"] == {
        "path": str(gguf),
        "bytes": gguf.stat().st_size,
        "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
    }
    assert (out / "Modelfile").read_text(encoding="utf-8") == report["modelfile"]["text"]
    assert report["modelfile"]["text"].startswith(
        f"FROM ./model-f16.gguf\nPARAMETER num_ctx {WINDOW}\nREQUIRES 0.30.0\n"
    )
    assert json.loads((out / "conversion.json").read_text(encoding="utf-8")) == report
    instructions = Path(report["instructions_path"]).read_text(encoding="utf-8")
    assert "ollama create ns/tiny:v1 -f Modelfile" in instructions
    assert "ollama: skipped" in instructions
    assert report["checks"]["read_back"]["texts"] == len(PROBE_TEXTS) + 1
    assert report["checks"]["ollama"]["status"] == "skipped"
    assert NOWHERE in report["checks"]["ollama"]["reason"]


def test_the_commands_name_the_ollama_that_was_asked(tiny, tmp_path):
    elsewhere = export_ollama(tiny, "tiny:v1", tmp_path / "a", host="192.0.2.1:8080")
    url, commands = "http://192.0.2.1:8080", elsewhere["commands"]
    assert commands["create"].endswith(f"&& OLLAMA_HOST={url} ollama create tiny:v1 -f Modelfile")
    assert commands["promote"] == f"OLLAMA_HOST={url} ollama cp tiny:v1 tiny:active"
    assert commands["remove"] == f"OLLAMA_HOST={url} ollama rm tiny:v1"
    assert f"{url}/api/embed" in commands["embed"]
    instructions = Path(elsewhere["instructions_path"]).read_text(encoding="utf-8")
    assert "127.0.0.1" not in instructions
    assert commands["create_over_http"] in instructions


def test_exporting_again_replaces_the_earlier_export(tiny, tmp_path):
    export_ollama(tiny, "tiny", tmp_path / "out", quantization="f32", host=NOWHERE)
    export_ollama(tiny, "tiny", tmp_path / "out", quantization="q8_0", host=NOWHERE)
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["model-q8_0.gguf"]


def test_the_same_model_gives_the_same_bytes(tiny, tmp_path):
    files = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for file in files:
        write_gguf(read_bert(tiny), tiny, file, "tiny", "f16")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_folder_layout_of_older_libraries_gives_the_same_bytes(tiny, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny, old)
    modules = json.loads((old / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (old / "modules.json").write_text(json.dumps(modules))
    (old / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": False,
            }
        )
    )
    (old / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": WINDOW, "do_lower_case": False})
    )
    for folder, name in ((tiny, "a"), (old, "b")):
        write_gguf(read_bert(folder), folder, tmp_path / name, "tiny", "f16")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_holds_the_vocabulary_as_llama_cpp_spells_it(tiny, tmp_path):
    source = read_bert(tiny)
    write_gguf(source, tiny, tmp_path / "m.gguf", "tiny", "f16")
    keys, tensors = read_gguf(tmp_path / "m.gguf")
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    ids = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert (tokens[ids["[CLS]"]], kinds[ids["[CLS]"]]) == ("[CLS]", 3)
    assert (tokens[ids["##a"]], tokens[ids["a"]]) == ("a", "\u2581a")
    assert (tokens[-1], kinds[-1]) == (f"[PAD{len(tokens) - 1}]", 5)
    assert len(tokens) == len(tensors["token_embd.weight"]) == len(ids) + 2
    assert len(tensors) == 5 + 16 * source.layers
    assert keys["bert.pooling_type"] == 1
    assert keys["tokenizer.ggml.normalizer.strip_accents"] is True


@pytest.mark.parametrize("name", ["", "with space", "-x", "a/b/c", "a:", "../up", "ü", "a;rm -rf"])
def test_a_name_that_ollama_cannot_have_is_refused(tiny, tmp_path, name):
    with pytest.raises(InvalidInput, match="no name"):
        export_ollama(tiny, name, tmp_path / "out", host=NOWHERE)
    assert not (tmp_path / "out").exists()


def test_an_unknown_quantization_is_refused(tiny, tmp_path):
    with pytest.raises(InvalidInput, match="q4_K_M"):
        export_ollama(tiny, "tiny", tmp_path / "out", quantization="q4_K_M", host=NOWHERE)


@pytest.mark.parametrize(
    ("file", "edit", "reason"),
    [
        ("modules.json", lambda c: c.append({**c[1], "idx": 3, "type": "x.Dense"}), "Dense"),
        ("modules.json", lambda c: c.pop(1), "modules"),
        ("1_Pooling/config.json", lambda c: c.update(pooling_mode="max"), "max"),
        ("1_Pooling/config.json", lambda c: c.update(pooling_mode=["mean", "cls"]), "mean"),
        ("config.json", lambda c: c.update(architectures=["RobertaModel"]), "RobertaModel"),
        ("config.json", lambda c: c.update(hidden_act="relu"), "relu"),
        ("config.json", lambda c: c.update(position_embedding_type="relative_key"), "relative_key"),
        ("config.json", lambda c: c.update(num_hidden_layers=3), "missing"),
        ("config.json", lambda c: c.update(num_hidden_layers=1), "unknown"),
        ("config.json", lambda c: c.update(vocab_size=c["vocab_size"] + 1), "word embeddings"),
        ("config.json", lambda c: c.update(vocab_size=10), "embeddings"),
        ("tokenizer.json", lambda c: c["model"].update(type="Unigram"), "Unigram"),
        ("tokenizer.json", lambda c: c["model"].update(continuing_subword_prefix="@@"), "WordPiece"),
        ("tokenizer.json", lambda c: c.update(normalizer={"type": "NFC"}), "NFC"),
        ("tokenizer.json", lambda c: c["normalizer"].update(clean_text=False), "clean_text"),
        (
            "tokenizer.json",
            lambda c: c["normalizer"].update(handle_chinese_chars=False),
            "handle_chinese_chars",
        ),
        ("tokenizer.json", lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        ("tokenizer_config.json", lambda c: c.update(cls_token="<s>"), "<s>"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused_by_reason(changed, tmp_path, file, edit, reason):
    folder = changed(file, edit)
    with pytest.raises(InvalidInput, match=reason) as caught:
        export_ollama(folder, "tiny", tmp_path / "out", host=NOWHERE)
    assert caught.value.code == "unsupported_model"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "quantization", "reason"),
    [
        (lambda t: t["encoder.layer.0.output.dense.weight"].__setitem__((0, 0), np.nan), "f32", "not finite"),
        (lambda t: t["encoder.layer.0.output.dense.weight"].__setitem__((0, 0), 1e5), "f16", "65504"),
        (lambda t: t.pop("encoder.layer.1.output.dense.bias"), "f16", "missing"),
        (lambda t: t.update({"projection.weight": np.ones((2, 2), np.float32)}), "f16", "projection"),
    ],
)
def test_weights_that_cannot_be_carried_are_refused(changed, tmp_path, edit, quantization, reason):
    folder = changed("config.json", lambda c: None)
    rewrite_weights(folder, edit)
    with pytest.raises(InvalidInput, match=reason):
        write_gguf(read_bert(folder), folder, tmp_path / "m.gguf", "tiny", quantization)


def test_an_unmerged_adapter_and_a_model_without_safetensors_are_refused(changed, tmp_path):
    folder = changed("config.json", lambda c: None)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="adapter"):
        read_bert(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="safetensors"):
        write_gguf(read_bert(folder), folder, tmp_path / "m.gguf", "tiny", "f16")


def test_weights_of_a_masked_language_model_in_bfloat16_are_read(changed, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = changed("config.json", lambda c: c.update(architectures=["BertForMaskedLM"]))
    tensors = {f"bert.{n}": t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    tensors = {n: t for n, t in tensors.items() if "pooler" not in n}
    tensors["cls.predictions.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    write_gguf(read_bert(folder), folder, tmp_path / "m.gguf", "tiny", "f32")
    _, read = read_gguf(tmp_path / "m.gguf")
    expected = tensors["bert.embeddings.word_embeddings.weight"].float().numpy()
    assert np.array_equal(read["token_embd.weight"], expected)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> parity.Reference:
    return make_reference(load(tiny), read_bert(tiny), [])


def test_the_weights_of_another_model_under_this_name_fail(tiny, other, tmp_path, reference):
    write_gguf(read_bert(other), other, tmp_path / "m.gguf", "tiny", "f32")
    with pytest.raises(ExportMismatch, match="other vectors"):
        read_back(load(tiny), read_bert(tiny), tmp_path / "m.gguf", reference, "q8_0")


def test_a_file_without_one_tensor_fails(tiny, tmp_path, monkeypatch, reference):
    write_gguf(read_bert(tiny), tiny, tmp_path / "m.gguf", "tiny", "f32")
    keys, tensors = read_gguf(tmp_path / "m.gguf")
    del tensors["blk.1.ffn_up.weight"]
    monkeypatch.setattr(verification, "read_gguf", lambda path: (keys, tensors))
    with pytest.raises(ExportMismatch, match="ffn_up"):
        read_back(load(tiny), read_bert(tiny), tmp_path / "m.gguf", reference, "f32")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bert.pooling_type", 2),
        ("bert.pooling_type", None),
        ("tokenizer.ggml.normalizer.lowercase", False),
        ("tokenizer.ggml.cls_token_id", 1),
        ("tokenizer.ggml.tokens", []),
        ("bert.attention.layer_norm_epsilon", 1e-5),
    ],
)
def test_a_file_with_one_key_wrong_or_missing_fails(tiny, tmp_path, key, value):
    source = read_bert(tiny)
    write_gguf(source, tiny, tmp_path / "m.gguf", "tiny", "f32")
    keys, _ = read_gguf(tmp_path / "m.gguf")
    require_keys(source, keys)
    with pytest.raises(ExportMismatch, match=key):
        require_keys(source, {**keys, key: value})


def test_a_failed_check_leaves_nothing_behind_and_an_earlier_export_untouched(tiny, tmp_path, monkeypatch):
    out = tmp_path / "exports" / "out"
    before = export_ollama(tiny, "tiny", out, host=NOWHERE)
    monkeypatch.setitem(parity.THRESHOLDS, "f16", (1.1, 1.1))
    with pytest.raises(ExportMismatch):
        export_ollama(tiny, "tiny", out, host=NOWHERE)
    with pytest.raises(ExportMismatch):
        export_ollama(tiny, "tiny", out.with_name("new"), host=NOWHERE)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert json.loads((out / "conversion.json").read_text(encoding="utf-8")) == before


def test_vectors_that_are_no_numbers_fail(reference):
    with pytest.raises(ExportMismatch):
        compare(reference, np.full_like(reference.vectors, np.nan), "q8_0")


def test_one_bad_vector_among_many_fails_unless_its_tokens_are_known_to_differ(reference):
    vectors = reference.vectors.copy()
    vectors[3] = -vectors[3]
    with pytest.raises(ExportMismatch):
        compare(reference, vectors, "q8_0")
    report = compare(reference, vectors, "q8_0", {3: "long_word"})
    assert report["token_differences"]["long_word"] == {"n": 1, "cosine_min": pytest.approx(-1.0)}
    assert report["texts"] == len(reference.texts) - 1


def test_the_users_own_queries_are_compared_by_what_they_find(tiny, tmp_path):
    documents = [f"{word} of the deployment" for word in ("index", "search", "rating", "model")] * 2
    documents += [f"worker number {letter}" for letter in "abcdefgh"]
    source = read_bert(tiny)
    found = make_reference(load(tiny), source, documents, ["the index", "a worker"])
    same = compare(found, found.vectors, "q8_0")["own_queries"]
    assert same == {"queries": 2, "documents": 12, "top_10_overlap": 1.0}
    vectors = found.vectors.copy()
    first = found.texts.index(documents[0])
    assert first > max(found.queries)
    query = vectors[found.queries[0]]
    vectors[first] = -query
    changed = compare(found, vectors, "q8_0", {found.queries[1]: "long_word", first: "long_word"})
    assert changed["own_queries"] == {"queries": 1, "documents": 11, "top_10_overlap": 1.0}
    ranked = np.argsort(-(found.vectors[len(PROBE_TEXTS) + 2 :] @ query))
    last, best = (int(len(PROBE_TEXTS) + 2 + place) for place in (ranked[-1], ranked[0]))
    vectors = found.vectors.copy()
    vectors[[last, best]] = vectors[[best, last]]
    changed = parity._own_queries(found, vectors, {})
    assert changed["top_10_overlap"] < 1
    assert compare(make_reference(load(tiny), source, []), found.vectors[: len(PROBE_TEXTS)], "f32")[
        "own_queries"
    ] == {"queries": 0, "documents": 0, "top_10_overlap": None}


def test_texts_known_to_be_tokenized_differently_are_told_apart(tiny, tmp_path):
    texts = ["한국어 문서", "नमस्ते की", "x" * 101, "y" * 100, "plain words"]
    found = make_reference(load(tiny), read_bert(tiny), texts)
    assert found.classes[-5:] == ("hangul_syllables", "spacing_vowel_signs", "long_word", "", "")
    report = export_ollama(tiny, "tiny", tmp_path / "out", texts=texts, host=NOWHERE)
    assert [warning.split(" your")[0] for warning in report["warnings"]] == ["1 of 5 of"] * 3


def test_the_report_says_how_far_the_base_is(tiny, other, tmp_path):
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=NOWHERE, base_folder=other)
    assert report["base_cosine"]["mean"] < 0.999
    assert report["checks"]["read_back"]["cosine_mean"] > 0.9999


def test_without_xllamacpp_that_check_is_skipped_with_the_reason(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=NOWHERE)
    assert report["checks"]["llama_cpp"]["status"] == "skipped"
    assert "xllamacpp" in report["checks"]["llama_cpp"]["reason"]


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_llama_cpp_gives_the_vectors_and_tokens_of_the_source(tiny, tmp_path, reference, quantization):
    pytest.importorskip("xllamacpp")
    source = read_bert(tiny)
    write_gguf(source, tiny, tmp_path / "m.gguf", "tiny", quantization)
    report = run_llama_cpp(source, tmp_path / "m.gguf", reference, quantization)
    assert report["status"] == "passed"
    assert set(report["token_differences"]) <= {"long_word", "hangul_syllables", "spacing_vowel_signs"}


def set_cls_pooling(path: Path) -> None:
    import gguf

    gguf.GGUFReader(path, "r+").fields["bert.pooling_type"].parts[-1][0] = 2


def overwrite_weights(path: Path) -> None:
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path, "r+").tensors}
    tensors["blk.0.attn_q.weight"].data[:] = tensors["blk.1.attn_k.weight"].data


@pytest.mark.parametrize(
    ("damage", "named"),
    [(set_cls_pooling, "bert.pooling_type"), (overwrite_weights, "other vectors")],
    ids=["wrong pooling", "tampered weights"],
)
def test_a_file_changed_after_it_was_written_is_refused_by_both_readers(
    tiny, tmp_path, reference, damage, named
):
    source, path = read_bert(tiny), tmp_path / "m.gguf"
    write_gguf(source, tiny, path, "tiny", "f16")
    damage(path)
    with pytest.raises(ExportMismatch, match=named):
        read_back(load(tiny), source, path, reference, "f16")
    pytest.importorskip("xllamacpp")
    with pytest.raises(ExportMismatch, match="other vectors"):
        run_llama_cpp(source, path, reference, "f16")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("https://models.example.org/ollama/", "https://models.example.org:11434/ollama"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("", "http://127.0.0.1:11434"),
    ],
)
def test_the_host_is_written_as_ollama_allows(host, url):
    assert OllamaServer(host).url == url


class FakeOllama(ThreadingHTTPServer):
    """Ollama's HTTP interface over a sentence-transformers model, with faults on demand."""

    def __init__(self, model, version: str = "0.32.1") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.version = model, version
        self.blobs: set[str] = set()
        self.models: dict[str, dict] = {}
        self.deleted: list[str] = []
        self.uploads = 0
        self.fault = ""
        self.delete_fails = False
        self.version_answer: tuple[int, object] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def splits_otherwise(self) -> bool:
        """As a program does that tokenizes BERT models differently."""
        return self.fault == "tokens" or self.version.startswith("0.2")

    def embed(self, texts: list[str]) -> dict:
        vectors = encode(self.model, texts)
        if self.fault == "vectors":
            vectors = -vectors
        if self.fault == "batch" and len(texts) > 1:
            vectors = vectors[::-1]
        tokenizer = self.model.tokenizer
        counts = [min(len(tokenizer(text)["input_ids"]), WINDOW) for text in texts]
        return {
            "embeddings": vectors.tolist(),
            "prompt_eval_count": sum(counts) + (self.splits_otherwise and "Of the" in texts),
        }


class Handler(BaseHTTPRequestHandler):
    server: FakeOllama

    def do_GET(self) -> None:
        if self.path == "/api/version":
            status, content = self.server.version_answer or (200, {"version": self.server.version})
            self.answer(status, content)
        else:
            self.answer(
                200, {"models": [{"name": f"{n}:latest", "digest": "d1"} for n in self.server.models]}
            )

    def do_HEAD(self) -> None:
        self.answer(200 if self.path.rpartition("/")[2] in self.server.blobs else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            digest = self.path.rpartition("/")[2]
            self.server.uploads += 1
            self.server.blobs.add(digest)
            same = digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.answer(201 if same else 400, {})
            return
        request = json.loads(body)
        if self.path == "/api/create":
            if self.server.fault == "create":
                self.answer(400, {"error": "not in GGUF format"})
                return
            self.server.models[request["model"]] = request
            self.answer(200, {"status": "success"})
        elif self.path == "/api/show":
            capability = "completion" if self.server.fault == "show" else "embedding"
            self.answer(200, {"capabilities": [capability]})
        elif self.server.fault == "gone":
            self.close_connection = True
        else:
            self.answer(200, self.server.embed(request["input"]))

    def do_DELETE(self) -> None:
        name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        self.server.deleted.append(name)
        if self.server.delete_fails:
            self.answer(500, {"error": "no delete"})
            return
        self.server.models.pop(name)
        self.answer(200, {})

    def answer(self, status: int, content: object = None) -> None:
        body = (
            b""
            if content is None
            else content
            if isinstance(content, bytes)
            else json.dumps(content).encode()
        )
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def ollama(tiny: Path) -> Iterator[FakeOllama]:
    server = FakeOllama(load(tiny))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_running_ollama_checks_the_model_under_a_passing_name(tiny, tmp_path, ollama):
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    check = report["checks"]["ollama"]
    assert check["status"] == "passed"
    assert check["texts"] + sum(c["n"] for c in check["token_differences"].values()) == len(PROBE_TEXTS)
    assert report["ollama"] == {
        "reachable": True,
        "url": ollama.url,
        "version": "0.32.1",
        "digest": "d1",
        "warnings": [],
    }
    assert ollama.models == {}
    assert ollama.deleted[0].startswith("ragtune-check-")
    export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    assert ollama.uploads == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("vectors", "other vectors"),
        ("batch", "sent together"),
        ("tokens", "other tokens"),
        ("show", "no embedding model"),
    ],
)
def test_an_ollama_that_gives_something_else_fails_the_export(tiny, tmp_path, ollama, fault, message):
    ollama.fault = fault
    with pytest.raises(ExportMismatch, match=message):
        export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    assert ollama.models == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_over_http_create_the_model_and_embed(tiny, tmp_path, ollama):
    commands = export_ollama(tiny, "tiny:v1", tmp_path / "an out", host=ollama.url)["commands"]
    digest = ollama.blobs.copy().pop()
    ollama.blobs.clear()
    for uploads in (2, 2):  # the second time the blob is there
        done = subprocess.run(commands["create_over_http"], shell=True, capture_output=True, check=True)
        assert done.stdout.endswith(b'{"status": "success"}')
        assert ollama.uploads == uploads
    assert ollama.models["tiny:v1"]["files"] == {"model.gguf": digest}
    assert ollama.models["tiny:v1"]["parameters"] == {"num_ctx": WINDOW}
    done = subprocess.run(commands["embed"], shell=True, capture_output=True, check=True)
    assert len(json.loads(done.stdout)["embeddings"]) == 1
    ollama.fault = "create"
    assert subprocess.run(commands["create_over_http"], shell=True, capture_output=True).returncode


def test_a_file_that_ollama_refuses_fails_the_export(tiny, tmp_path, ollama):
    ollama.fault = "create"
    with pytest.raises(ExportMismatch, match="not in GGUF format"):
        export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)


def test_an_old_ollama_is_warned_of_and_not_asked(tiny, tmp_path, ollama):
    ollama.version = "0.21.4"
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    check = report["checks"]["ollama"]
    assert (check["status"], "0.21.4" in check["reason"]) == ("skipped", True)
    assert report["warnings"].count(check["reason"]) == 1
    assert ollama.uploads == 0


@pytest.mark.parametrize(
    "answer", [(404, b"not here"), (500, {}), (200, b"<html>hello</html>"), (200, [1, 2]), (200, {"a": 1})]
)
def test_another_server_on_ollamas_port_is_no_ollama(tiny, tmp_path, ollama, answer):
    ollama.version_answer = answer
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    assert report["checks"]["ollama"]["status"] == "skipped"
    assert ollama.url in report["checks"]["ollama"]["reason"]
    assert report["ollama"] == {"reachable": False, "url": ollama.url}


def test_an_ollama_that_goes_away_says_nothing_against_the_file(tiny, tmp_path, ollama):
    ollama.fault = "gone"
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    assert report["checks"]["ollama"]["status"] == "skipped"
    assert any("No Ollama answers" in warning for warning in report["warnings"])


def test_what_the_check_found_is_told_even_where_its_model_cannot_be_deleted(tiny, tmp_path, ollama):
    ollama.delete_fails = True
    report = export_ollama(tiny, "tiny", tmp_path / "out", host=ollama.url)
    assert report["checks"]["ollama"]["status"] == "passed"
    assert any("ollama rm ragtune-check-" in warning for warning in report["warnings"])
    ollama.fault = "vectors"
    with pytest.raises(ExportMismatch, match="other vectors"):
        export_ollama(tiny, "tiny", tmp_path / "again", host=ollama.url)


def test_no_proxy_stands_before_an_ollama_of_this_machine(monkeypatch, ollama):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urlopen keeps the proxies that it found at its first use.
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert OllamaServer(ollama.url).version() == "0.32.1"
    assert OllamaServer(ollama.url.replace("127.0.0.1", "localhost")).version() == "0.32.1"
    with pytest.raises(OllamaUnavailable):
        OllamaServer("http://models.example.org").version()
