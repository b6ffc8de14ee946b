"""An export to Ollama by the verbs, and what it says when an Ollama answers."""

import threading

import pytest
from tests.models.test_ollama import FakeOllama, load
from tests.models.tiny_bert import make_tiny_bert
from tests.verbs.support import BASE, opened, work

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def ollama(tmp_path_factory, monkeypatch):
    server = FakeOllama(load(make_tiny_bert(tmp_path_factory.mktemp("tiny") / "model")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def app(tmp_path, ollama):
    app = opened(tmp_path)
    app.registry.register_base(BASE, make_tiny_bert(tmp_path / "base"))
    app.registry.register("one", make_tiny_bert(app.workspace.models / "one"), base_model=BASE)
    yield app
    app.close()


def exported(app, **arguments):
    job_id = app.export_model("one", name="mine:v1", **arguments).job_id
    work(app, job_id)
    return app.job_status(job_id)


def test_an_ollama_that_answers_checks_the_export_and_creation_there_is_offered(app, ollama):
    state = exported(app)
    assert state.status == "completed", state.error
    assert state.result["checks"]["ollama"]["status"] == "passed"
    assert ollama.models == {}
    assert state.next_step.startswith(f"The Ollama at {ollama.url} gave the same vectors.")
    assert f"&& OLLAMA_HOST={ollama.url} ollama create mine:v1 -f Modelfile ; " in state.next_step
    assert "create_over_http" in state.next_step


def test_an_ollama_that_gives_other_vectors_fails_the_export(app, ollama):
    ollama.fault = "vectors"
    state = exported(app, quantization="q8_0")
    assert (state.status, state.error.code) == ("failed", "export_mismatch")
    assert not app.workspace.export("one", "ollama", "q8_0").exists()


def test_an_old_ollama_is_not_said_to_have_given_the_same_vectors(app, ollama):
    ollama.version = "0.21.4"
    state = exported(app)
    assert state.status == "completed", state.error
    assert state.result["checks"]["ollama"]["status"] == "skipped"
    assert state.next_step.startswith("To keep the model in Ollama:")


def test_a_base_that_is_gone_does_not_keep_a_version_from_being_exported(app, tmp_path):
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "model.safetensors").unlink()
    app.settings.ragtune_allow_downloads = False
    state = exported(app)
    assert state.status == "completed", state.error
    assert state.result["base_cosine"]["status"] == "skipped"
