import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tests.finetune.tiny import make_corpus, make_dataset

from ragtune_mcp.core.dataset.pairs import Dataset
from ragtune_mcp.core.errors import InvalidInput, NotEnoughMemory
from ragtune_mcp.core.finetune.backbone import open_backbone
from ragtune_mcp.core.finetune.base import BaseModel
from ragtune_mcp.core.finetune.distillation import MARGIN, distill, judge_student, texts_to_match
from ragtune_mcp.core.finetune.student import Matching, sentences, write_student

CORPUS = make_corpus()
DATASET = make_dataset(CORPUS, queries=60, test=20)


def run(teacher, layers, output, report=lambda share, message, fields: None):
    return distill(
        DATASET,
        CORPUS,
        BaseModel("teacher", teacher),
        layers,
        output,
        report=report,
        cancelled=lambda: None,
        checkpoints=None,
    )


def test_a_student_starts_as_evenly_spaced_layers_of_its_teacher(tiny_model, tmp_path):
    student = write_student(tiny_model, 2, tmp_path / "student")
    teacher, own = (load_file(folder / "model.safetensors") for folder in (tiny_model, student))
    for name, weight in own.items():
        source = name.replace("layer.1.", "layer.3.")
        assert torch.equal(weight, teacher[source]), name
    assert json.loads((student / "config.json").read_text())["num_hidden_layers"] == 2
    assert {name.split(".")[2] for name in own if name.startswith("encoder.layer")} == {"0", "1"}


@pytest.mark.parametrize("layers", [0, 1, 4, 5])
def test_a_number_of_layers_the_teacher_cannot_give_is_refused(tiny_model, tmp_path, layers):
    with pytest.raises(InvalidInput, match=f"layers={layers} must be from 2 to 3"):
        write_student(tiny_model, layers, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_other_architectures_are_refused(tiny_distil, tmp_path):
    with pytest.raises(InvalidInput, match="not a plain BERT"):
        run(tiny_distil, 2, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_the_loss_is_the_mean_distance_to_the_teachers_vectors():
    targets = np.eye(3, dtype=np.float32)
    objective = Matching(["a", "b", "c"], targets)
    batch = objective.batch([2, 0])
    assert batch.texts == ["c", "a"]
    assert objective.loss(torch.tensor([[0.0, 0, 5], [0, 1, 0]]), batch.layout).item() == pytest.approx(0.5)


def test_sentences_are_short_texts_of_every_document():
    found = sentences(["One. This one is long enough. So is this other one!", "Too short."], 5, seed=0)
    assert found == ["This one is long enough.", "So is this other one!"]


def test_the_student_comes_close_to_its_teacher_and_loads_as_a_model_of_fewer_layers(tiny_model, tmp_path):
    events = []
    result = run(tiny_model, 2, tmp_path / "student", lambda *event: events.append(event))
    teacher, student = (
        open_backbone(path, 512, low_precision=False) for path in (tiny_model, result.model_path)
    )
    start = open_backbone(write_student(tiny_model, 2, tmp_path / "start"), 512, low_precision=False)
    assert student.layers == 2
    texts = list(CORPUS.values())
    target = teacher.encode(texts)
    before, after = (np.einsum("nd,nd->n", target, model.encode(texts)).mean() for model in (start, student))
    assert after > before
    assert result.metrics["test_queries"] == result.evaluation["queries"] == 20
    assert result.evaluation["documents"] == len(CORPUS)
    assert result.chosen["memory"]["peak_bytes"] > 0
    assert [share for share, _, _ in events] == sorted(share for share, _, _ in events)
    assert {path.name for path in tmp_path.iterdir()} == {"student", "start"}
    card = (result.model_path / "README.md").read_text(encoding="utf-8")
    assert "student of teacher" in card
    assert f"## Gate: {result.gate.verdict}" in card
    json.dumps([result.metrics, result.evaluation, result.gate.to_dict(), result.chosen], allow_nan=False)


def test_held_out_queries_are_not_matched(tiny_model, tmp_path, monkeypatch):
    seen = []
    matching = Matching.__init__
    monkeypatch.setattr(
        Matching,
        "__init__",
        lambda self, texts, targets: seen.extend(texts) or matching(self, texts, targets),
    )
    run(tiny_model, 2, tmp_path / "student")
    queries = {split: {p.query for p in DATASET.pairs if p.split == split} for split in ("train", "test")}
    assert queries["train"] <= set(seen)
    assert not queries["test"] & set(seen)


def differences(mean, n=200, spread=0.05):
    values = np.random.default_rng(0).normal(0, spread, n)
    return values - values.mean() + mean


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [
        (0.0, 0.05, "pass"),
        (-MARGIN / 2, 0.05, "pass"),
        (-MARGIN / 2, 0.4, "warn"),
        (0.05, 0.8, "warn"),
        (-2 * MARGIN, 0.05, "block"),
    ],
)
def test_a_student_may_lose_a_stated_margin(mean, spread, verdict):
    found = judge_student(differences(mean, spread=spread), 0.95, 0.94)
    assert found.verdict == verdict, found.reasons
    assert f"{MARGIN:.2f} may be lost" in found.reasons[0]


def test_few_queries_let_a_student_be_tested_but_not_pass():
    assert judge_student(differences(0.0, n=59), 0.95, 0.95).verdict == "warn"
    assert judge_student(differences(0.0, n=60), 0.95, 0.95).verdict == "pass"


def test_a_sentence_that_is_a_held_out_query_is_left_out():
    question = "How does one deploy it?"
    pairs = [
        replace(DATASET.pairs[0], query="how does one deploy it?", split="test"),
        replace(DATASET.pairs[0], query="Where are the logs kept?", split="train"),
    ]
    texts = texts_to_match(
        Dataset("faq", tuple(pairs), {}), {"faq": f"{question} With the new script of course."}, 0
    )
    assert question not in texts
    assert {"Where are the logs kept?", "With the new script of course."} <= set(texts)


def test_a_student_that_does_not_fit_is_refused_before_it_is_trained(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    with pytest.raises(NotEnoughMemory, match="GiB are free"):
        run(tiny_model, 2, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_too_few_queries_or_lost_similarity_block_a_student():
    few = judge_student(differences(0.0, n=10), 0.95, 0.95)
    assert few.verdict == "block"
    assert "10 judged queries" in few.reasons[0]
    forgot = judge_student(differences(0.0), 0.95, 0.90)
    assert forgot.verdict == "block"
    assert "0.950 -> 0.900" in forgot.reasons[-1]
