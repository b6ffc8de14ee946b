import json

import numpy as np
import pytest
import torch
from tests.finetune.tiny import WORDS, make_corpus, write_model

from ragtune_mcp.core.finetune.backbone import FastBackbone, LibraryBackbone, bf16_supported, open_backbone
from ragtune_mcp.core.finetune.bert import BertShape

TEXTS = [*make_corpus(20).values(), "w1", "", " w2  w3\n", "unknown words only", " ".join(WORDS)]


def library_vectors(folder, texts, **kwargs):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(
        list(texts), show_progress_bar=False, **kwargs
    )


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("mean", False), ("cls", True)])
def test_vectors_equal_those_of_sentence_transformers(tmp_path, pooling, normalize):
    folder = write_model(tmp_path / "model", pooling=pooling, normalize=normalize)
    backbone = open_backbone(folder, 512, low_precision=False)
    assert isinstance(backbone, FastBackbone)
    expected = library_vectors(folder, TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(backbone.encode(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize("frozen", [0, 2])
def test_gradients_equal_those_of_sentence_transformers(tiny_model, frozen):
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    directions = torch.randn(len(TEXTS), 32)
    model = SentenceTransformer(str(tiny_model), device="cpu").eval()
    features = model.preprocess(TEXTS)
    (model(features)["sentence_embedding"] * directions).sum().backward()
    expected = {name: parameter.grad for name, parameter in model[0].model.named_parameters()}

    backbone = open_backbone(tiny_model, 512, low_precision=False)
    backbone.freeze(frozen, 10**9)
    weights = {name: backbone.base_weights[name].clone().requires_grad_() for name in backbone.trainable()}
    rows = backbone.table.rows(TEXTS)
    (backbone.embed(rows, weights) * directions).sum().backward()

    assert len(weights) == (16 * (4 - frozen) + (5 if frozen == 0 else 0))
    for name, weight in weights.items():
        np.testing.assert_allclose(weight.grad, expected[name], atol=2e-5, rtol=1e-4, err_msg=name)


@pytest.mark.skipif(not bf16_supported(), reason="this processor has no bfloat16 products")
def test_bfloat16_vectors_stay_close_to_float32_ones(tiny_model):
    exact = open_backbone(tiny_model, 512, low_precision=False).encode(TEXTS)
    fast = open_backbone(tiny_model, 512, low_precision=True).encode(TEXTS)
    assert np.einsum("nd,nd->n", exact, fast).min() > 0.998
    assert np.abs(exact - fast).max() > 0


def test_kept_outputs_of_frozen_layers_do_not_change_the_vectors(tiny_model):
    backbone = open_backbone(tiny_model, 512, low_precision=False)
    expected = backbone.encode(TEXTS)
    backbone.freeze(2, 10**9)
    first, second = backbone.encode(TEXTS), backbone.encode(TEXTS)
    assert backbone.kept_bytes > 0
    np.testing.assert_allclose(first, expected, atol=2e-6)
    np.testing.assert_allclose(second, expected, atol=2e-6)


def test_the_memory_bound_on_kept_outputs_holds(tiny_model):
    backbone = open_backbone(tiny_model, 512, low_precision=False)
    backbone.freeze(2, 5000)
    vectors = backbone.encode(TEXTS)
    assert 0 < backbone.kept_bytes <= 5000
    np.testing.assert_allclose(backbone.encode(TEXTS), vectors, atol=2e-6)


def test_max_seq_length_cuts_texts_and_never_exceeds_the_models_own(tiny_model):
    long = " ".join(WORDS)
    short = open_backbone(tiny_model, 16, low_precision=False)
    assert short.max_tokens == 16
    assert short.token_count([long]) == 16
    assert open_backbone(tiny_model, 8192, low_precision=False).max_tokens == 48


def test_a_saved_model_gives_the_same_vectors_in_the_library(tiny_model, tmp_path):
    backbone = open_backbone(tiny_model, 512, low_precision=False)
    changed = {name: weight + 0.05 for name, weight in backbone.base_weights.items() if ".layer.3." in name}
    backbone.save(changed, tmp_path / "saved")
    expected = backbone.encode(TEXTS, changed)
    np.testing.assert_allclose(
        library_vectors(tmp_path / "saved", TEXTS, normalize_embeddings=True), expected, atol=2e-6
    )
    assert np.abs(expected - backbone.encode(TEXTS)).max() > 1e-3


def test_other_architectures_go_through_the_library(tiny_distil):
    backbone = open_backbone(tiny_distil, 512, low_precision=False)
    assert isinstance(backbone, LibraryBackbone)
    expected = library_vectors(tiny_distil, TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(backbone.encode(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"is_decoder": True}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
    ],
)
def test_a_bert_with_unusual_settings_is_left_to_the_library(tmp_path, tiny_model, file, change):
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "copy")
    settings = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**settings, **change}), encoding="utf-8")
    assert BertShape.of(folder) is None
    assert BertShape.of(tiny_model) is not None
