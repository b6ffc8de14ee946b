"""The fine-tuner as `create_model_finetuner` wires it."""

import pytest
from tests.models.tiny_bert import make_tiny_bert

from ragtune_mcp.core.factories import create_model_finetuner
from ragtune_mcp.core.finetune.config import FineTuningConfig

pytestmark = pytest.mark.filterwarnings("ignore")


def test_an_export_asks_the_workspaces_ollama_and_is_compared_with_the_base(tmp_path):
    (tmp_path / ".env").write_text("OLLAMA_HOST=127.0.0.1:9\n")
    make_tiny_bert(tmp_path / "base")
    make_tiny_bert(tmp_path / "fine_tuned_models" / "mine", seed=1)
    config = FineTuningConfig(base_model_name="./base")
    finetuner = create_model_finetuner(config, str(tmp_path))
    report = finetuner.convert_to_ollama_format("./fine_tuned_models/mine", "mine")
    assert report["ollama"] == {"reachable": False, "url": "http://127.0.0.1:9"}
    assert report["base_cosine"]["mean"] < 0.99


def test_a_base_that_is_nowhere_does_not_keep_a_model_from_being_exported(tmp_path, caplog):
    (tmp_path / ".env").write_text("OLLAMA_HOST=127.0.0.1:9\nRAGTUNE_ALLOW_DOWNLOADS=false\n")
    make_tiny_bert(tmp_path / "mine")
    finetuner = create_model_finetuner(FineTuningConfig(base_model_name="./gone"), str(tmp_path))
    assert finetuner.convert_to_ollama_format("mine", "mine")["base_cosine"]["status"] == "skipped"
    assert "./gone" in caplog.text
