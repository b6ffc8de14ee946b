import numpy as np

from ragtune_mcp.core.finetune.backbone import open_backbone
from ragtune_mcp.core.finetune.encoded import Encoded


class Counting:
    """A model that notes what it is asked for."""

    def __init__(self):
        self.read = []

    def encode(self, texts, weights=None, tick=None):
        self.read += texts
        if tick is not None and texts:
            tick(len(texts))
        return np.array([[len(text), weights["w"]] for text in texts], dtype=np.float32).reshape(-1, 2)


def test_a_text_is_read_once_and_reported_once():
    model, ticks = Counting(), []
    encoded = Encoded(model, {"w": 3.0}, ticks.append)
    assert encoded([]).shape == (0, 2)
    assert encoded(["aa", "b", "aa"]).tolist() == [[2, 3], [1, 3], [2, 3]]
    assert encoded(["b", "ccc"]).tolist() == [[1, 3], [3, 3]]
    assert encoded(["ccc"]).tolist() == [[3, 3]]
    assert model.read == ["aa", "b", "ccc"]
    assert ticks == [2, 1]


def test_it_gives_what_the_backbone_gives(tiny_model):
    backbone = open_backbone(tiny_model, 512, low_precision=False)
    texts = ["how to promote", "roll back", "how to promote", ""]
    np.testing.assert_allclose(Encoded(backbone)(texts), backbone.encode(texts), atol=1e-6)
