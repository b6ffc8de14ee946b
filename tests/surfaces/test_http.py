import logging

import pytest
from starlette.testclient import TestClient
from tests.surfaces.fakes import FakeCore

from ragtune_mcp.core.errors import InvalidInput
from ragtune_mcp.http import build_app, serve_http
from ragtune_mcp.server import create_server

LOCAL = "http://127.0.0.1:8084"
TOKEN = {"Authorization": "Bearer secret-token"}


def http(core: FakeCore, host: str = "127.0.0.1", base: str = LOCAL) -> TestClient:
    return TestClient(build_app(*create_server(core=core), host), base_url=base)


def test_the_requests_of_the_specification_give_its_responses(core):
    with http(core) as client:
        data = client.post(
            "/training/generate-data",
            json={
                "min_positive_samples": 50,
                "min_negative_samples": 50,
                "include_hard_negatives": True,
                "days_back": 90,
                "export_format": "csv",
            },
        )
        job = client.post(
            "/training/fine-tune",
            json={
                "training_data_path": "./training_data/t.csv",
                "base_model": "all-MiniLM-L6-v2",
                "model_name_suffix": "feedback_v1",
                "config": {
                    "batch_size": 16,
                    "num_epochs": 4,
                    "learning_rate": 2e-5,
                    "loss_function": "CosineSimilarityLoss",
                },
            },
        )
        status = client.get("/training/status/ft_1")
        test = client.post(
            "/testing/ab-test/start",
            json={
                "baseline_model": "all-MiniLM-L6-v2",
                "test_model": "./fine_tuned_models/feedback_v1_20240108",
                "traffic_split": 0.5,
                "duration_hours": 24,
                "metrics": ["response_quality", "relevance_score", "user_satisfaction"],
            },
        )
        results = client.get("/testing/ab-test/ab_1/results")
    for answer in (data, job, status, test, results):
        assert answer.status_code == 200, answer.text
    assert data.json()["success"] is True
    assert {"total_pairs", "positive_pairs", "negative_pairs", "hard_negative_pairs"} <= data.json()[
        "statistics"
    ].keys()
    assert {"success", "job_id", "status", "message"} <= job.json().keys()
    assert {
        "job_id",
        "status",
        "progress",
        "model_path",
        "training_duration",
        "metrics",
    } <= status.json().keys()
    assert {"success", "test_id", "status", "start_time", "estimated_end_time"} <= test.json().keys()
    assert {
        "baseline_metrics",
        "test_metrics",
        "statistical_significance",
        "p_value",
        "recommendation",
    } <= results.json().keys()
    assert core.calls[1][2]["config"]["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/training/generate-data", {"days_back": 0}, 400, "invalid_input"),
        ("POST", "/training/generate-data", {"nonsense": 1}, 400, "invalid_input"),
        ("POST", "/training/generate-data", [1], 400, "invalid_input"),
        ("GET", "/training/status/nope", None, 404, "unknown_job"),
        ("GET", "/testing/ab-test/nope/results", None, 404, "unknown_test"),
        ("POST", "/testing/ab-test/start", {"test_model": "blocked"}, 409, "gate_blocked"),
        ("GET", "/training/fine-tune", None, 405, "method_not_allowed"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/training/status/crash", None, 500, "internal"),
    ],
)
def test_failures_have_a_meaningful_status_and_one_shape(core, method, path, body, status, code):
    with http(core) as client:
        answer = client.request(method, path, json=body) if body is not None else client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"].keys() == {"code", "message", "hint"}
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("FeatureDisabled", 403),
        ("Conflict", 409),
        ("NotEnoughData", 409),
        ("DigestMismatch", 409),
        ("NotReady", 503),
        ("ConPortUnavailable", 503),
        ("PathOutsideWorkspace", 400),
        ("JobFailed", 500),
    ],
)
def test_each_kind_of_error_has_its_status(core, error, status):
    from ragtune_mcp.core import errors

    def fail(**_):
        raise getattr(errors, error)("no", hint="do")

    core.start_finetune = fail
    with http(core) as client:
        answer = client.post("/training/fine-tune", json={"dataset_id": "t"})
    assert answer.status_code == status
    assert answer.json()["error"]["hint"] == "do"
    assert ("retry-after" in answer.headers) == (status == 503)


