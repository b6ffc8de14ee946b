import numpy as np
import pytest
from tests.finetune.tiny import make_corpus

from ragtune_mcp.core.finetune.backbone import open_backbone


@pytest.fixture
def backbone(tiny_model):
    return open_backbone(tiny_model, 512, low_precision=False)


TEXTS = list(make_corpus(400).values())


def test_a_job_can_be_cancelled_after_every_2048_tokens_it_encodes(backbone):
    ticks = []
    backbone.encode(TEXTS, tick=ticks.append)
    assert max(ticks) <= 2048
    assert sum(ticks) == backbone.token_count(TEXTS)


def test_a_job_can_be_cancelled_while_outputs_of_frozen_layers_are_computed(backbone):
    ticks = []
    backbone.freeze(2, 10**9)
    backbone.keep(TEXTS, ticks.append)
    assert max(ticks) <= 2048
    assert sum(ticks) == backbone.token_count(TEXTS)


def test_outputs_beyond_the_memory_bound_are_computed_again_with_the_same_vectors(backbone):
    expected = backbone.encode(TEXTS)
    backbone.freeze(2, 50_000)
    backbone.keep(TEXTS)
    assert 0 < backbone.kept_bytes <= 50_000
    np.testing.assert_allclose(backbone.encode(TEXTS), expected, atol=1e-6)
