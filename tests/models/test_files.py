from __future__ import annotations

import hashlib
import json

import pytest
from tests.models.support import make_model

from ragtune_mcp.core.errors import DigestMismatch, IntegrityError
from ragtune_mcp.core.models.files import (
    digest_of,
    folder_digest,
    hash_every_file,
    hash_files,
    require_same,
    write_json,
)
from ragtune_mcp.core.workspace import manifest_path


def test_the_hashes_are_those_of_the_contents(tmp_path):
    files = hash_files(make_model(tmp_path, weights=b"abc"))
    assert files["model.safetensors"] == hashlib.sha256(b"abc").hexdigest()
    assert list(files) == sorted(files)


def test_a_foreign_folder_counts_only_what_decides_a_vector(tmp_path):
    plain = hash_files(make_model(tmp_path / "a"))
    crowded = make_model(
        tmp_path / "b",
        **{"README.md": "x", ".gitattributes": "x", "data_config.json": "[]", "onnx/model.json": "{}"},
    )
    (crowded / "pytorch_model.bin").write_bytes(b"pickle")
    assert hash_files(crowded) == plain


@pytest.mark.parametrize(
    "name", ["1_Pooling/config.json", "tokenizer.json", "model.safetensors", "config.json"]
)
def test_every_file_that_decides_a_vector_changes_the_digest(tmp_path, name):
    folder = make_model(tmp_path)
    before = folder_digest(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert folder_digest(folder) != before


def test_a_renamed_file_changes_the_digest():
    assert digest_of({"a": "1", "b": "2"}) != digest_of({"a": "2", "b": "1"})


def test_the_order_of_the_files_does_not_change_the_digest():
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"})


def test_a_folder_of_ours_counts_everything_but_its_manifest(tmp_path):
    folder = make_model(tmp_path, **{"README.md": "x", "eval/scores.csv": "1"})
    write_json(manifest_path(folder), {})
    assert {"README.md", "eval/scores.csv"} < hash_files(folder).keys()
    assert "ragtune.json" not in hash_files(folder)


def test_a_hub_snapshot_of_links_is_read_through_them(tmp_path):
    blobs = make_model(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    for path in sorted(blobs.rglob("*")):
        if path.is_file():
            link = snapshot / path.relative_to(blobs)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    assert hash_files(snapshot) == hash_files(blobs)


@pytest.mark.parametrize("target", ["/etc/hostname", "/etc", "model.safetensors", "gone"])
def test_a_link_in_a_folder_of_ours_is_refused(tmp_path, target):
    folder = make_model(tmp_path)
    (folder / "link.json").symlink_to(target)
    with pytest.raises(IntegrityError, match="link.json.*symbolic link"):
        hash_every_file(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "x.PKL", "modeling.py"])
def test_a_file_that_could_run_code_is_refused(tmp_path, name):
    folder = make_model(tmp_path, **{name: "x"})
    with pytest.raises(IntegrityError, match=name):
        hash_every_file(folder)


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = make_model(tmp_path)
    (folder / "model.safetensors").unlink()
    for read in (hash_files, hash_every_file):
        with pytest.raises(IntegrityError, match="no weights"):
            read(folder)


@pytest.mark.parametrize(
    ("present", "problem"),
    [
        ({"a": "1"}, "missing: b"),
        ({"a": "1", "b": "9"}, "changed: b"),
        ({"a": "1", "b": "2", "c": "3"}, "not recorded: c"),
    ],
)
def test_a_difference_is_named(present, problem):
    with pytest.raises(DigestMismatch, match=problem):
        require_same("v1", {"a": "1", "b": "2"}, present)


def test_equal_files_are_the_same():
    require_same("v1", {"a": "1"}, {"a": "1"})


def test_json_is_written_in_one_piece_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": "ü", "a": 1})
    write_json(path, {"b": "ö", "a": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1, "b": "ö"}
    assert list(tmp_path.iterdir()) == [path]
