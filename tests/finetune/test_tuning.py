import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.errors import JobCancelled, JobFailed, NotEnoughData
from ragtune_mcp.core.finetune import backbone as backbone_module
from ragtune_mcp.core.finetune import trainer as trainer_module
from ragtune_mcp.core.finetune import tuning as tuning_module
from ragtune_mcp.core.finetune.base import BaseModel
from ragtune_mcp.core.finetune.config import FineTuningConfig
from ragtune_mcp.core.finetune.memory import activation_bytes
from ragtune_mcp.core.finetune.parts import document_ids, split_parts
from ragtune_mcp.core.finetune.tuning import fine_tune

CORPUS = make_corpus()
DATASET = make_dataset(CORPUS, queries=150, test=30)
QUICK = FineTuningConfig(learning_rate=3e-3, num_epochs=4, batch_size=16, use_amp=False)


def run(model, output, config=QUICK, dataset=DATASET, cancelled=lambda: None, checkpoints=None):
    events = []
    result = fine_tune(
        dataset,
        CORPUS,
        BaseModel("tiny", model),
        config,
        output,
        report=lambda share, message, fields: events.append((share, message, fields)),
        cancelled=cancelled,
        checkpoints=checkpoints,
    )
    return result, events


def weights_of(result):
    return load_file(result.model_path / "model.safetensors")


def same_weights(left, right):
    return all(np.array_equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def reference(tiny_model, tmp_path_factory):
    return run(tiny_model, tmp_path_factory.mktemp("reference") / "model")


def test_a_run_learns_and_says_what_it_chose(reference):
    result, _ = reference
    assert result.evaluation["queries"] == 30
    assert result.evaluation["documents"] == len(CORPUS)
    assert result.metrics["gain_ndcg@10"] == pytest.approx(result.evaluation["gain"]["ndcg@10"]["mean"])
    assert result.metrics["final_eval_score"] > result.metrics["base_eval_score"]
    assert result.metrics["final_train_loss"] == result.history[-1].train_loss
    assert result.chosen["interpolation"]["alpha"] > 0
    assert any("mined" in reason for reason in result.chosen["reasons"])
    assert any("validation nDCG@10" in reason for reason in result.chosen["reasons"])


def test_the_result_is_json_without_nan(reference):
    result, _ = reference
    shown = [result.metrics, result.evaluation, result.gate.to_dict(), result.chosen]
    json.dumps([*shown, [entry.to_dict() for entry in result.history]], allow_nan=False)


def test_the_saved_folder_loads_in_the_library_and_ranks_as_evaluated(reference):
    from sentence_transformers import SentenceTransformer

    result, _ = reference
    model = SentenceTransformer(str(result.model_path), device="cpu")
    test = [pair for pair in DATASET.pairs if pair.split == "test" and pair.kind == "positive"]
    documents = model.encode(list(CORPUS.values()), normalize_embeddings=True, show_progress_bar=False)
    ids = list(CORPUS)
    ranks = []
    for pair in test:
        query = model.encode([pair.query], normalize_embeddings=True, show_progress_bar=False)[0]
        ranks.append(
            1 + [ids[i] for i in np.argsort(-(documents @ query), kind="stable")].index(pair.document_id)
        )
    expected = np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks])
    assert result.metrics["tuned_ndcg@10"] == pytest.approx(expected, abs=1e-6)
    assert not list(result.model_path.parent.glob(".*.partial"))


def test_the_model_card_tells_data_recipe_metrics_and_gate(reference):
    result, _ = reference
    card = (result.model_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "30 held-out queries against all 60 documents" in card
    assert f"## Gate: {result.gate.verdict}" in card
    assert result.gate.reasons[0] in card
    assert all(reason in card for reason in result.chosen["reasons"])
    gain = result.evaluation["gain"]["ndcg@10"]
    assert f"{gain['mean']:+.4f} ({gain['low']:+.4f} .. {gain['high']:+.4f}), n = 30" in card


def test_progress_rises_to_one_and_shows_loss_and_time_left(reference):
    _, events = reference
    shares = [share for share, _, _ in events]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    steps = [fields for _, _, fields in events if "loss" in fields]
    assert [fields["step"] for fields in steps] == list(range(1, steps[-1]["steps"] + 1))
    assert all(fields["eta_s"] is not None for fields in steps)


def test_the_same_seed_gives_the_same_model_and_numbers(reference, tiny_model, tmp_path):
    result, _ = reference
    again, _ = run(tiny_model, tmp_path / "model")
    assert same_weights(weights_of(again), weights_of(result))
    assert again.metrics == result.metrics
    assert again.gate == result.gate


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 8},
        {"num_epochs": 3},
        {"learning_rate": 1e-3},
        {"warmup_steps": 9},
        {"max_seq_length": 16},
        {"loss_function": "MultipleNegativesRankingLoss"},
        {"loss_function": "CosineSimilarityLoss"},
        {"loss_function": "TripletLoss"},
        {"loss_function": "CoSENTLoss"},
        {"loss_function": "MultipleNegativesRankingLoss+CosineSimilarityLoss"},
        {"validation_split": 0.5},
        {"random_seed": 1},
    ],
    ids=lambda change: "-".join(map(str, next(iter(change.items())))),
)
def test_each_field_changes_the_trained_weights(reference, tiny_model, tmp_path, change):
    result, _ = reference
    changed, _ = run(tiny_model, tmp_path / "model", replace(QUICK, **change))
    assert not same_weights(weights_of(changed), weights_of(result))
    assert changed.metrics["final_train_loss"] > 0


