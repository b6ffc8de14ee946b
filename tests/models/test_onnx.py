"""When an ONNX export counts as the same model."""

import numpy as np
import pytest
from tests.models.tiny_bert import make_tiny_bert

from ragtune_mcp.core.errors import ExportMismatch
from ragtune_mcp.core.models.exporters.onnx import _parity
from ragtune_mcp.core.models.exporters.parity import unit
from ragtune_mcp.core.models.probes import PROBE_TEXTS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """What a real, small model makes of the probe texts."""
    from sentence_transformers import SentenceTransformer

    folder = make_tiny_bert(tmp_path_factory.mktemp("tiny") / "model", normalize=False)
    return SentenceTransformer(str(folder), device="cpu").encode(list(PROBE_TEXTS), convert_to_numpy=True)


def turned(vectors, angle):
    """Every vector turned by an angle in a direction of its own."""
    start = unit(vectors)
    aside = np.random.default_rng(0).standard_normal(start.shape).astype(np.float32)
    aside = unit(aside - np.sum(aside * start, axis=1, keepdims=True) * start)
    return unit(np.cos(angle) * start + np.sin(angle) * aside)


def test_rounding_and_the_order_of_equal_texts_change_nothing(vectors):
    assert _parity(vectors, unit(vectors), "tiny")["top_10_overlap"] == 1
    # Several probes are the same once they are cut to the window; any order of them will do.
    assert 0.8 < _parity(vectors, turned(vectors, 1e-5), "tiny")["top_10_overlap"] < 1


def test_vectors_near_their_source_that_rank_otherwise_are_refused(vectors):
    near = turned(vectors, 0.0135)
    assert np.sum(unit(vectors) * near, axis=1).min() > 0.9999
    with pytest.raises(ExportMismatch, match="ranks otherwise"):
        _parity(vectors, near, "tiny")


def test_a_vector_away_from_its_source_is_refused(vectors):
    with pytest.raises(ExportMismatch, match=r"another vector .* 0\.9999 is needed"):
        _parity(vectors, turned(vectors, 0.03), "tiny")
