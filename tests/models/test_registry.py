from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from tests.models.support import make_model

from ragtune_mcp.core.errors import (
    Conflict,
    DigestMismatch,
    IntegrityError,
    InvalidInput,
    ModelUnavailable,
    PathOutsideWorkspace,
    UnknownId,
)
from ragtune_mcp.core.models.files import digest_of, folder_digest
from ragtune_mcp.core.models.registry import Registry
from ragtune_mcp.core.workspace import manifest_path

# Registering


def test_a_version_keeps_its_lineage_in_the_row_and_in_its_folder(registry, workspace):
    folder = make_model(workspace.models / "feedback_v1")
    lineage = {
        "base_model": "all-MiniLM-L6-v2",
        "dataset_id": "training_20260108_143022_7f3a",
        "job_id": "ft_1",
        "metrics": {"ndcg@10": 0.6, "mrr": None},
        "gate": {"verdict": "pass", "reasons": ["better"]},
        "config": {"num_epochs": 4},
    }
    model = registry.register("feedback_v1", folder, feedback_ids=["f2", "f1", "f2"], **lineage)
    assert {name: getattr(model, name) for name in lineage} == lineage
    assert (model.version, model.kind, model.path, model.stale) == ("feedback_v1", "tuned", folder, False)
    manifest = json.loads(manifest_path(folder).read_text())
    assert {name: manifest[name] for name in lineage} == lineage
    assert manifest["feedback_ids"] == ["f1", "f2"]
    assert manifest["digest"] == model.digest == digest_of(manifest["files"]) == folder_digest(folder)
    assert "model.safetensors" in manifest["files"]


def test_a_version_is_found_by_another_process(tuned, workspace, db):
    model = tuned("v1", gate={"verdict": "warn", "reasons": []})
    assert Registry(db, workspace).get("v1") == model


def test_registering_the_same_files_again_changes_nothing(registry, tuned, workspace):
    first = tuned("v1", metrics={"a": 1.0})
    assert registry.register("v1", workspace.models / "v1", base_model="x", metrics={"a": 2.0}) == first
    registry.verify("v1")