def test_evaluation_steps_add_validations(reference, tiny_model, tmp_path):
    result, _ = reference
    more, _ = run(tiny_model, tmp_path / "model", replace(QUICK, evaluation_steps=2))
    assert len(more.history) > len(result.history)
    assert 2 in [entry.step for entry in more.history]


def test_patience_ends_training(tiny_model, tmp_path):
    config = replace(
        QUICK,
        loss_function="MultipleNegativesRankingLoss",
        num_epochs=12,
        learning_rate=1e-8,
        early_stopping_patience=1,
    )
    stopped, _ = run(tiny_model, tmp_path / "model", config)
    assert stopped.chosen["stopped_early"]
    patient, _ = run(tiny_model, tmp_path / "other", replace(config, early_stopping_patience=50))
    assert not patient.chosen["stopped_early"]
    assert patient.chosen["steps"] > stopped.chosen["steps"]


def test_save_steps_writes_checkpoints_that_a_cancelled_run_resumes_from(reference, tiny_model, tmp_path):
    steps = []

    def cancelled():
        if len(steps) == 7:
            raise JobCancelled("stop")

    def report(share, message, fields):
        steps.extend([fields["step"]] if "step" in fields else [])

    folder = tmp_path / "checkpoints"
    config = replace(QUICK, save_steps=2)
    with pytest.raises(JobCancelled):
        fine_tune(
            DATASET,
            CORPUS,
            BaseModel("tiny", tiny_model),
            config,
            tmp_path / "model",
            report=report,
            cancelled=cancelled,
            checkpoints=folder,
        )
    assert not (tmp_path / "model").exists()
    [saved] = folder.iterdir()
    assert saved.stem == "step-00000007"
    result, events = run(tiny_model, tmp_path / "model", config, checkpoints=folder)
    assert min(fields["step"] for _, _, fields in events if "loss" in fields) == 8
    assert same_weights(weights_of(result), weights_of(reference[0]))


@pytest.mark.skipif(not backbone_module.bf16_supported(), reason="this processor has no bfloat16 products")
def test_use_amp_computes_in_bfloat16_and_keeps_float32_weights(reference, tiny_model, tmp_path):
    result, _ = run(tiny_model, tmp_path / "model", replace(QUICK, use_amp=True))
    assert not same_weights(weights_of(result), weights_of(reference[0]))
    assert {array.dtype for array in weights_of(result).values()} == {np.dtype("float32")}


def test_without_bfloat16_hardware_use_amp_changes_nothing(reference, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone_module, "bf16_supported", lambda: False)
    result, _ = run(tiny_model, tmp_path / "model", replace(QUICK, use_amp=True))
    assert same_weights(weights_of(result), weights_of(reference[0]))


def test_when_memory_is_short_a_batch_goes_in_parts_with_the_same_result(tiny_model, tmp_path, monkeypatch):
    config = replace(QUICK, batch_size=64, num_epochs=2)
    whole, _ = run(tiny_model, tmp_path / "whole", config)
    planned = whole.chosen["memory"]

    backbone = backbone_module.open_backbone(tiny_model, 512, low_precision=False)
    per_token = activation_bytes(
        backbone.size(whole.chosen["recipe"]["frozen_layers"]), backbone.max_tokens, item_bytes=4
    )
    free = SimpleNamespace(available=planned["peak_bytes"] - (planned["part_tokens"] - 1024) * per_token)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    parts = []
    cut = trainer_module._parts
    monkeypatch.setattr(
        trainer_module, "_parts", lambda lengths, limit: parts.append(cut(lengths, limit)) or parts[-1]
    )
    tight, _ = run(tiny_model, tmp_path / "tight", config)

    assert tight.chosen["memory"]["part_tokens"] == 1024 < planned["part_tokens"]
    assert tight.chosen["memory"]["peak_bytes"] <= free.available
    assert max(len(found) for found in parts) > 1
    assert tight.chosen["steps"] == whole.chosen["steps"]
    left, right = weights_of(whole), weights_of(tight)
    for name in left:
        # Attention does not depend on the bias of its keys: the gradient is rounding, which Adam scales up.
        if not name.endswith("attention.self.key.bias"):
            np.testing.assert_allclose(left[name], right[name], atol=1e-4, err_msg=name)


def test_a_shorter_window_is_judged_against_the_base_model_as_it_is_served(reference, tiny_model, tmp_path):
    result, _ = run(tiny_model, tmp_path / "short", replace(QUICK, max_seq_length=16))
    assert result.evaluation["base"] == reference[0].evaluation["base"]
    assert result.metrics["base_eval_score"] == reference[0].metrics["base_eval_score"]
    [reason] = [reason for reason in result.chosen["reasons"] if "are cut to 16 tokens" in reason]
    assert "reads 48" in reason
    assert not any("are cut to" in reason for reason in reference[0].chosen["reasons"])


