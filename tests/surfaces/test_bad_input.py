"""Issue-wide promise: bad input names its value and the way out, and leaves nothing behind."""

import pytest
from mcp import Client

from ragtune_mcp.core.app import RagTune
from ragtune_mcp.core.experiment.serving import SearchService
from ragtune_mcp.core.retrieval.search import SearchHit
from ragtune_mcp.server import create_server

pytestmark = pytest.mark.anyio

BASE = "all-MiniLM-L6-v2"
BLOCKED = "feedback_v1_20260108_143022_0000"
SEARCHED = "the id of a search"
TOOLS = {
    "generate_training_data": {},
    "start_finetune": {"training_data_path": "training_data/none.csv"},
    "job_status": {"job_id": "ft_20260108_143022_0000"},
    "cancel_job": {"job_id": "ft_20260108_143022_0000"},
    "start_ab_test": {"baseline_model": "all-MiniLM-L6-v2", "test_model": "feedback_v1"},
    "ab_results": {"test_id": "ab_20260108_143022_0000"},
    "stop_ab_test": {"test_id": "ab_20260108_143022_0000", "reason": "x"},
    "search": {"query": "how"},
    "record_feedback": {"query_id": "q_none", "rating": 3},
    "index_documents": {},
    "list_models": {},
    "promote_model": {"version": "feedback_v1"},
    "rollback_model": {"version": "feedback_v1"},
    "export_model": {"version": "feedback_v1"},
}
# (tool, arguments, environment, code, what the message repeats)
CASES = [
    # wrong type
    ("generate_training_data", {"min_positive_samples": "many"}, {}, "invalid_input", "many"),
    ("generate_training_data", {"include_hard_negatives": "yes"}, {}, "invalid_input", "yes"),
    ("start_finetune", {"config": {"num_epochs": [4]}}, {}, "invalid_input", "[4]"),
    ("start_finetune", {"training_data_path": 5}, {}, "invalid_input", "5"),
    ("job_status", {"job_id": 17}, {}, "invalid_input", "17"),
    ("cancel_job", {"job_id": ["a"]}, {}, "invalid_input", '["a"]'),
    ("start_ab_test", {"traffic_split": "half"}, {}, "invalid_input", "half"),
    ("ab_results", {"test_id": 3}, {}, "invalid_input", "3"),
    ("stop_ab_test", {"test_id": True, "reason": "x"}, {}, "invalid_input", "true"),
    ("search", {"query": ["a"]}, {}, "invalid_input", '["a"]'),
    ("search", {"query": "a", "k": True}, {}, "invalid_input", "true"),
    ("record_feedback", {"query_id": "q", "document_ratings": ["a"]}, {}, "invalid_input", '["a"]'),
    ("index_documents", {"paths": "docs"}, {}, "invalid_input", "docs"),
    ("promote_model", {"version": "v", "confirm": "yes"}, {}, "invalid_input", "yes"),
    ("rollback_model", {"confirm": 1}, {}, "invalid_input", "confirm = 1"),
    ("export_model", {"version": 1.5}, {}, "invalid_input", "1.5"),
    # out of range
    ("generate_training_data", {"days_back": 0}, {}, "invalid_input", "days_back = 0"),
    ("generate_training_data", {"export_format": "xml"}, {}, "invalid_input", "xml"),
    ("start_finetune", {"dataset_id": "t", "model_name_suffix": "x" * 65}, {}, "invalid_input", "xxx"),
    ("start_finetune", {"dataset_id": "t", "model_name_suffix": "a/b"}, {}, "invalid_input", "a/b"),
    ("start_finetune", {"dataset_id": "t", "config": {"num_epochs": 0}}, {}, "invalid_input", "num_epochs"),
    ("start_finetune", {"dataset_id": "t", "config": {"epochs": 3}}, {}, "invalid_input", "epochs"),
    ("start_finetune", {"dataset_id": "t", "config": {"loss_function": "Nope"}}, {}, "invalid_input", "Nope"),
    ("job_status", {"job_id": "a", "wait_s": 31}, {}, "invalid_input", "31"),
    ("start_ab_test", {"traffic_split": 0}, {}, "invalid_input", "traffic_split = 0"),
    ("start_ab_test", {"traffic_split": 1}, {}, "invalid_input", "traffic_split = 1"),
    ("start_ab_test", {"traffic_split": 1.5}, {}, "invalid_input", "1.5"),
    ("start_ab_test", {"duration_hours": 0}, {}, "invalid_input", "duration_hours = 0"),
    ("start_ab_test", {"duration_hours": -1}, {}, "invalid_input", "-1"),
    ("start_ab_test", {"mode": "both"}, {}, "invalid_input", "both"),
    ("start_ab_test", {"metrics": ["clicks"]}, {}, "invalid_input", "clicks"),
    ("search", {"query": "a", "k": 0}, {}, "invalid_input", "k = 0"),
    ("record_feedback", {"query_id": "q", "rating": 6}, {}, "invalid_input", "rating = 6"),
    (
        "record_feedback",
        {"query_id": "q", "document_ratings": {"d": 0}},
        {},
        "invalid_input",
        "document_ratings.d = 0",
    ),
    ("index_documents", {"source": "web"}, {}, "invalid_input", "web"),
    ("export_model", {"version": "v", "format": "tf"}, {}, "invalid_input", "tf"),
    # unknown argument
    *(
        (name, {**arguments, "surplus": 1}, {}, "invalid_input", "surplus = 1")
        for name, arguments in TOOLS.items()
    ),
    # unknown id
    ("start_finetune", {"dataset_id": "training_none"}, {}, "unknown_dataset", "training_none"),
    ("job_status", TOOLS["job_status"], {}, "unknown_job", "ft_20260108_143022_0000"),
    ("cancel_job", TOOLS["cancel_job"], {}, "unknown_job", "ft_20260108_143022_0000"),
    ("start_ab_test", {"test_model": "none"}, {}, "unknown_version", "none"),
    ("ab_results", TOOLS["ab_results"], {}, "unknown_test", "ab_20260108_143022_0000"),
    ("stop_ab_test", TOOLS["stop_ab_test"], {}, "unknown_test", "ab_20260108_143022_0000"),
    ("record_feedback", TOOLS["record_feedback"], {}, "unknown_query", "q_none"),
    ("promote_model", {"version": "none"}, {}, "unknown_version", "none"),
    ("rollback_model", {"version": "none"}, {}, "unknown_version", "none"),
    ("export_model", {"version": "none"}, {}, "unknown_version", "none"),
    # missing file, path outside the workspace
    (
        "start_finetune",
        {"training_data_path": "training_data/none.csv"},
        {},
        "invalid_input",
        "training_data/none.csv",
    ),
    (
        "start_finetune",
        {"training_data_path": "../../etc/passwd"},
        {},
        "path_outside_workspace",
        "../../etc/passwd",
    ),
    ("start_finetune", {"training_data_path": "/etc/passwd"}, {}, "path_outside_workspace", "/etc/passwd"),
    ("start_ab_test", {"test_model": "../elsewhere"}, {}, "path_outside_workspace", "../elsewhere"),
    ("index_documents", {"paths": ["../**"]}, {}, "path_outside_workspace", "../**"),
    ("index_documents", {"paths": ["/etc/*"]}, {}, "path_outside_workspace", "/etc/*"),
    ("index_documents", {"paths": ["none/*.md"]}, {}, "invalid_input", "none/*.md"),
    ("promote_model", {"version": "../elsewhere"}, {}, "path_outside_workspace", "../elsewhere"),
    ("rollback_model", {"version": "/tmp"}, {}, "path_outside_workspace", "/tmp"),
    ("export_model", {"version": "../elsewhere"}, {}, "path_outside_workspace", "../elsewhere"),
    # empty
    ("search", {"query": ""}, {}, "invalid_input", '""'),
    ("search", {"query": "  "}, {}, "invalid_input", "query"),
    ("stop_ab_test", {"test_id": "ab", "reason": ""}, {}, "invalid_input", "reason"),
    ("start_finetune", {}, {}, "invalid_input", "training_data_path"),
    ("record_feedback", {"query_id": SEARCHED}, {}, "invalid_input", "feedback"),
    # does not fit what is there
    (
        "record_feedback",
        {"query_id": SEARCHED, "document_ratings": {"other": 3}},
        {},
        "invalid_input",
        "other",
    ),
    ("start_ab_test", {"test_model": BASE}, {}, "invalid_input", BASE),
    (
        "start_ab_test",
        {"baseline_model": BLOCKED, "test_model": BLOCKED, "force": True, "reason": "x"},
        {},
        "invalid_input",
        BLOCKED,
    ),
    ("start_ab_test", {"test_model": BLOCKED}, {}, "gate_blocked", BLOCKED),
    ("start_ab_test", {"test_model": BLOCKED, "force": True}, {}, "invalid_input", "force"),
    ("start_ab_test", {}, {}, "invalid_input", "test_model"),
    ("promote_model", {"version": BASE}, {}, "conflict", BASE),
    ("promote_model", {"version": BLOCKED, "confirm": True}, {}, "gate_blocked", BLOCKED),
    ("rollback_model", {"confirm": True}, {}, "conflict", "earlier champion"),
    # fewer samples than the minimum
    ("generate_training_data", {}, {}, "not_enough_data", "0"),
    (
        "generate_training_data",
        {"min_positive_samples": 1, "min_negative_samples": 0},
        {},
        "not_enough_data",
        "0",
    ),
    # feature switched off
    (
        "start_finetune",
        TOOLS["start_finetune"],
        {"FINETUNING_ENABLED": "false"},
        "feature_disabled",
        "FINETUNING_ENABLED",
    ),
    (
        "start_ab_test",
        TOOLS["start_ab_test"],
        {"AB_TESTING_ENABLED": "false"},
        "feature_disabled",
        "AB_TESTING_ENABLED",
    ),
]


