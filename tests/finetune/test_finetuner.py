import shutil
from dataclasses import replace

import pytest
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.dataset.export import export_pairs
from ragtune_mcp.core.errors import (
    FeatureDisabled,
    InvalidInput,
    LeakySplit,
    NotEnoughData,
    PathOutsideWorkspace,
)
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.finetuner import ModelFineTuner
from ragtune_mcp.core.finetune.parts import split_parts

PAIRS = make_dataset(make_corpus(), queries=50, test=16).pairs


@pytest.fixture
def workspace(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "tiny")
    export_pairs(PAIRS, tmp_path / "training_data.csv", "csv")
    return tmp_path


def make(workspace, **options):
    config = FineTuningConfig(
        base_model_name="tiny", output_model_path="./models", num_epochs=1, learning_rate=1e-3, use_amp=False
    )
    return ModelFineTuner(config, workspace=workspace, **options)


def test_the_steps_of_the_specification_leave_a_model_where_the_config_says(workspace):
    finetuner = make(workspace)
    assert finetuner.load_base_model().path == workspace / "tiny"
    train, validation = finetuner.load_training_data(
        "training_data.csv", format_type="csv", validation_split=0.2
    )
    assert {pair.split for pair in train} == {"train"}
    assert {pair.split for pair in validation} == {"validation"}
    result = finetuner.fine_tune_model(
        train_examples=train, val_examples=validation, model_name_suffix="feedback_v1"
    )
    assert result["model_path"].startswith(str(workspace / "models" / "feedback_v1_"))
    assert (workspace / "models" / result["model_version"] / "modules.json").is_file()
    assert result["training_duration"] > 0
    assert result["gate"]["verdict"] in ("pass", "warn", "block")
    assert result["evaluation"]["queries"] == 16


def test_positional_examples_and_no_validation_work_too(workspace):
    finetuner = make(workspace)
    train, validation = finetuner.load_training_data("training_data.csv")
    assert finetuner.fine_tune_model(train, validation)["model_version"].startswith("feedback_")
    assert finetuner.fine_tune_model(train)["chosen"]["interpolation"]["scores"]


def test_the_asked_share_of_query_groups_is_held_out(workspace):
    finetuner = make(workspace)
    few, many = (
        finetuner.load_training_data("training_data.csv", validation_split=share)[1] for share in (0.1, 0.6)
    )
    train, _ = finetuner.load_training_data("training_data.csv", validation_split=0.6)
    assert len({pair.query for pair in many}) > 3 * len({pair.query for pair in few})
    assert {pair.query_group for pair in train}.isdisjoint(pair.query_group for pair in many)
    assert {pair.query for pair in (*train, *many)}.isdisjoint(
        pair.query for pair in PAIRS if pair.split == "test"
    )


def test_a_model_is_evaluated_on_examples(workspace):
    finetuner = make(workspace)
    test = [pair for pair in PAIRS if pair.split == "test"]
    found = finetuner.evaluate_model(test)
    assert found["queries"] == 16
    assert 0 < found["ndcg@10"] <= 1
    assert 0 <= found["cosine_accuracy"] <= 1
    assert -1 <= found["spearman"] <= 1
    assert finetuner.evaluate_model(test, "tiny") == found


def test_conversion_calls_the_exporter_with_a_folder_of_the_workspace(workspace):
    calls = []

    def export(folder, name, target, **options):
        calls.append((folder, name, target, options))
        return {"instructions_path": str(target / "INSTRUCTIONS.md")}

    result = make(workspace, export_ollama=export).convert_to_ollama_format(
        model_path="./tiny", ollama_model_name="mine"
    )
    [(folder, name, target, options)] = calls
    assert (folder, name) == (workspace / "tiny", "mine")
    assert target.is_relative_to(workspace)
    assert options["quantization"] == "f16"
    assert result["instructions_path"]


def test_what_cannot_work_is_refused(workspace, monkeypatch):
    finetuner = make(workspace)
    with pytest.raises(InvalidInput, match="parquet"):
        finetuner.load_training_data("training_data.csv", format_type="parquet")
    with pytest.raises(PathOutsideWorkspace):
        finetuner.load_training_data("../elsewhere.csv")
    with pytest.raises(InvalidInput, match="validation_split"):
        finetuner.load_training_data("training_data.csv", validation_split=1.0)
    with pytest.raises(NotEnoughData):
        finetuner.fine_tune_model([])
    with pytest.raises(InvalidInput, match="suffix"):
        finetuner.fine_tune_model(PAIRS, model_name_suffix="../up")
    with pytest.raises(FeatureDisabled, match="exporter"):
        finetuner.convert_to_ollama_format("tiny", "mine")
    with pytest.raises(InvalidInput, match="nowhere"):
        make(workspace, export_ollama=print).convert_to_ollama_format("nowhere", "mine")
    monkeypatch.setenv("FINETUNING_ENABLED", "false")
    with pytest.raises(FeatureDisabled, match="FINETUNING_ENABLED"):
        make(workspace).fine_tune_model(PAIRS)
    assert not (workspace / "models").exists()


def test_the_callers_validation_examples_are_never_trained_on(workspace, monkeypatch):
    seen = {}

    def stop(dataset, corpus, base, config, output, **rest):
        seen.update(zip(("train", "validation", "test"), split_parts(dataset.pairs, config), strict=True))
        raise NotEnoughData("seen enough")

    monkeypatch.setattr("ragtune_mcp.core.finetune.finetuner.fine_tune", stop)
    finetuner = make(workspace)
    finetuner.config = replace(finetuner.config, validation_split=0.3)
    train, validation = finetuner.load_training_data("training_data.csv")
    with pytest.raises(NotEnoughData, match="seen enough"):
        finetuner.fine_tune_model(train, validation)
    assert seen["train"] == tuple(train)
    assert seen["validation"] == tuple(validation)


def test_what_a_data_set_holds_back_is_not_mined_and_a_leak_is_refused(workspace, monkeypatch):
    seen = {}

    def stop(dataset, *rest, **named):
        seen.update(dataset.manifest)
        raise NotEnoughData("seen enough")

    monkeypatch.setattr("ragtune_mcp.core.finetune.finetuner.fine_tune", stop)
    path = workspace / "own.csv"
    held_back = {"excluded_negatives": {"g": ["an undecided document"]}}
    export_pairs(PAIRS, path, "csv", dataset_id="own", details=held_back)
    finetuner = make(workspace)
    train, validation = finetuner.load_training_data("own.csv")
    with pytest.raises(NotEnoughData, match="seen enough"):
        finetuner.fine_tune_model(train, validation)
    assert seen["excluded_negatives"] == held_back["excluded_negatives"]

    (workspace / "leak.csv").write_text(
        "query,document,label,query_group,split\n"
        "how do I reset the cache of the server,a b c,1,g1,train\n"
        "how do I reset the cache of the server?,a b c,1,g2,test\n"
    )
    with pytest.raises(LeakySplit):
        finetuner.load_training_data("leak.csv")
