import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ragtune_mcp.core.errors import InvalidInput, PathOutsideWorkspace
from ragtune_mcp.core.retrieval.files import scan_files
from ragtune_mcp.core.retrieval.walk import match_files


def found(workspace, *patterns, known=frozenset()):
    return [match.path for match in match_files(workspace, patterns, known).files]


def origins(scan):
    return sorted({document.origin for document in scan.documents})


def test_a_pattern_means_files_from_the_root_of_the_workspace(workspace, write):
    write(
        {"README.md": "a", "docs/a.md": "a", "docs/deep/b.md": "b", "docs/c.txt": "c", "src/README.md": "x"}
    )
    assert found(workspace, "README.md") == ["README.md"]
    assert found(workspace, "docs/**/*.md") == ["docs/a.md", "docs/deep/b.md"]
    assert found(workspace, "docs") == ["docs/a.md", "docs/c.txt", "docs/deep/b.md"]
    assert found(workspace, "docs", "!docs/deep") == ["docs/a.md", "docs/c.txt"]
    assert found(workspace, "*.md") == ["README.md"]
    assert len(found(workspace)) == 5


def test_an_absolute_path_inside_the_workspace_is_the_same_file(workspace, write):
    write({"docs/a.md": "a"})
    assert found(workspace, str(workspace.root / "docs")) == ["docs/a.md"]
    assert found(workspace, str(workspace.root / "docs" / "*.md")) == ["docs/a.md"]


@pytest.mark.parametrize("pattern", ["../x", "/etc/passwd", "docs/../../x", "docs/*/../../../x", "/etc/*"])
def test_a_pattern_that_leaves_the_workspace_is_refused(workspace, write, pattern):
    write({"docs/a.md": "a"})
    with pytest.raises(PathOutsideWorkspace, match="outside"):
        found(workspace, pattern)


@pytest.mark.parametrize("pattern", ["nothing.md", "docs/*.rst", "no/such/folder", "", "a\0b"])
def test_a_pattern_that_matches_nothing_is_refused(workspace, write, pattern):
    write({"docs/a.md": "a"})
    with pytest.raises(InvalidInput):
        found(workspace, "docs", pattern)


def test_an_empty_workspace_has_no_files_and_that_is_no_error(workspace):
    assert found(workspace) == []


def test_a_pattern_may_match_a_file_that_was_indexed_and_deleted(workspace, write):
    write({"docs/a.md": "# A\n\na"})
    scan = scan_files(workspace, ["gone.md"], frozenset({"gone.md"}))
    assert scan.documents == ()
    assert scan.replaces == {"gone.md"}