def test_registering_other_files_under_a_known_version_is_refused(registry, tuned, workspace):
    tuned("v1")
    (workspace.models / "v1" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(Conflict, match="v1"):
        registry.register("v1", workspace.models / "v1", base_model="x")


def test_a_registration_interrupted_before_its_row_can_be_repeated(registry, workspace, monkeypatch):
    folder = make_model(workspace.models / "v1")
    monkeypatch.setattr(Registry, "_insert", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        registry.register("v1", folder, base_model="b")
    monkeypatch.undo()
    assert manifest_path(folder).exists()
    assert not registry.has("v1")
    registry.register("v1", folder, base_model="b")
    registry.verify("v1")


def test_a_folder_outside_the_workspace_is_refused(registry, tmp_path):
    folder = make_model(tmp_path / "elsewhere")
    with pytest.raises(PathOutsideWorkspace):
        registry.register("v1", folder, base_model="b")
    assert not manifest_path(folder).exists()


def test_a_folder_with_pickled_weights_is_refused_and_left_as_it_was(registry, workspace):
    folder = make_model(workspace.models / "v1", **{"pytorch_model.bin": "x"})
    with pytest.raises(IntegrityError, match="could run code"):
        registry.register("v1", folder, base_model="b")
    assert not manifest_path(folder).exists()
    assert registry.list() == ()


# Base models


def test_a_base_model_is_registered_where_it_lies(registry, tmp_path):
    folder = make_model(tmp_path / "site-packages" / "model")
    model = registry.register_base("all-MiniLM-L6-v2", folder)
    assert (model.kind, model.base_model, model.path, model.gate) == (
        "base",
        "all-MiniLM-L6-v2",
        folder,
        None,
    )
    assert model.digest == folder_digest(folder)
    assert not manifest_path(folder).exists()
    registry.verify("all-MiniLM-L6-v2")


def test_a_base_model_that_moved_is_followed(registry, tmp_path):
    old = make_model(tmp_path / "old")
    first = registry.register_base("base", old)
    new = old.rename(tmp_path / "new")
    again = registry.register_base("base", new)
    assert (again.path, again.digest) == (new, first.digest)
    registry.verify("base")


def test_another_model_under_a_known_base_name_is_refused(registry, tmp_path):
    registry.register_base("base", make_model(tmp_path / "a", weights=b"1"))
    with pytest.raises(DigestMismatch, match="base"):
        registry.register_base("base", make_model(tmp_path / "b", weights=b"2"))


def test_a_tuned_version_used_as_a_base_keeps_its_id(registry, tuned, workspace):
    model = tuned("v1")
    assert registry.register_base("./fine_tuned_models/v1", workspace.models / "v1") == model


def test_the_names_of_the_hub_and_of_the_package_mean_one_model(registry, tmp_path):
    folder = make_model(tmp_path / "model")
    model = registry.register_base("sentence-transformers/all-MiniLM-L6-v2", folder)
    assert model.version == "all-MiniLM-L6-v2"
    names = ("all-MiniLM-L6-v2", "all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2")
    assert [registry.resolve(name) for name in names] == [model] * 3
    assert [registry.register_base(name, folder) for name in names] == [model] * 3


# Finding


@pytest.mark.parametrize(
    "name",
    [
        "feedback_v1_20260108_143022",
        "./fine_tuned_models/feedback_v1_20260108_143022",
        "fine_tuned_models/feedback_v1_20260108_143022/",
        "fine_tuned_models/../fine_tuned_models/feedback_v1_20260108_143022",
    ],
)
def test_a_version_is_resolved_by_id_and_by_path(registry, tuned, name):
    model = tuned("feedback_v1_20260108_143022")
    assert registry.resolve(name) == model
    assert registry.has(name)


def test_a_version_is_resolved_by_its_absolute_path(registry, tuned):
    model = tuned("v1")
    assert registry.resolve(str(model.path)) == model


def test_a_path_outside_the_workspace_is_refused(registry):
    with pytest.raises(PathOutsideWorkspace, match="'../../etc'"):
        registry.resolve("../../etc")


@pytest.mark.parametrize("name", ["nope", "./fine_tuned_models/nope", "", "V1"])
def test_what_is_not_registered_is_an_error_with_the_name(registry, tuned, name):
    tuned("v1")
    with pytest.raises(UnknownId) as caught:
        registry.resolve(name)
    assert caught.value.code == "unknown_version"
    assert repr(name) in caught.value.message


def test_get_takes_ids_only(registry, tuned):
    tuned("v1")
    with pytest.raises(UnknownId):
        registry.get("./fine_tuned_models/v1")


def test_versions_are_listed_newest_first(registry, tuned, tmp_path):
    registry.register_base("base", make_model(tmp_path / "base"))
    tuned("v1"), tuned("v2")
    registry.register_base("newer-base", make_model(tmp_path / "newer", weights=b"n"))
    assert [model.version for model in registry.list()] == ["newer-base", "v2", "v1", "base"]


# Integrity


def test_a_base_model_whose_folder_is_gone_is_looked_for_before_it_is_verified(registry, workspace, tmp_path):
    registry.register_base("mini", make_model(tmp_path / "venv" / "mini"))
    (tmp_path / "venv").rename(tmp_path / "old")
    with pytest.raises(ModelUnavailable, match="mini"):
        registry.verify("mini")
    found = make_model(workspace.root / "mini")
    assert registry.verify("mini").path == found
    assert registry.get("mini").path == found


def test_another_model_found_under_the_name_of_a_base_is_refused(registry, workspace, tmp_path):
    registry.register_base("mini", make_model(tmp_path / "venv" / "mini"))
    (tmp_path / "venv").rename(tmp_path / "old")
    make_model(workspace.root / "mini", weights=b"other")
    with pytest.raises(DigestMismatch, match="mini"):
        registry.verify("mini")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"WEIGHTS"), "changed: model.safetensors"),
        (lambda f: (f / "1_Pooling/config.json").write_text("{}"), "changed: 1_Pooling/config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "missing: tokenizer.json"),
        (lambda f: (f / "extra.json").write_text("{}"), "not recorded: extra.json"),
        (lambda f: (f / ".hidden").write_text("x"), "not recorded: .hidden"),
        (lambda f: manifest_path(f).write_text("{}"), "changed: ragtune.json"),
        (lambda f: manifest_path(f).unlink(), "missing: ragtune.json"),
    ],
)
def test_a_version_that_is_not_what_was_registered_is_refused(registry, tuned, change, message):
    model = tuned("v1")
    registry.verify("v1")
    change(model.path)
    with pytest.raises(DigestMismatch, match=message):
        registry.verify("v1")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "pytorch_model.bin").write_bytes(b"x"),
        lambda f: (f / "model2.safetensors").symlink_to(f / "model.safetensors"),
        lambda f: shutil.rmtree(f),
    ],
)
def test_a_folder_that_is_no_safe_model_any_more_is_refused(registry, tuned, change):
    model = tuned("v1")
    change(model.path)
    with pytest.raises(IntegrityError):
        registry.verify("v1")


