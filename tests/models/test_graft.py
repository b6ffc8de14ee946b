import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from tests.finetune.tiny import write_model

from ragtune_mcp.core.models.exporters.graft import graft_weights
from ragtune_mcp.core.models.exporters.onnx import export_onnx


def changed(folder, source, change):
    """A copy of a model folder with other weights."""
    import shutil

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("graft")
    model = write_model(root / "model", layers=2)
    export_onnx(model, root / "encoder")
    return model, root / "encoder" / "model.onnx"


def shifted(weights):
    rng = np.random.default_rng(0)
    return {
        name: tensor + rng.normal(0, 0.02, tensor.shape).astype(tensor.dtype)
        if tensor.dtype == np.float32
        else tensor
        for name, tensor in weights.items()
    }


def test_the_grafted_graph_is_the_traced_one(base, tmp_path):
    tuned = changed(tmp_path / "tuned", base[0], shifted)
    assert graft_weights(*base, tuned, tmp_path / "grafted.onnx")
    report = export_onnx(tuned, tmp_path / "exported", (base[0], base[1].parent))
    assert report["parity"]["cosine_min"] > 0.99999
    export_onnx(tuned, tmp_path / "traced")
    grafted, traced = (
        {
            constant.name: numpy_helper.to_array(constant)
            for constant in onnx.load(str(path)).graph.initializer
        }
        for path in (tmp_path / "grafted.onnx", tmp_path / "traced" / "model.onnx")
    )
    assert grafted.keys() == traced.keys()
    for name, value in traced.items():
        np.testing.assert_array_equal(grafted[name], value)


def test_another_architecture_is_not_grafted(base, tmp_path):
    other = write_model(tmp_path / "other", layers=3)
    assert not graft_weights(*base, other, tmp_path / "grafted.onnx")
    assert not (tmp_path / "grafted.onnx").exists()


def test_weights_that_were_equal_and_no_longer_are_have_no_certain_place(base, tmp_path):
    twins = ("encoder.layer.0.attention.self.query.bias", "encoder.layer.0.attention.self.key.bias")
    same = changed(tmp_path / "same", base[0], lambda weights: {**weights, twins[0]: weights[twins[1]]})
    export_onnx(same, tmp_path / "encoder")
    apart = changed(tmp_path / "apart", same, shifted)
    assert not graft_weights(same, tmp_path / "encoder" / "model.onnx", apart, tmp_path / "grafted.onnx")
    assert not (tmp_path / "grafted.onnx").exists()
