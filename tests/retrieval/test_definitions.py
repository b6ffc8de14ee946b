import textwrap

import pytest

from ragtune_mcp.core.retrieval.definitions import SUFFIXES, code_sections


def names(text, suffix):
    return [s.anchor for s in code_sections(textwrap.dedent(text), "f", suffix) if s.body.strip()]


def body(text, suffix, anchor):
    return next(s.body for s in code_sections(textwrap.dedent(text), "f", suffix) if s.anchor == anchor)


PYTHON = '''
    """Module."""
    import os

    # The answer.
    @cache
    def answer():
        return 42

    LIMIT = 3

    class Small:
        def run(self): ...

    async def later(): ...
'''


def test_python_is_cut_at_definitions_with_decorators_and_comments():
    assert names(PYTHON, ".py") == ["", "answer", "Small", "later"]
    assert body(PYTHON, ".py", "answer").startswith("# The answer.\n@cache\ndef answer")


def test_python_module_code_between_definitions_is_in_the_first_section():
    assert "LIMIT = 3" in body(PYTHON, ".py", "")
    assert "import os" in body(PYTHON, ".py", "")
    assert "LIMIT" not in body(PYTHON, ".py", "answer")


def test_a_long_python_class_is_cut_at_its_methods():
    filler = "\n".join(f"            x{i} = {i}" for i in range(90))
    text = f"""
    class Big:
        limit = 1

        def one(self):
{filler}

        @property
        def two(self):
            return 2
    """
    assert names(text, ".py") == ["Big", "Big.one", "Big.two"]
    assert "limit = 1" in body(text, ".py", "Big")
    assert body(text, ".py", "Big.two").startswith("@property\ndef two")


def test_python_of_another_version_is_still_cut_at_its_definitions():
    assert names("print 'x'\n\ndef old():\n    pass\n\nclass Older:\n    pass\n", ".py") == [
        "",
        "old",
        "Older",
    ]


CASES = {
    ".ts": (
        "import x\n\nexport default async function load(a: string) {\n}\n\nexport class Store<T> {\n}\n\n"
        "export const pick = (a: number) => a\n\ninterface Shape {}\n\nconst limit = 3\n",
        ["", "load", "Store", "pick", "Shape"],
    ),
    ".go": (
        "package a\n\n// Run runs.\nfunc (s *Server) Run(x int) error {\n}\n\nfunc main() {\n}\n\n"
        "type Server struct {\n}\n",
        ["", "Server.Run", "main", "Server"],
    ),
    ".rs": (
        "use a;\n\npub(crate) async fn go() {\n}\n\n#[derive(Debug)]\npub struct S {\n}\n\n"
        "impl<T> Show for S<T> {\n}\n",
        ["", "go", "S", "Show-for-S-T"],
    ),
    ".java": (
        "package a;\n\n/** Doc. */\npublic final class A extends B {\n}\n\nenum C { X }\n",
        ["", "A", "C"],
    ),
    ".cs": (
        "using X;\n\nnamespace A;\n\npublic record Point(int X);\n\ninternal static class Ext\n{\n}\n",
        ["", "A", "Point", "Ext"],
    ),
    ".c": (
        "#include <a.h>\n\nstruct node {\n};\n\nstatic int find(struct node *n, int k)\n{\n}\n\n"
        "int call(void);\n",
        ["", "node", "find"],
    ),
    ".cpp": ("namespace a {\n}\n\nvoid Widget::draw(const Canvas& c) {\n}\n", ["a", "Widget::draw"]),
    ".rb": ("require 'x'\n\nclass A\nend\n\ndef self.b!\nend\n", ["", "A", "self.b"]),
    ".sh": ("set -e\n\nbuild() {\n  true\n}\n\nfunction clean {\n}\n", ["", "build", "clean"]),
    ".lua": ("local x = 1\n\nfunction M.go(a)\nend\n", ["", "M.go"]),
    ".sql": (
        "create table if not exists users (\n id int);\n\nCREATE OR REPLACE VIEW v AS SELECT 1;\n",
        ["users", "v"],
    ),
    ".php": ("<?php\n\nfinal class A {\n}\n\nfunction b() {\n}\n", ["", "A", "b"]),
    ".kt": ("package a\n\ndata class A(val x: Int)\n\nsuspend fun b() = 1\n", ["", "A", "b"]),
    ".swift": ("import X\n\npublic struct A {\n}\n\nfunc b() {\n}\n", ["", "A", "b"]),
}


@pytest.mark.parametrize("suffix", CASES)
def test_definitions_of_other_languages_are_found(suffix):
    text, expected = CASES[suffix]
    assert suffix in SUFFIXES
    assert names(text, suffix) == expected


def test_comments_above_a_definition_belong_to_it():
    text = "package a\n\n// Run runs\n// until stopped.\nfunc Run() {\n}\n"
    assert body(text, ".go", "Run").startswith("// Run runs\n// until stopped.\nfunc Run")


def test_a_long_class_of_another_language_is_cut_at_its_members():
    filler = "\n".join(f"    total += {i};" for i in range(120))
    text = f"class A {{\n  start(a) {{\n    if (a) {{\n    }}\n{filler}\n  }}\n\n  get size() {{\n  }}\n}}\n"
    assert names(text, ".js") == ["A", "A.start", "A.size"]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_no_line_of_code_is_lost(suffix):
    text = "first line here\n\nclass Thing {\n  one line\n}\n\nlast line there\n"
    joined = "\n".join(s.body for s in code_sections(text, "f", suffix))
    assert sorted(joined.split()) == sorted(text.split())