def test_gitignore_is_respected_with_the_deepest_rule_deciding(workspace, write):
    write(
        {
            ".gitignore": "build/\n*.log.md\n/only-root.md\n",
            "build/a.md": "x",
            "sub/build/a.md": "x",
            "a.log.md": "x",
            "only-root.md": "x",
            "sub/only-root.md": "x",
            "sub/.gitignore": "!keep.log.md\nprivate.md\n",
            "sub/keep.log.md": "x",
            "sub/private.md": "x",
        }
    )
    assert found(workspace, "**/*.md") == ["sub/keep.log.md", "sub/only-root.md"]
    assert match_files(workspace, [], frozenset()).ignored >= {"a.log.md", "only-root.md", "sub/private.md"}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_same_files_are_ignored_as_by_git(workspace, write):
    write(
        {
            ".gitignore": "# comment\n*.tmp\n!important.tmp\n/top/\ndocs/*.txt\n**/cache\na/**/z.md\n"
            "foo[12].md\ndata/**/*\n!data/**/\n!data/**/*.md\n",
            "docs/.gitignore": "*\n!*.md\n!.gitignore\n!keep/\n",
            "deep/er/.gitignore": "/x.md\n!/cache/\n",
        }
    )
    names = "x.md y.tmp important.tmp b.txt foo1.md foo3.md z.md cache/q.md".split()
    folders = [
        "",
        "top/",
        "sub/top/",
        "docs/",
        "docs/keep/",
        "docs/lost/",
        "a/",
        "a/b/c/",
        "deep/er/",
        "data/in/",
    ]
    write({f"{folder}{name}": "x" for folder in folders for name in names})
    subprocess.run(["git", "init", "-q", str(workspace.root)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(workspace.root), "ls-files", "-co", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert found(workspace) == sorted(listed.split("\n")[:-1])


def test_rules_of_the_repository_above_the_workspace_apply(tmp_path, write):
    from ragtune_mcp.core.settings import Settings
    from ragtune_mcp.core.workspace import Workspace

    write({"repo/.git/info/exclude": "secret-plan.md\n", "repo/.gitignore": "/pkg/out/\n"})
    write({"repo/pkg/out/a.md": "x", "repo/pkg/b.md": "x", "repo/pkg/secret-plan.md": "x"})
    inner = Workspace(tmp_path / "repo" / "pkg", Settings.load(tmp_path))
    assert found(inner) == ["b.md"]


def test_rules_above_do_not_apply_outside_a_repository(tmp_path, write):
    from ragtune_mcp.core.settings import Settings
    from ragtune_mcp.core.workspace import Workspace

    write({".gitignore": "*.md\n", "project/a.md": "x"})
    assert found(Workspace(tmp_path / "project", Settings.load(tmp_path))) == ["a.md"]


def test_an_ignored_file_that_is_named_itself_is_read(workspace, write):
    write({".gitignore": "notes.md\n", "notes.md": "x", "other.md": "x"})
    assert found(workspace, "*.md") == ["other.md"]
    assert found(workspace, "notes.md") == ["notes.md"]


def test_folders_of_tools_and_our_own_are_never_read(workspace, write):
    write(
        {
            f"{folder}/a.md": "x"
            for folder in (
                ".git",
                ".ragtune",
                "node_modules",
                "venv",
                "fine_tuned_models/v",
                "training_data",
                "a/.venv",
            )
        }
    )
    write({"custom-env/pyvenv.cfg": "", "custom-env/a.md": "x", "ok.md": "x"})
    assert found(workspace) == ["ok.md"]
    assert match_files(workspace, [".ragtune/a.md"], frozenset()).files == ()


def test_what_is_not_used_is_counted_by_reason(workspace, write):
    write(
        {
            ".gitignore": "ignored.md\n",
            "ignored.md": "x",
            ".env": "KEY=1",
            "deploy/prod.pem": "x",
            "id_rsa": "x",
            "keys.md": "# Keys\n\n-----BEGIN RSA PRIVATE KEY-----\nabc\n",
            "image.png": b"\x89PNG\0",
            "broken.pdf": b"%PDF-1.4\0",
            "binary.md": b"a\0b",
            "latin.md": "caf\xe9".encode("latin-1"),
            "empty.md": "\n\n",
            "huge.md": "x" * (2 * 1024 * 1024 + 1),
            "min.js": "x" * 6000,
            "rows.jsonl": '{"a": 1}\n',
            "ok.md": "# A\n\ntext",
        }
    )
    scan = scan_files(workspace, [], frozenset())
    assert origins(scan) == ["ok.md"]
    assert scan.skipped == {
        "ignored": 1,
        "secret": 4,
        "unsupported_type": 2,
        "binary": 1,
        "not_utf8": 1,
        "empty": 1,
        "too_large": 1,
        "generated": 1,
        "not_a_corpus": 1,
        "not_convertible" if find_spec("markitdown") else "converter_missing": 1,
    }


KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", f'KEY = """-----BEGIN RSA PRIVATE KEY-----\n{KEY}\n"""\n'),
        ("a.js", f'const key = "-----BEGIN PRIVATE KEY-----\\n{KEY}\\n";\n'),
        ("a.js", f"const key = '-----BEGIN PRIVATE KEY-----\\n' +\n  '{KEY}\\n';\n"),
        ("a.jsonl", f'{{"_id": "a", "text": "-----BEGIN EC PRIVATE KEY-----\\r\\n{KEY}"}}\n'),
        ("a.md", f"# A\n\n    -----BEGIN RSA PRIVATE KEY-----\n    {KEY}\n"),
        (
            "a.md",
            f"# A\n\n> -----BEGIN PGP PRIVATE KEY BLOCK-----\n> Version: GnuPG v2 (Linux)\n>\n> {KEY}\n",
        ),
    ],
)
def test_a_private_key_is_found_wherever_it_stands_in_its_line(workspace, write, name, text):
    write({name: text})
    scan = scan_files(workspace, [], frozenset())
    assert (scan.documents, scan.skipped) == ((), {"secret": 1})


@pytest.mark.parametrize(
    "text",
    [
        "A key begins with `-----BEGIN RSA PRIVATE KEY-----`, characteristically.",
        "    -----BEGIN PRIVATE KEY-----\n    (base64)\n    -----END PRIVATE KEY-----",
        'begin = "-----BEGIN PRIVATE KEY-----"\nendOfThePrivateKey = "-----END PRIVATE KEY-----"',
        f"`-----BEGIN PUBLIC KEY-----`\n\n    {KEY}",
    ],
)
def test_a_page_that_only_speaks_of_private_keys_is_read(workspace, write, text):
    write({"a.md": f"# A\n\nText.\n\n{text}\n"})
    assert scan_files(workspace, [], frozenset()).skipped == {}


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_a_file_whose_name_is_not_utf8_is_counted_and_the_others_are_read(workspace, write, documents):
    write(
        {"ok.md": "# A\n\nx", os.fsdecode(b"caf\xe9.md"): "# B\n\ny", os.fsdecode(b"d\xe9/c.md"): "# C\n\nz"}
    )
    os.symlink(workspace.root / os.fsdecode(b"caf\xe9.md"), workspace.root / "link.md")
    scan = scan_files(workspace, [], frozenset())
    documents.apply(documents.plan(scan))
    assert documents.origins("files") == {"ok.md"}
    assert scan.skipped == {"not_utf8": 3}


def test_a_link_that_leaves_the_workspace_is_skipped(workspace, write, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.md"
    outside.write_text("# Secret\n\nx")
    os.symlink(outside, workspace.root / "a.md")
    os.symlink(outside.parent, workspace.root / "folder")
    scan = scan_files(workspace, [], frozenset())
    assert scan.documents == ()
    assert scan.skipped == {"outside_workspace": 1}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (".env", "secret"),
        ("deploy/prod.pem", "secret"),
        (".git/config.md", "ignored"),
        ("training_data/a.md", "ignored"),
    ],
)
def test_a_link_to_what_is_never_read_is_not_read_under_its_own_name_either(workspace, write, target, reason):
    write({target: "PASSWORD=hunter2"})
    os.symlink(workspace.root / target, workspace.root / "notes.md")
    os.symlink("notes.md", workspace.root / "again.md")
    scan = scan_files(workspace, ["notes.md", "again.md"], frozenset({"notes.md"}))
    assert scan.documents == ()
    assert scan.skipped == {reason: 2}
    assert "notes.md" in scan.replaces


def test_a_link_to_a_plain_file_of_the_workspace_is_read(workspace, write):
    write({"docs/a.md": "# A\n\nx"})
    os.symlink(workspace.root / "docs" / "a.md", workspace.root / "b.md")
    assert origins(scan_files(workspace, ["b.md"], frozenset())) == ["b.md"]


@pytest.mark.parametrize("paths", [[], ["old", "ok.md"], ["**/*.md"]])
@pytest.mark.parametrize("how", ["ignored", "environment", "own"])
def test_files_of_a_folder_excluded_since_are_taken_out(workspace, write, how, paths):
    write({"old/deep/a.md": "# A\n\nx", "old/b.md": "# B\n\ny", "ok.md": "# C\n\nz"})
    known = frozenset(origins(scan_files(workspace, paths, frozenset())))
    assert known == {"old/deep/a.md", "old/b.md", "ok.md"}
    if how == "ignored":
        write({".gitignore": "old/\n"})
    elif how == "environment":
        write({"old/pyvenv.cfg": ""})
    else:
        workspace.settings.training_data_path = "./old"
    scan = scan_files(workspace, paths, known)
    assert scan.replaces >= known
    if how == "environment" and "old" in paths:
        assert origins(scan) == sorted(known)  # a folder that is named is entered
    else:
        assert origins(scan) == ["ok.md"]
        assert scan.skipped["ignored"] == 2


def test_what_the_patterns_do_not_mean_stays(workspace, write):
    write({"old/a.md": "# A\n\nx", "docs/b.md": "# B\n\ny", ".gitignore": "old/\n"})
    known = frozenset({"old/a.md", "docs/b.md"})
    assert scan_files(workspace, ["docs"], known).replaces == {"docs/b.md"}
    assert scan_files(workspace, ["**/*.md", "!old"], known).replaces == {"docs/b.md"}
    assert scan_files(workspace, ["old/a.md"], known).replaces == {"old/a.md"}
    assert origins(scan_files(workspace, ["old/a.md"], known)) == ["old/a.md"]


def test_a_file_of_unknown_kind_is_read_as_text_when_it_is_named(workspace, write):
    write({"LICENSE": "Do what you like.", "a.md": "# A\n\nx"})
    assert origins(scan_files(workspace, [], frozenset())) == ["a.md"]
    assert origins(scan_files(workspace, ["LICENSE"], frozenset())) == ["LICENSE"]


def test_every_kind_of_file_is_cut_by_its_own_rules(workspace, write):
    write(
        {
            "a.md": "# One\n\nx\n\n## Two\n\ny",
            "b.rst": "One\n===\n\nx\n",
            "c.py": "def f():\n    return 1\n",
            "d.txt": "plain words",
            "e.jsonl": json.dumps({"_id": "d1", "title": "T", "text": "body"}) + "\n",
        }
    )
    ids = [d.doc_id for d in scan_files(workspace, [], frozenset()).documents]
    assert ids == ["a.md#one", "a.md#two", "b.rst#one", "c.py#f", "d.txt", "d1"]


def test_a_corpus_line_is_one_document_however_long(workspace, write):
    text = "word " * 2000
    rows = [
        {"_id": "a#b c", "title": "T", "text": text},
        {"_id": 7, "text": "only\u0085text"},
        {"_id": "e", "text": ""},
    ]
    write({"corpus.jsonl": "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n"})
    one, two = scan_files(workspace, [], frozenset()).documents
    assert (one.doc_id, one.title, one.text) == ("a#b c", "T", f"T {text}".strip())
    assert (two.doc_id, two.text) == ("7", "only\u0085text")


def test_broken_surrogates_and_nul_bytes_become_storable(workspace, write):
    write({"corpus.jsonl": '{"_id": "a", "text": "x \\ud800 y \\u0000 z"}\n'})
    (document,) = scan_files(workspace, [], frozenset()).documents
    assert document.text == "x ? y  z"
    document.text.encode()


def test_windows_newlines_and_byte_order_marks_do_not_change_a_document(workspace, write):
    write(
        {
            "a.md": "# A\n\none\ntwo\n",
            "b.md": b"\xef\xbb\xbf# A\r\n\r\none\r\ntwo\r\n",
            "c.md": "# A\n\none\ntwo\n".encode("utf-16"),
        }
    )
    texts = {d.text for d in scan_files(workspace, [], frozenset()).documents}
    assert texts == {"A\n\none\ntwo"}


def test_a_file_that_cannot_be_read_now_keeps_its_documents(workspace, write, monkeypatch):
    write({"a.md": "# A\n\nx", "b.md": "# B\n\ny"})
    original = Path.read_bytes

    def broken(path):
        if path.name == "a.md":
            raise PermissionError(13, "denied")
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    scan = scan_files(workspace, [], frozenset({"a.md", "b.md"}))
    assert scan.skipped == {"unreadable": 1}
    assert scan.replaces == {"b.md"}


def test_other_formats_are_converted_and_cut_like_markdown(workspace, write):
    pytest.importorskip("markitdown", reason="the extra `convert` is not installed")
    write(
        {"page.html": "<html><body><h1>Guide</h1><p>Intro.</p><h2>Setup</h2><p>Install it.</p></body></html>"}
    )
    found = {d.doc_id: d.text for d in scan_files(workspace, [], frozenset()).documents}
    assert found == {"page.html#guide": "Guide\n\nIntro.", "page.html#setup": "Guide > Setup\n\nInstall it."}