def test_bodies_that_are_not_json_or_too_long_are_refused(core):
    with http(core) as client:
        form = client.post("/training/generate-data", data={"days_back": "3"})
        broken = client.post(
            "/training/generate-data", content=b"{", headers={"Content-Type": "application/json"}
        )
        long = client.post(
            "/training/generate-data",
            content=b" " * 1_100_000,
            headers={"Content-Type": "application/json; charset=utf-8"},
        )
    assert (form.status_code, broken.status_code, long.status_code) == (415, 400, 413)


def test_an_empty_body_means_all_defaults(core):
    with http(core) as client:
        answer = client.post("/training/generate-data", headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert core.calls[0][2]["min_positive_samples"] == 50


@pytest.mark.parametrize("path", ["/", "/training/status/ft_1", "/mcp"])
def test_foreign_host_and_origin_are_refused_everywhere(core, path):
    with http(core) as client:
        assert client.get(path, headers={"Host": "evil.example:8084"}).status_code == 421
        assert client.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get(path, headers={"Host": "127.0.0.1.evil.example"}).status_code == 421


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "my-machine", "::"])
def test_a_host_that_others_reach_needs_a_token(tmp_path, host):
    with pytest.raises(InvalidInput, match="RAGTUNE_HTTP_TOKEN"):
        http(FakeCore(tmp_path), host)
    assert http(FakeCore(tmp_path, ragtune_http_token="secret-token"), host)


@pytest.mark.parametrize("path", ["/", "/training/status/ft_1", "/mcp"])
def test_with_a_token_every_path_needs_it(tmp_path, path):
    core = FakeCore(tmp_path, ragtune_http_token="secret-token")
    with http(core) as client:
        refused = client.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Basic secret-token"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer ünï".encode()}).status_code == 401
        assert client.get(path, headers=TOKEN).status_code != 401


def test_a_named_address_is_accepted_as_host_with_the_token(tmp_path):
    core = FakeCore(tmp_path, ragtune_http_token="secret-token")
    with http(core, "192.168.1.5", "http://192.168.1.5:8084") as client:
        assert client.get("/training/status/ft_1", headers=TOKEN).status_code == 200
        assert client.get("/training/status/ft_1", headers=TOKEN | {"Host": "evil"}).status_code == 421


def test_mcp_is_served_beside_the_routes(core):
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    with http(core) as client:
        answer = client.post("/mcp", json=request, headers={"Accept": "application/json, text/event-stream"})
    assert answer.status_code == 200
    assert '"ragtune"' in answer.text


def test_the_status_page_shows_the_state_escaped_and_without_scripts(core):
    core.states = [core.job_status("ft_1").model_copy(update={"message": "<script>alert(1)</script>\u202e"})]
    with http(core) as client:
        page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "&lt;script&gt;" in page.text
    assert "<script" not in page.text
    for part in ("all-MiniLM-L6-v2", "ft_1", "ab_1", "<svg", "continue"):
        assert part in page.text


def test_unforeseen_errors_are_logged(core, caplog):
    with caplog.at_level(logging.ERROR), http(core) as client:
        client.get("/training/status/crash")
    assert "secret path" in caplog.text


def test_the_server_listens_on_loopback_with_a_parser_that_strips_header_values(tmp_path, monkeypatch):
    import uvicorn

    seen = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: seen.update(options))
    serve_http(tmp_path, "127.0.0.1", 8084)
    assert seen["host"] == "127.0.0.1"
    assert seen["port"] == 8084
    assert seen["http"] == "h11"
    assert seen["log_config"] is None


def test_a_public_address_without_a_token_is_refused_before_listening(tmp_path, monkeypatch):
    import uvicorn

    monkeypatch.delenv("RAGTUNE_HTTP_TOKEN", raising=False)
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: pytest.fail("it listened"))
    with pytest.raises(InvalidInput, match="RAGTUNE_HTTP_TOKEN"):
        serve_http(tmp_path, "0.0.0.0", 8084)
