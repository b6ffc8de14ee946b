from __future__ import annotations

import json

import pytest
from tests.models.support import DIMENSION, chain, make_model

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.models.layout import ModelLayout, read_layout


def pooling(mode):
    return json.dumps({"embedding_dimension": DIMENSION, "pooling_mode": mode})


def old_pooling(**modes):
    return json.dumps({"word_embedding_dimension": 384, **{f"pooling_mode_{k}": v for k, v in modes.items()}})


def test_the_present_layout_is_read(tmp_path):
    folder = make_model(tmp_path)
    assert read_layout(folder) == ModelLayout(
        transformer=folder, pooling="mean", normalize=True, dimension=DIMENSION, max_tokens=256, prompt=""
    )


def test_the_layout_before_sentence_transformers_5_4_is_read(tmp_path):
    folder = make_model(
        tmp_path,
        **{
            "modules.json": json.dumps(chain("Transformer", "Pooling", old=True)),
            "1_Pooling/config.json": old_pooling(cls_token=True, mean_tokens=False, max_tokens=False),
            "sentence_bert_config.json": json.dumps({"max_seq_length": 128}),
        },
    )
    layout = read_layout(folder)
    assert (layout.pooling, layout.normalize, layout.dimension, layout.max_tokens) == ("cls", False, 384, 128)


def test_the_window_never_exceeds_the_positions(tmp_path):
    folder = make_model(tmp_path, **{"tokenizer_config.json": json.dumps({"model_max_length": 10**30})})
    assert read_layout(folder).max_tokens == 512


def test_the_order_of_the_modules_is_their_index(tmp_path):
    folder = make_model(tmp_path, **{"modules.json": json.dumps(chain()[::-1])})
    assert read_layout(folder).normalize


def test_a_default_prompt_is_read(tmp_path):
    config = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    folder = make_model(tmp_path, **{"config_sentence_transformers.json": json.dumps(config)})
    assert read_layout(folder).prompt == "query: "


def test_prompts_without_a_default_are_none(tmp_path):
    config = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    folder = make_model(tmp_path, **{"config_sentence_transformers.json": json.dumps(config)})
    assert read_layout(folder).prompt == ""


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"modules.json": json.dumps(chain("Transformer", "Pooling", "Dense", "Normalize"))}, "Dense"),
        ({"modules.json": json.dumps(chain("StaticEmbedding"))}, "StaticEmbedding"),
        ({"modules.json": "[]"}, "modules are none"),
        ({"1_Pooling/config.json": pooling("max")}, "pooling is max"),
        ({"1_Pooling/config.json": pooling(["mean", "cls"])}, r"mean \+ cls"),
        ({"1_Pooling/config.json": old_pooling(mean_tokens=True, max_tokens=True)}, "_max_tokens"),
        ({"1_Pooling/config.json": old_pooling(mean_tokens=False)}, "pooling is none"),
        (
            {"config.json": "{}", "tokenizer_config.json": "{}"},
            "neither its tokenizer nor its configuration names a window",
        ),
        (
            {"modules.json": json.dumps([{"idx": 0, "path": "", "type": "Transformer"},
                                         {"idx": 1, "path": "../elsewhere", "type": "Pooling"}])},
            "outside the folder",
        ),
    ],
)  # fmt: skip
def test_any_other_model_is_refused_with_the_reason(tmp_path, files, reason):
    folder = make_model(tmp_path / "odd-model", **files)
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_layout(folder)
    assert caught.value.code == "unsupported_model"
    assert "odd-model" in caught.value.message


@pytest.mark.parametrize(
    "name", ["modules.json", "config.json", "1_Pooling/config.json", "tokenizer_config.json"]
)
def test_a_missing_file_is_named(tmp_path, name):
    folder = make_model(tmp_path)
    (folder / name).unlink()
    with pytest.raises(InvalidInput, match=f"{name} is missing"):
        read_layout(folder)
