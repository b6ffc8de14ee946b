import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ragtune_mcp import cli
from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.core.results import ErrorInfo, JobStatusResult, SearchResults
from ragtune_mcp.surface import commands
from ragtune_mcp.surface.commands import shell

COMMANDS = {
    "search": ["how to install"],
    "record-feedback": ["q_1", "--rating", "5", "--document", "a.md#b=4", "--helpful", "a.md#b"],
    "index": ["docs/**", "--source", "files"],
    "generate-training-data": [
        "--min-positive",
        "3",
        "--no-hard-negatives",
        "--synthetic",
        "--format",
        "jsonl",
    ],
    "start-finetune": ["training_20260108", "--config", "num_epochs=2", "--config", "loss_function=auto"],
    "distill": ["m", "--layers", "2"],
    "job-status": ["ft_1"],
    "cancel-job": ["ft_1"],
    "start-ab-test": ["--test", "m", "--split", "0.2", "--hours", "1"],
    "ab-results": [],
    "set-ab-split": ["ab_1", "0.2"],
    "stop-ab-test": ["ab_1", "--reason", "enough"],
    "list-models": [],
    "promote": ["m", "--yes"],
    "rollback": ["--yes"],
    "export": ["m", "--format", "onnx"],
    "status": [],
    "import-feedback": ["ratings.jsonl"],
    "explain": ["ft_1"],
    "flush": [],
    "stop-store": [],
    "conport-reindex": ["--yes"],
}


@pytest.fixture
def run(core, monkeypatch):
    """Runs a command against the fake core; `opened` is the workspace it was given."""
    core.opened = []
    app = SimpleNamespace(
        RagTune=SimpleNamespace(open=lambda workspace: core.opened.append(workspace) or core)
    )
    monkeypatch.setitem(sys.modules, "ragtune_mcp.core.app", app)
    monkeypatch.setattr(shell, "_POLL_S", 0.0)

    def run(*arguments, **kwargs):
        return CliRunner().invoke(commands.app, [*arguments], **kwargs)

    return run


def test_the_cases_below_cover_every_command():
    assert {command.name for command in commands.app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_for_people(run, core, name):
    result = run("--workspace", "ws", name, *COMMANDS[name])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()
    assert core.opened == ["ws"]
    assert core.closed


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_one_json_document(run, name):
    result = run(name, *COMMANDS[name], "--json")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)


def test_arguments_reach_the_verb(run, core):
    run("record-feedback", *COMMANDS["record-feedback"])
    run("start-finetune", *COMMANDS["start-finetune"], "--detach")
    run("start-finetune", "training_data/t.csv", "--detach")
    run("generate-training-data", *COMMANDS["generate-training-data"])
    feedback, by_id, by_path, data = core.calls
    assert feedback[2] == {
        "rating": 5,
        "document_ratings": {"a.md#b": 4},
        "user_satisfaction": 0,
        "comment": "",
        "helpful_ids": ("a.md#b",),
    }
    assert by_id[2]["dataset_id"] == "training_20260108"
    assert by_id[2]["config"] == {"num_epochs": 2, "loss_function": "auto"}
    assert (by_path[2]["training_data_path"], by_path[2]["dataset_id"]) == ("training_data/t.csv", "")
    assert data[2]["include_hard_negatives"] is False
    assert data[2]["min_negative_samples"] is None


def test_a_job_is_followed_to_its_end_unless_detached(run, core):
    state = JobStatusResult(job_id="ft_1", kind="finetune", status="running", progress=40, message="epoch 1")
    core.states = [
        state,
        state.model_copy(update={"status": "completed", "progress": 100, "model_version": "v"}),
    ]
    followed = run("start-finetune", "t", "--json")
    detached = run("start-finetune", "t", "--json", "--detach")
    assert json.loads(followed.stdout)["model_version"] == "v"
    assert json.loads(detached.stdout)["job_id"] == "ft_1"


def test_a_failed_job_is_a_failed_command(core, run):
    core.states = [
        JobStatusResult(
            job_id="ft_1",
            kind="finetune",
            status="failed",
            progress=3,
            error=ErrorInfo(code="not_enough_data", message="too few", hint="rate more"),
        )
    ]
    result = run("start-finetune", "t")
    assert result.exit_code == 1
    assert str(result.exception) == "[not_enough_data] ft_1 failed: too few Hint: rate more"


