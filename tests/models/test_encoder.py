from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.support import DIMENSION, WORDS, expected, make_encoder

from ragtune_mcp.core.errors import DigestMismatch
from ragtune_mcp.core.models.encoder import _TOKENS_PER_BATCH, OnnxEncoder, _batches
from ragtune_mcp.core.models.probes import PROBE_TEXTS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "d1"
    make_encoder(folder, "d1")
    return OnnxEncoder(folder)


def test_an_encoder_says_what_it_is(encoder):
    assert (encoder.digest, encoder.dimension, encoder.max_tokens) == ("d1", DIMENSION, 16)
    assert (encoder.spec.pooling, encoder.spec.normalize) == ("mean", True)


def test_vectors_are_unit_rows_in_the_order_of_the_texts(encoder):
    texts = ["roll back", "index", "how do i search a model rating index", "", "unknown word", "index"]
    vectors = encoder.encode(texts)
    assert (vectors.shape, vectors.dtype) == ((6, DIMENSION), np.float32)
    np.testing.assert_allclose(vectors, [expected(text) for text in texts], atol=1e-6)


def test_a_text_beyond_the_window_counts_up_to_it(encoder):
    long = " ".join(["rating"] * 10 + ["model"] * 50)
    np.testing.assert_allclose(encoder.encode([long])[0], expected(long), atol=1e-6)


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode([]).shape == (0, DIMENSION)


def test_text_that_is_not_valid_unicode_is_encoded(encoder):
    np.testing.assert_allclose(encoder.encode(["roll \ud800 back"])[0], expected("roll ? back"), atol=1e-6)


def test_a_graph_that_does_not_normalise_still_gives_unit_rows(tmp_path):
    make_encoder(tmp_path / "d", "d", normalize=False)
    vectors = OnnxEncoder(tmp_path / "d").encode(["roll back", "index"])
    np.testing.assert_allclose(vectors, [expected("roll back"), expected("index")], atol=1e-6)


@given(st.lists(st.lists(st.sampled_from(WORDS[4:]), max_size=20).map(" ".join), max_size=300))
def test_a_text_has_the_same_vector_alone_and_among_others(encoder, texts):
    together = encoder.encode(texts)
    for place in range(0, len(texts), 37):
        np.testing.assert_allclose(together[place], encoder.encode([texts[place]])[0], atol=1e-6)


def test_many_rounds_keep_every_text_at_its_place(encoder):
    texts = [f"index {n} " + "model " * (n % 9) for n in range(5000)]
    vectors = encoder.encode(texts)
    for place in (0, 1, 2047, 2048, 4999):
        np.testing.assert_allclose(vectors[place], expected(texts[place]), atol=1e-6)


def test_several_threads_encode_at_once(encoder):
    texts = [[f"{a} {b}" for b in WORDS[4:]] for a in WORDS[4:]]
    with ThreadPoolExecutor(8) as pool:
        for given_texts, vectors in zip(texts, pool.map(encoder.encode, texts), strict=True):
            np.testing.assert_allclose(vectors, [expected(text) for text in given_texts], atol=1e-6)


def test_encoding_leaves_no_thread_behind(encoder):
    before = threading.active_count()
    encoder.encode(["a", "b", "c"])
    assert threading.active_count() == before


@given(st.lists(st.integers(2, 512), max_size=200))
def test_batches_hold_every_row_once_and_keep_to_the_budget(lengths):
    batches = _batches(lengths)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= _TOKENS_PER_BATCH


def test_sorted_batches_waste_little_padding():
    lengths = np.random.default_rng(7).integers(4, 256, 2048).tolist()
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in _batches(lengths))
    assert padded / sum(lengths) < 1.02


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_changed_file_is_refused(tmp_path, name):
    folder = tmp_path / "d"
    make_encoder(folder, "d")
    with (folder / name).open("ab") as handle:
        handle.write(b" ")
    with pytest.raises(DigestMismatch, match=name):
        OnnxEncoder(folder)


@pytest.mark.parametrize("name", ["encoder.json", "model.onnx", "tokenizer.json"])
def test_a_missing_file_is_refused(tmp_path, name):
    folder = tmp_path / "d"
    make_encoder(folder, "d")
    (folder / name).unlink()
    with pytest.raises(DigestMismatch, match=name) as caught:
        OnnxEncoder(folder)
    assert "index_documents" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", '{"digest": "d"}', '"text"', "\x00"])
def test_a_description_that_is_none_is_refused(tmp_path, content):
    paths = make_encoder(tmp_path / "d", "d")
    paths.config.write_text(content)
    with pytest.raises(DigestMismatch, match="damaged or incomplete"):
        OnnxEncoder(tmp_path / "d")


def test_an_encoder_that_does_not_record_its_files_is_refused(tmp_path):
    paths = make_encoder(tmp_path / "d", "d")
    config = json.loads(paths.config.read_text())
    paths.config.write_text(json.dumps({**config, "files": {}}))
    with pytest.raises(DigestMismatch):
        OnnxEncoder(tmp_path / "d")


def test_encoding_needs_neither_torch_nor_transformers(tmp_path):
    make_encoder(tmp_path / "d", "d")
    code = (
        "import sys; from pathlib import Path;"
        "from ragtune_mcp.core.models import encoder, pool, registry;"
        "assert 'onnxruntime' not in sys.modules;"
        "print(encoder.OnnxEncoder(Path(sys.argv[1])).encode(['index']).shape);"
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(1, 8)\n[]\n"


def test_the_probe_texts_are_many_different_and_of_every_kind():
    assert len(set(PROBE_TEXTS)) == len(PROBE_TEXTS) >= 100
    assert "" in PROBE_TEXTS
    assert max(len(text.split()) for text in PROBE_TEXTS) > 1000
    assert any("def " in text for text in PROBE_TEXTS)
    scripts = [(0x0400, 0x04FF), (0x0590, 0x05FF), (0x0600, 0x06FF), (0x0900, 0x097F), (0x4E00, 0x9FFF)]
    for low, high in [*scripts, (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)]:
        assert any(low <= ord(letter) <= high for text in PROBE_TEXTS for letter in text)