# The same in a workspace where nothing has been done yet.
EMPTY_CASES = [
    ("search", {"query": "how"}, "not_ready", "indexed"),
    ("rollback_model", {}, "not_ready", "indexed"),
    ("start_ab_test", {}, "not_ready", "indexed"),
    ("promote_model", {"version": "v"}, "unknown_version", "v"),
    ("ab_results", {}, "unknown_test", "test"),
]


def snapshot(core: RagTune) -> tuple[set[str], dict[str, int]]:
    """Every file of the workspace except SQLite's journals and locks, and the number of rows of every table."""
    root = core.workspace.root
    passing = (".db-wal", ".db-shm", ".lock")
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix not in passing}
    tables = [
        row[0] for row in core.db.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    rows = {
        table: core.db.connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for table in tables
    }
    return files, rows


def prepare(core: RagTune) -> str:
    """A serving base model, a version that its gate blocked, and one answered search; returns its id."""
    for folder in ("base", "fine_tuned_models/blocked"):
        path = core.workspace.root / folder
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(folder.encode())
    core.registry.register_base(BASE, core.workspace.root / "base")
    core.registry.set_alias("champion", BASE, actor="test", reason="first")
    core.registry.register(
        BLOCKED,
        core.workspace.root / "fine_tuned_models/blocked",
        base_model=BASE,
        gate={"verdict": "block", "reasons": ["worse by 0.1"], "details": {}},
    )
    hit = SearchHit("a.md", "text", "a.md", 1, 0.5)
    return SearchService(core.db, core.trials, lambda *_: [hit], core.champion).search("how", 1).query_id


class NoFeedback:
    """Stands for a ConPort without feedback; the real one is used in tests/real."""

    def get_custom_data(self, *args, **kwargs):
        return []

    def custom_data_stamps(self, category):
        return None

    def close(self):
        pass


@pytest.fixture
def core(tmp_path, monkeypatch, request):
    for name, value in getattr(request, "param", {}).items():
        monkeypatch.setenv(name, value)
    core = RagTune.open(tmp_path)
    core.__dict__["conport"] = NoFeedback()
    yield core
    core.close()


async def refusal(core: RagTune, tool: str, arguments: dict) -> str:
    """The error text of a call, which must have left no trace."""
    before = snapshot(core)
    async with Client(create_server(core=core)[0], mode="legacy") as session:
        answer = await session.call_tool(tool, arguments)
    assert answer.is_error
    assert snapshot(core) == before
    return answer.content[0].text


@pytest.mark.parametrize(
    ("tool", "arguments", "core", "code", "repeated"),
    CASES,
    ids=[f"{number}-{tool}-{code}" for number, (tool, _, _, code, _) in enumerate(CASES)],
    indirect=["core"],
)
async def test_bad_input_names_value_and_way_out_and_leaves_nothing(core, tool, arguments, code, repeated):
    searched = prepare(core)
    if arguments.get("query_id") == SEARCHED:
        arguments = {**arguments, "query_id": searched}
    text = await refusal(core, tool, arguments)
    assert text.startswith(f"[{code}] ")
    message, hint = text.split(" Hint: ", 1)
    assert repeated in message
    assert hint.strip()


@pytest.mark.parametrize(("tool", "arguments", "code", "repeated"), EMPTY_CASES)
async def test_an_empty_workspace_says_what_comes_first(core, tool, arguments, code, repeated):
    text = await refusal(core, tool, arguments)
    assert text.startswith(f"[{code}] ")
    assert repeated in text.split(" Hint: ", 1)[0]


async def test_a_second_test_is_refused_by_the_name_of_the_first(core):
    prepare(core)
    register(core, "two")
    running = core.trials.start(BASE, "two")
    text = await refusal(core, "start_ab_test", {"test_model": "two"})
    assert text.startswith("[test_running] ")
    message, hint = text.split(" Hint: ", 1)
    assert running.test_id in message
    assert "stop_ab_test" in hint


async def test_a_version_whose_files_changed_is_not_tested(core):
    prepare(core)
    folder = register(core, "changed")
    (folder / "model.safetensors").write_bytes(b"something else")
    text = await refusal(core, "start_ab_test", {"test_model": "changed"})
    assert text.startswith("[digest_mismatch] ")
    assert "model.safetensors" in text
    assert " Hint: " in text


async def test_a_version_without_an_index_is_not_tested_before_its_job_is_done(core):
    prepare(core)
    register(core, "fresh")
    async with Client(create_server(core=core)[0], mode="legacy") as session:
        answer = await session.call_tool("start_ab_test", {"test_model": "fresh"})
    assert answer.is_error
    text = answer.content[0].text
    assert text.startswith("[not_ready] ")
    (job,) = core.jobs.unfinished()
    assert job.job_id in text
    assert core.trials.active() is None


def register(core: RagTune, version: str):
    """A version that its gate passed; returns its folder."""
    folder = core.workspace.root / "fine_tuned_models" / version
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(version.encode())
    core.registry.register(version, folder, base_model=BASE, gate={"verdict": "pass"})
    return folder


def test_every_tool_has_bad_input_cases():
    assert {case[0] for case in CASES} == set(TOOLS)