def test_rewriting_files_and_manifest_together_is_still_noticed(registry, tuned):
    model = tuned("v1")
    (model.path / "model.safetensors").write_bytes(b"other")
    manifest = json.loads(manifest_path(model.path).read_text())
    manifest["files"]["model.safetensors"] = "0" * 64
    manifest_path(model.path).write_text(json.dumps(manifest))
    with pytest.raises(DigestMismatch, match="changed: model.safetensors, ragtune.json"):
        registry.verify("v1")


def test_a_changed_base_model_is_refused_and_a_readme_beside_it_is_not(registry, tmp_path):
    folder = make_model(tmp_path / "base")
    registry.register_base("base", folder)
    (folder / "README.md").write_text("new")
    registry.verify("base")
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DigestMismatch, match=r"changed: model\.safetensors"):
        registry.verify("base")


# Lineage


def test_a_rating_leads_to_the_versions_it_trained_and_back(registry, tuned):
    tuned("v1", feedback_ids=["f1", "f2"])
    tuned("v2", feedback_ids=["f2", "f3"])
    assert registry.trained_on("f2") == ("v1", "v2")
    assert registry.trained_on("f9") == ()
    assert registry.feedback_ids("v2") == ("f2", "f3")


def test_a_stale_version_is_marked_and_still_verifies(registry, tuned):
    tuned("v1", feedback_ids=["f1"]), tuned("v2", feedback_ids=["f2"])
    registry.mark_stale("v1")
    assert [registry.get(version).stale for version in ("v1", "v2")] == [True, False]
    registry.verify("v1")


# Aliases


def test_an_alias_points_at_a_version_and_its_changes_are_logged(registry, tuned):
    tuned("v1"), tuned("v2")
    assert registry.alias("champion") is None
    first = registry.set_alias("champion", "v1", actor="index", reason="first index")
    second = registry.set_alias("champion", "v2", actor="user", reason="better")
    assert registry.alias("champion") == "v2"
    entries = registry.audit.entries(subject="champion")
    assert [(e.entry_id, e.before, e.after, e.actor, e.reason) for e in entries] == [
        (first, None, "v1", "index", "first index"),
        (second, "v1", "v2", "user", "better"),
    ]


def test_pointing_an_alias_where_it_points_logs_nothing(registry, tuned):
    tuned("v1")
    first = registry.set_alias("champion", "v1", actor="a", reason="r")
    assert registry.set_alias("champion", "v1", actor="b", reason="again") == first
    assert len(registry.audit.entries()) == 1


def test_an_alias_cannot_point_at_an_unknown_version(registry):
    with pytest.raises(UnknownId):
        registry.set_alias("champion", "nope", actor="a", reason="r")
    assert (registry.alias("champion"), registry.audit.entries()) == (None, ())


def test_there_are_two_aliases(registry, tuned):
    tuned("v1")
    with pytest.raises(InvalidInput, match="'latest'"):
        registry.set_alias("latest", "v1", actor="a", reason="r")


def test_an_alias_and_its_log_entry_change_together_or_not_at_all(registry, tuned, db):
    tuned("v1"), tuned("v2")
    registry.set_alias("champion", "v1", actor="a", reason="r")
    with pytest.raises(KeyboardInterrupt), db.transaction():
        registry.set_alias("champion", "v2", actor="a", reason="r")
        raise KeyboardInterrupt
    assert registry.alias("champion") == "v1"
    assert len(registry.audit.entries()) == 1