def test_without_hard_negatives_none_are_trained_on(tiny_model, tmp_path, monkeypatch):
    seen = []
    ranking = tuning_module.Ranking
    monkeypatch.setattr(
        tuning_module,
        "Ranking",
        lambda examples, **options: seen.extend(examples) or ranking(examples, **options),
    )
    plain = Dataset("plain", DATASET.pairs, {"options": {"include_hard_negatives": False}})
    run(tiny_model, tmp_path / "plain", replace(QUICK, num_epochs=1), dataset=plain)
    assert {example.negatives for example in seen} == {()}


def test_documents_that_left_the_index_are_named_as_what_is_missing(tiny_model, tmp_path):
    gone = Dataset("gone", tuple(_gone(pair) for pair in DATASET.pairs), {})
    result, _ = run(tiny_model, tmp_path / "gone", replace(QUICK, num_epochs=1), dataset=gone)
    assert result.gate.verdict == "block"
    assert (
        "index_documents (the documents that answer 30 of 30 held-out queries are not in"
        in (result.gate.reasons[-1])
    )


def _gone(pair):
    if pair.split != "test":
        return pair
    return replace(pair, document=f"{pair.document} of old", document_id=f"old-{pair.document_id}")


def test_of_documents_with_the_same_text_the_first_is_the_judged_one():
    corpus = {"first": "same", "second": "same", "third": "other"}
    assert document_ids((), corpus) == {"same": "first", "other": "third"}


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    with pytest.raises(JobFailed, match="GiB are free") as error:
        run(tiny_model, tmp_path / "model")
    assert "max_seq_length" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_when_no_candidate_beats_the_base_model_the_run_ends_with_a_block(tiny_model, tmp_path):
    harmful = replace(QUICK, learning_rate=0.5)
    result, _ = run(tiny_model, tmp_path / "model", harmful)
    assert result.gate.verdict == "block"
    assert result.chosen["interpolation"]["alpha"] == 0
    assert "The base model is better for now" in result.gate.reasons[-1]


def test_without_a_test_part_the_verdict_is_a_block_for_lack_of_feedback(tiny_model, tmp_path):
    pairs = tuple(pair for pair in DATASET.pairs if pair.split != "test")
    result, _ = run(tiny_model, tmp_path / "model", replace(QUICK, num_epochs=1), Dataset("d", pairs, {}))
    assert result.gate.verdict == "block"
    assert result.gate.details["codes"][0] == "not_enough_feedback"


def test_too_few_positive_pairs_are_refused_before_anything_is_written(tiny_model, tmp_path):
    pairs = tuple(pair for pair in DATASET.pairs if pair.kind == "negative")
    with pytest.raises(NotEnoughData, match="0 positive pairs"):
        run(tiny_model, tmp_path / "model", QUICK, Dataset("d", pairs, {}))
    assert list(tmp_path.iterdir()) == []


def test_the_test_part_is_never_trained_on(tiny_model, tmp_path, reference):
    other = tuple(
        replace(pair, document=CORPUS["d0"], document_id="d0") if pair.split == "test" else pair
        for pair in DATASET.pairs
    )
    result, _ = run(tiny_model, tmp_path / "model", QUICK, Dataset("d", other, {}))
    assert same_weights(weights_of(result), weights_of(reference[0]))
    assert result.metrics["tuned_ndcg@10"] != reference[0].metrics["tuned_ndcg@10"]


def test_the_data_sets_own_validation_part_is_kept_unless_a_share_is_asked_for():
    parts = split_parts(DATASET.pairs, FineTuningConfig())
    assert {pair.split for pair in parts.validation} == {"validation"}
    asked = split_parts(DATASET.pairs, FineTuningConfig(validation_split=0.5))
    assert len(asked.validation) > len(parts.validation)
    assert asked.test == parts.test


def test_other_architectures_are_trained_by_the_librarys_trainer(tiny_distil, tmp_path):
    config = replace(QUICK, num_epochs=2)
    result, events = run(tiny_distil, tmp_path / "model", config)
    assert result.metrics["final_train_loss"] > 0
    assert [entry.epoch for entry in result.history] == [1.0, 2.0]
    assert sum("loss" in fields for _, _, fields in events) == result.chosen["steps"]
    again, _ = run(tiny_distil, tmp_path / "again", config)
    assert same_weights(weights_of(again), weights_of(result))
    named, _ = run(tiny_distil, tmp_path / "named", replace(config, loss_function="CosineSimilarityLoss"))
    assert not same_weights(weights_of(named), weights_of(result))
    several = replace(config, loss_function="MultipleNegativesRankingLoss+CosineSimilarityLoss")
    both, events = run(tiny_distil, tmp_path / "both", several)
    assert not same_weights(weights_of(both), weights_of(named))
    assert both.chosen["steps"] > named.chosen["steps"]
    assert sum("loss" in fields for _, _, fields in events) == both.chosen["steps"]
