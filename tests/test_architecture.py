"""The house's dependency rules, read from the source: stages import in the order the data flows."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "ragtune_mcp"
FLOW = ("feedback", "dataset", "finetune", "models", "retrieval", "experiment")
FOUNDATION = ("clock", "errors", "settings", "workspace", "database", "results", "jobs")
ABOVE = ("parts", "verbs", "pipeline", "factories", "app")
SURFACES = ("surface", "server", "http", "cli", "__main__")
# Who may import a library at all, and whether only inside functions.
LIBRARIES = {
    "mcp.server": (SURFACES, False),
    "typer": (("surface",), False),
    "rich": (("surface",), False),
    "starlette": (("http",), False),
    "uvicorn": (("http",), True),
    "torch": (("finetune", "models"), True),
    "transformers": (("finetune", "models"), True),
    "sentence_transformers": (("finetune", "models"), True),
    "onnxruntime": (("models",), True),
    "chromadb": (("retrieval",), True),
    "ray": (("jobs",), True),
}
MODULES = sorted(SRC.rglob("*.py"))


def _place(path: Path) -> str:
    """The stage, foundation module or surface a file belongs to."""
    parts = path.relative_to(SRC).with_suffix("").parts
    if parts == ("__init__",):
        return "package"
    if parts == ("core", "__init__"):
        return "core"
    return parts[1] if parts[0] == "core" else parts[0]


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(name, at the top level) of every import done at run time; `from a import b` gives a and a.b."""
    found = []

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.append((child.module or "", top))
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            visit(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def _own(path: Path) -> set[str]:
    """The places of the project a file imports at run time."""
    found = set()
    for name, _ in _imports(path):
        parts = name.split(".")
        if parts[0] == "ragtune_mcp" and len(parts) > 1:
            found.add(parts[2] if parts[1] == "core" and len(parts) > 2 else parts[1])
    return found - {"core", "__version__", _place(path)}


def _relative(path: Path) -> str:
    return str(path.relative_to(SRC))


@pytest.mark.parametrize("path", [each for each in MODULES if _place(each) in FLOW], ids=_relative)
def test_a_stage_imports_only_earlier_stages_and_the_foundation(path):
    earlier = FLOW[: FLOW.index(_place(path))]
    assert _own(path) <= {*FOUNDATION, *earlier}


@pytest.mark.parametrize("path", [each for each in MODULES if _place(each) in FOUNDATION], ids=_relative)
def test_the_foundation_imports_no_stage(path):
    assert _own(path) <= set(FOUNDATION)


@pytest.mark.parametrize("path", [each for each in MODULES if _place(each) in ABOVE], ids=_relative)
def test_the_core_knows_no_surface(path):
    assert not _own(path) & {*SURFACES, "worker"}


@pytest.mark.parametrize("path", [each for each in MODULES if _place(each) in SURFACES], ids=_relative)
def test_surfaces_reach_the_core_only_through_the_app_and_its_vocabulary(path):
    allowed = {"app", "errors", "results", "settings", *SURFACES}
    assert _own(path) <= allowed


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library):
    places, only_inside = LIBRARIES[library]
    wrong = []
    for path in MODULES:
        for name, top in _imports(path):
            if name == library or name.startswith(f"{library}."):
                if _place(path) not in places or (top and only_inside):
                    wrong.append(f"{_relative(path)}: {name}")
    assert wrong == []


def test_every_module_has_a_place():
    known = {*FLOW, *FOUNDATION, *ABOVE, *SURFACES, "package", "core", "worker"}
    assert {_place(path) for path in MODULES} <= known


def test_no_file_is_too_long_to_read():
    long = {
        _relative(path): n
        for path in MODULES
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}


def test_only_the_workspace_spells_the_names_of_state_files():
    names = {
        ".ragtune",
        "ragtune.db",
        "chroma.json",
        "chroma.lock",
        "context.db",
        "worker.log",
        "checkpoints",
    }
    wrong = [
        f"{_relative(path)}:{node.lineno}"
        for path in MODULES
        if path.name != "workspace.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if names & set(node.value.split("/"))
    ]
    assert wrong == []
