"""The specification's Python examples, as written but for import lines, paths and the amount of data."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from ragtune_mcp import (
    ConPortClient,
    FineTuningConfig,
    create_model_finetuner,
    create_training_data_generator,
)

pytestmark = pytest.mark.real

SUBJECTS = (
    "the outbox,the gate,a checkpoint,the split,an exposure,the index,a worker,the registry,a rating,the recipe,"
    "a digest,the encoder,the champion,a salt,the margin,a heartbeat"
).split(",")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose ConPort file holds 64 ratings of documents that carry their texts."""
    root = tmp_path_factory.mktemp("example")
    (root / ".env").write_text("TRAINING_DATA_MIN_SAMPLES=20\nRAGTUNE_CONPORT=sqlite\n", encoding="utf-8")
    from context_portal_mcp.db import database, models

    database.get_db_connection(str(root))
    for number, subject in enumerate(SUBJECTS):
        for good in (True, False):
            other = SUBJECTS[(number + 5) % len(SUBJECTS)]
            text = f"How {subject if good else other} works: {subject if good else other} is explained in detail here."
            for rater in ("r1", "r2"):
                key = f"{number}-{good}-{rater}"
                value = {
                    "feedback_id": key,
                    "session_id": rater,
                    "query": f"explain to me what {subject} does here",
                    "documents": [
                        {
                            "id": f"doc-{number if good else number + 100}",
                            "text": text,
                            "rating": 5 if good else 1,
                        }
                    ],
                }
                database.log_custom_data(
                    str(root), models.CustomData(category="UserFeedback", key=key, value=value)
                )
    database.close_all_connections()
    return root


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples name files relative to the project they run in."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("RAGTUNE_WORKSPACE", str(workspace))
    return workspace


def test_training_data_generator_example(inside: Path) -> None:
    conport_client = ConPortClient()
    workspace_id = str(inside)

    generator = create_training_data_generator(
        conport_client=conport_client,
        workspace_id=workspace_id,
        chroma_db=None,
        embedding_model="all-MiniLM-L6-v2",
    )
    training_pairs = generator.generate_training_data(
        min_positive_samples=10, min_negative_samples=10, include_hard_negatives=True
    )
    generator.export_training_data(training_pairs, "training_data.csv", format_type="csv")
    generator.export_training_data(training_pairs, "training_data.json", format_type="json")

    with (inside / "training_data.csv").open(encoding="utf-8", newline="") as lines:
        assert len(list(csv.DictReader(lines))) == len(training_pairs)
    assert json.loads((inside / "training_data.json").read_text(encoding="utf-8"))
    assert {pair.label >= 0.75 for pair in training_pairs} == {True, False}


def test_conport_integration_example(inside: Path) -> None:
    conport_client = ConPortClient()
    workspace_id = str(inside)
    generator = create_training_data_generator(conport_client=conport_client, workspace_id=workspace_id)

    feedback_data = generator.get_feedback_data(days_back=90, min_samples=10)
    assert len(feedback_data) == 64
    training_pairs = generator.generate_training_data_from_feedback(feedback_data)
    assert len(training_pairs) >= 32

    timestamp = "20240108_143022"
    conport_client.log_custom_data(
        {
            "workspace_id": workspace_id,
            "category": "ModelTraining",
            "key": f"training_job_{timestamp}",
            "value": {
                "status": "started",
                "training_pairs": len(training_pairs),
                "base_model": "all-MiniLM-L6-v2",
            },
        }
    )
    [row] = conport_client.get_custom_data("ModelTraining", f"training_job_{timestamp}")
    assert row["value"]["training_pairs"] == len(training_pairs)
    conport_client.close()


def test_model_finetuner_example(inside: Path) -> None:
    generator = create_training_data_generator(conport_client=ConPortClient(), workspace_id=str(inside))
    pairs = generator.generate_training_data(
        min_positive_samples=10, min_negative_samples=10, include_hard_negatives=True
    )
    generator.export_training_data(pairs, "training_data.csv", format_type="csv")

    config = FineTuningConfig(
        base_model_name="all-MiniLM-L6-v2",
        output_model_path="./fine_tuned_models",
        batch_size=16,
        num_epochs=1,
        learning_rate=2e-5,
        loss_function="CosineSimilarityLoss",
    )
    finetuner = create_model_finetuner(config=config)
    finetuner.load_base_model()
    train_examples, val_examples = finetuner.load_training_data(
        "training_data.csv", format_type="csv", validation_split=0.2
    )
    result = finetuner.fine_tune_model(
        train_examples=train_examples, val_examples=val_examples, model_name_suffix="feedback_v1"
    )

    assert Path(result["model_path"]).name.startswith("feedback_v1_")
    assert (Path(result["model_path"]) / "modules.json").is_file()
    assert result["training_duration"] > 0

    exported = finetuner.convert_to_ollama_format(
        model_path=result["model_path"], ollama_model_name="ragtime-feedback-v1"
    )
    assert os.path.getsize(exported["instructions_path"]) > 0