@pytest.mark.parametrize(("answer", "confirmed"), [("y\n", [False, True]), ("n\n", [False])])
@pytest.mark.parametrize("command", [["promote", "m"], ["rollback"]])
def test_switching_asks_first(run, core, command, answer, confirmed):
    result = run(*command, input=answer)
    assert [call[2]["confirm"] for call in core.calls] == confirmed
    assert result.exit_code == (0 if len(confirmed) == 2 else 1)


def test_a_plot_that_is_not_named_svg_is_refused(run, core, tmp_path):
    result = run("ab-results", "ab_1", "--plot", str(tmp_path / "effect.png"))
    assert result.exit_code == 2
    assert "--plot" in result.stderr
    assert core.calls == []


def test_the_plot_is_written_where_asked(run, tmp_path):
    target = tmp_path / "out.svg"
    result = run("ab-results", "ab_1", "--plot", str(target))
    assert result.exit_code == 0
    assert "<svg" in target.read_text()


@pytest.mark.parametrize(
    "arguments",
    [["record-feedback", "q", "--document", "a=9"], ["start-finetune", "t", "--config", "epochs"]],
)
def test_malformed_pairs_are_refused_with_an_example(run, arguments):
    result = run(*arguments)
    assert isinstance(result.exception, InvalidInput)
    assert "Example" in result.exception.hint


@pytest.mark.parametrize(
    "arguments",
    [
        ["search"],
        ["search", "a", "-k", "0"],
        ["nonsense"],
        ["stop-ab-test", "ab_1"],
        ["export", "m", "--format", "tf"],
        ["search", "a", "--no"],
    ],
)
def test_wrong_usage_has_exit_code_2(run, arguments):
    assert run(*arguments).exit_code == 2


def test_what_is_there_to_be_copied_stays_on_one_line(run, core):
    query_id = "q_" + "0" * 100
    core.search = lambda *_: SearchResults(query_id=query_id, results=[])
    assert f"record-feedback {query_id} --rating" in run("search", "how").stdout


def test_terminal_codes_in_documents_are_not_printed(run, core):
    core.texts = "\x1b[31mred [bold]not markup[/bold] \u202e"
    result = run("search", "how")
    assert "\x1b[31m" not in result.stdout
    assert "[bold]not markup[/bold]" in result.stdout


def test_a_deliberate_error_is_one_line_on_stderr_with_exit_code_1(tmp_path):
    command = [sys.executable, "-m", "ragtune_mcp", "--workspace", str(tmp_path / "nowhere"), "status"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("ragtune-mcp: [invalid_input] The workspace folder")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], ("stdio", "", "127.0.0.1", 8084)),
        (["serve"], ("stdio", "", "127.0.0.1", 8084)),
        (["--workspace", "serve"], ("stdio", "serve", "127.0.0.1", 8084)),
        (["--workspace=w", "serve"], ("stdio", "w", "127.0.0.1", 8084)),
        (["serve", "--transport", "streamable-http"], ("http", "", "127.0.0.1", 8084)),
        (
            ["--workspace", "w", "serve", "--transport", "streamable-http", "--port", "9"],
            ("http", "w", "127.0.0.1", 9),
        ),
    ],
)
def test_without_a_command_the_server_starts(monkeypatch, arguments, served):
    from ragtune_mcp import http, server

    seen = []
    monkeypatch.setattr(
        server, "serve_stdio", lambda workspace: seen.append(("stdio", workspace, "127.0.0.1", 8084))
    )
    monkeypatch.setattr(
        http, "serve_http", lambda workspace, host, port: seen.append(("http", workspace, host, port))
    )
    cli.main(arguments)
    assert seen == [served]


@pytest.mark.parametrize(
    "arguments", [["serve", "--port", "x"], ["serve", "--nonsense"], ["serve", "search"]]
)
def test_wrong_server_flags_have_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2


def test_help_and_version_load_nothing_of_the_core():
    code = (
        "import sys\nfrom ragtune_mcp.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sys.modules, sep=chr(10), file=sys.stderr)"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
        assert "ragtune-mcp" in done.stdout
        assert not {"ragtune_mcp.core.app", "mcp", "numpy", "chromadb", "torch"} & set(done.stderr.split())