def test_a_cleared_alias_points_nowhere(registry, tuned):
    tuned("v1")
    registry.set_alias("challenger", "v1", actor="a", reason="r")
    registry.clear_alias("challenger", actor="user", reason="promoted")
    registry.clear_alias("challenger", actor="user", reason="promoted")
    assert registry.alias("challenger") is None
    assert [entry.action for entry in registry.audit.entries(subject="challenger")] == ["set", "clear"]


def _walk(registry, *steps):
    """Apply "+v" (promote) and "-" (roll back to the previous champion); return each previous champion."""
    seen = []
    for step in steps:
        if step == "-":
            previous = registry.previous_champion()
            registry.set_alias("champion", previous, actor="user", reason="", action="rollback")
        else:
            registry.set_alias("champion", step, actor="user", reason="")
        seen.append((registry.alias("champion"), registry.previous_champion()))
    return seen


def test_every_promotion_can_be_undone_and_undoing_goes_back_step_by_step(registry, tuned):
    for version in ("a", "b", "c"):
        tuned(version)
    assert _walk(registry, "a", "b", "c", "-", "-") == [
        ("a", None),
        ("b", "a"),
        ("c", "b"),
        ("b", "a"),
        ("a", None),
    ]


def test_promoting_an_earlier_champion_is_a_promotion_and_can_be_undone(registry, tuned):
    for version in ("a", "b"):
        tuned(version)
    assert _walk(registry, "a", "b", "a", "-", "-") == [
        ("a", None),
        ("b", "a"),
        ("a", "b"),
        ("b", "a"),
        ("a", None),
    ]


def test_after_a_rollback_and_a_new_promotion_the_way_back_leads_over_both(registry, tuned):
    for version in ("a", "b", "c"):
        tuned(version)
    assert _walk(registry, "a", "b", "-", "c") == [("a", None), ("b", "a"), ("a", None), ("c", "a")]


def test_a_rollback_over_two_steps_leaves_what_was_before_both(registry, tuned):
    for version in ("z", "a", "b", "c"):
        tuned(version)
    _walk(registry, "z", "a", "b", "c")
    registry.set_alias("champion", "a", actor="user", reason="", action="rollback")
    assert registry.previous_champion() == "z"


def test_a_rollback_to_a_version_that_was_never_champion_can_be_undone(registry, tuned):
    for version in ("a", "b"):
        tuned(version)
    _walk(registry, "a")
    registry.set_alias("champion", "b", actor="user", reason="", action="rollback")
    assert registry.previous_champion() == "a"


@pytest.mark.parametrize("statement", ["DELETE FROM audit_log", "UPDATE audit_log SET reason='x'"])
def test_the_audit_log_cannot_be_rewritten(registry, tuned, db, statement):
    tuned("v1")
    registry.set_alias("champion", "v1", actor="a", reason="r")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.connection.execute(statement)


def test_audit_entries_keep_their_details_and_the_last_come_last(registry):
    for n in range(3):
        registry.audit.add("export", "v1", actor="cli", reason="asked", details={"n": n})
    assert [dict(entry.details) for entry in registry.audit.entries(limit=2)] == [{"n": 1}, {"n": 2}]
    assert registry.audit.entries(subject="other") == ()


def test_a_base_that_wants_a_prompt_before_queries_is_refused(registry, tmp_path):
    prompt = "Represent this sentence for searching relevant passages: "
    for prompts in ({"query": prompt, "document": ""}, {"passage": prompt}):
        config = json.dumps({"prompts": prompts, "default_prompt_name": None})
        folder = make_model(tmp_path / "arctic", **{"config_sentence_transformers.json": config})
        with pytest.raises(InvalidInput, match="Represent this sentence") as caught:
            registry.register_base("arctic", folder)
        assert caught.value.code == "unsupported_model"
        assert "prompts" in caught.value.hint
        assert not registry.has("arctic")
    config = json.dumps({"prompts": {"query": "", "document": ""}, "default_prompt_name": None})
    make_model(folder, **{"config_sentence_transformers.json": config})
    assert registry.register_base("arctic", folder).version == "arctic"
