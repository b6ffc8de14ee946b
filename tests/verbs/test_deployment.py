"""Indexing, testing, promoting and rolling back on a real vector store with tiny encoders."""

import shutil
from threading import Thread
from types import SimpleNamespace

import pytest
from tests.models.support import make_encoder
from tests.verbs.support import BASE, in_conport, indexed, opened, serve, work

from ragtune_mcp.core import pipeline
from ragtune_mcp.core.errors import (
    ChromaUnavailable,
    Conflict,
    DigestMismatch,
    ExportMismatch,
    GateBlocked,
    InvalidInput,
    NotReady,
)
from ragtune_mcp.core.retrieval.catalog import Catalog
from ragtune_mcp.core.retrieval.reindex import plan_index, storing
from ragtune_mcp.core.verbs import retrieval

BLOCK = {"verdict": "block", "reasons": ["worse by 0.1"], "details": {}}


@pytest.fixture
def app(tmp_path):
    app = opened(tmp_path)
    serve(app, BASE, kind="base")
    for name, text in (("a", "how do i roll back"), ("b", "index search"), ("c", "rating model")):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\n{text}\n")
    indexed(app, paths=["*.md"])
    yield app
    app.stop_store()
    app.close()


def build(app, version):
    """The collection of a version, as its fine-tuning job builds it."""
    with pytest.raises(NotReady):
        app.require_index(app.registry.get(version))
    assert work(app, app.jobs.list(1)[0].job_id).status == "completed"
    return version


def add_document(app, name="d"):
    (app.workspace.root / f"{name}.md").write_text(f"# {name}\n\ndeployment of a model {name}\n")


def test_a_roll_back_is_one_call_though_documents_changed_since(app):
    build(app, serve(app, "one", seed=1))
    app.promote_model("one", confirm=True)
    add_document(app)
    indexed(app, paths=["*.md"])
    assert app.rollback_model(confirm=True).to_version == BASE
    assert len(app.search("deployment", k=9).results) == 4


def collections(app):
    return {version for version in ("one", "two", "three", "four", "five", BASE) if app.index.count(version)}


def test_the_index_of_whatever_served_serves_or_may_serve_stays_and_the_rest_goes(app):
    build(app, serve(app, "one", seed=1))
    app.promote_model("one", confirm=True)
    app.rollback_model(confirm=True)
    build(app, serve(app, "two", seed=2))
    build(app, serve(app, "three", seed=3))
    app.registry.set_alias("challenger", "three", actor="test", reason="")
    build(app, serve(app, "four", seed=4))
    assert collections(app) == {BASE, "one", "three", "four"}  # "two" never served, and two are newer
    job = app.jobs.list(1)[0]
    assert any("removed 1 superseded" in event.message for event in app.jobs.get(job.job_id).events)
    build(app, serve(app, "five", seed=5))
    assert collections(app) == {BASE, "one", "three", "four", "five"}
    assert app.rollback_model("one", confirm=True).to_version == "one"


def test_the_models_of_a_running_test_keep_their_index(app):
    build(app, serve(app, "one", seed=1))
    app.start_ab_test(test_model="one")
    for number, version in enumerate(("two", "three", "four"), 2):
        build(app, serve(app, version, seed=number))
    assert collections(app) == {BASE, "one", "three", "four"}


def test_documents_stored_while_the_champion_changes_are_indexed_for_the_new_one_too(app, monkeypatch):
    for number, version in enumerate(("one", "two"), 1):
        build(app, serve(app, version, seed=number))
        app.promote_model(version, confirm=True)
    build(app, serve(app, "three", seed=3))
    app.search("index")
    apply = app.documents.apply

    def switched_meanwhile(plan):
        app.promote_model("three", confirm=True)
        apply(plan)

    monkeypatch.setattr(app.documents, "apply", switched_meanwhile)
    add_document(app)
    assert app.index_documents(paths=["*.md"]).job_id is None
    assert app.champion() == "three"
    assert len(app.search("deployment", k=9).results) == 4


def test_no_version_comes_to_serve_without_the_documents_that_arrived_while_it_was_checked(app, monkeypatch):
    build(app, serve(app, "one", seed=1))
    add_document(app)
    plan = plan_index(app.workspace, app.documents, paths=["*.md"])
    check = app.encoders.check

    def changed_meanwhile(version):
        check(version)
        app.documents.apply(plan)

    monkeypatch.setattr(app.encoders, "check", changed_meanwhile)
    with pytest.raises(Conflict, match="changed while"):
        app.promote_model("one", confirm=True)
    assert app.champion() == BASE


def test_an_index_that_fell_behind_is_caught_up_by_the_next_call(app):
    build(app, serve(app, "one", seed=1))
    app.registry.set_alias("challenger", "one", actor="test", reason="")
    # As a process leaves it that was killed after it brought the champion up to date.
    with app.db.transaction() as connection:
        connection.execute("DELETE FROM vectors WHERE doc_id LIKE 'a.md%' AND collection IN"
                           " (SELECT name FROM collections WHERE version='one')")  # fmt: skip
    assert not app.index.is_ready("one")
    assert indexed(app, paths=["*.md"]).job_id
    assert app.index.is_ready("one")
    assert app.index_documents(paths=["*.md"]).message == "Everything is up to date."


def test_a_small_change_is_indexed_at_once_for_the_challenger_too(app):
    build(app, serve(app, "one", seed=1))
    app.registry.set_alias("challenger", "one", actor="test", reason="")
    app.search("index")
    add_document(app)
    assert app.index_documents(paths=["*.md"]).job_id is None
    assert app.index.is_ready(BASE)
    assert app.index.is_ready("one")


def test_asking_again_while_a_job_waits_starts_no_second_one(app):
    serve(app, "one", seed=1)
    for _ in range(3):
        with pytest.raises(NotReady):
            app.promote_model("one")
    assert app.export_model("one").job_id == app.export_model("one").job_id
    assert app.export_model("one", quantization="f32").job_id != app.export_model("one").job_id
    assert [job.kind for job in app.jobs.list()].count("index") == 2  # the first indexing and this one


def test_what_there_is_to_encode_and_how_long_it_takes_is_told_first(app):
    serve(app, "one", seed=1)
    with pytest.raises(
        NotReady, match=r"lacks 3 of 3 documents; job ix_\w+ adds them, about 1 s of encoding"
    ):
        app.promote_model("one")
    for number in range(70):
        add_document(app, f"n{number}")
    answer = app.index_documents(paths=["*.md"])
    assert (
        answer.message == "Indexing runs in the background, about 1 s of encoding; the counts are its plan."
    )


def test_vectors_that_are_gone_are_said_to_be_so_and_all_documents_are_estimated(app, monkeypatch):
    build(app, serve(app, "one", seed=1))
    app.stop_store()
    shutil.rmtree(app.workspace.index)
    monkeypatch.setattr(Catalog, "seconds_per_text", lambda self: 10.0)
    with pytest.raises(
        NotReady,
        match=r"vectors of one are gone .* ix_\w+ makes those of 3 documents anew, about 30 s of encoding",
    ):
        app.promote_model("one")
    assert work(app, app.jobs.list(1)[0].job_id).status == "completed"
    answer = app.index_documents(paths=["*.md"])
    assert answer.message == (
        f"The vectors of {BASE} are gone from the store. "
        "Indexing runs in the background, about 30 s of encoding; the counts are its plan."
    )
    assert work(app, answer.job_id).status == "completed"
    assert len(app.search("index", k=9).results) == 3


def test_a_file_that_changes_while_an_index_job_runs_is_not_missed(app):
    serve(app, "one", seed=1)
    app.encoders.get(BASE)
    for number in range(70):
        add_document(app, f"n{number}")
    first = app.index_documents(paths=["*.md"])
    assert app.index_documents(paths=["*.md"]).job_id == first.job_id
    assert app.jobs.claim(first.job_id)
    assert app.index_documents(paths=["*.md"]).job_id != first.job_id


@pytest.mark.parametrize("documents", [1, 70])
def test_what_was_read_earlier_does_not_replace_what_another_process_has_stored_since(
    app, monkeypatch, documents
):
    root, other, answers = app.workspace.root, opened(app.workspace.root), []
    for each in (app, other):
        each.search("index")
    newer = Thread(target=lambda: answers.append(other.index_documents(paths=["a.md", "b.md"])))
    apply = app.documents.apply

    def changed_meanwhile(plan):
        (root / "a.md").write_text("# a\n\nthird\n")
        (root / "b.md").write_text("# b\n\nback again\n")
        newer.start()
        newer.join(1.5)
        apply(plan)

    (root / "a.md").write_text("# a\n\nsecond\n")
    (root / "b.md").unlink()
    for number in range(documents):
        add_document(app, f"n{number}")
    monkeypatch.setattr(app.documents, "apply", changed_meanwhile)
    indexed(app, paths=["*.md"])
    newer.join(30)
    if answers[0].job_id:
        assert work(other, answers[0].job_id).status == "completed"
    assert app.documents.texts(["a.md#a", "b.md#b"]) == {"a.md#a": "a\n\nthird", "b.md#b": "b\n\nback again"}
    assert app.documents.count() == 3 + documents
    other.close()


def test_a_call_does_not_wait_for_ever_until_another_process_has_read_its_documents(app, monkeypatch):
    monkeypatch.setattr(retrieval, "_READING_WAIT_S", 0.1)
    add_document(app)
    with storing(app.workspace), pytest.raises(NotReady, match="has been reading documents"):
        app.index_documents(paths=["*.md"])
    assert indexed(app, paths=["*.md"]).updated == 1


def test_an_index_job_that_waits_for_another_process_to_read_can_be_cancelled(app):
    for number in range(70):
        add_document(app, f"n{number}")
    job_id = app.index_documents(paths=["*.md"]).job_id
    ended = []
    with storing(app.workspace):
        worker = Thread(target=lambda: ended.append(work(app, job_id)))
        worker.start()
        app.jobs.wait(job_id, 0.5)
        app.cancel_job(job_id)
        worker.join(30)
    assert [job.status for job in ended] == ["cancelled"]
    assert app.documents.count() == 3


def test_a_roll_back_leads_only_to_a_version_that_has_served(app):
    build(app, serve(app, "bad", gate=BLOCK, seed=1))
    with pytest.raises(Conflict, match="never was the champion"):
        app.rollback_model("bad", confirm=True)
    assert app.champion() == BASE


def test_a_blocked_version_serves_neither_as_test_nor_as_baseline_unless_forced(app):
    build(app, serve(app, "bad", gate=BLOCK, seed=1))
    for models in ({"baseline_model": "bad", "test_model": BASE}, {"test_model": "bad"}):
        with pytest.raises(GateBlocked):
            app.start_ab_test(**models)
    assert app.start_ab_test(test_model="bad", force=True, reason="to see it").test_id


def test_an_ended_test_is_told_to_conport_once_however_often_it_is_read(app):
    build(app, serve(app, "one", seed=1))
    test_id = app.start_ab_test(test_model="one").test_id
    assert in_conport(app, "ABTests")[test_id]["status"] == "active"
    app.stop_ab_test(test_id, "enough")
    assert in_conport(app, "ABTests")[test_id]["status"] == "stopped"
    with app.db.transaction() as connection:
        connection.execute("DELETE FROM outbox")  # delivered
    app.ab_results(test_id)
    app.watch_test()
    assert app.outbox.pending() == 0


def test_a_test_nobody_reads_is_decided_and_told_all_the_same(app):
    build(app, serve(app, "one", seed=1))
    test_id = app.start_ab_test(test_model="one", duration_hours=1).test_id
    with app.db.transaction() as connection:
        connection.execute("UPDATE trials SET started_at='2026-01-01T00:00:00.000000Z',"
                           " ends_at='2026-01-01T01:00:00.000000Z'")  # fmt: skip
    app.watch_test()
    assert in_conport(app, "ABTests")[test_id]["status"] == "completed"


def test_a_base_whose_folder_moved_can_still_be_tested_and_rolled_back_to(app):
    build(app, serve(app, "one", seed=1))
    app.promote_model("one", confirm=True)
    (app.workspace.models / BASE).rename(app.workspace.root / BASE)
    app.start_ab_test(baseline_model="one", test_model=BASE)
    (app.workspace.root / BASE).rename(app.workspace.models / BASE)
    app.stop_ab_test(app.trials.active().test_id, "enough")
    (app.workspace.models / BASE).rename(app.workspace.root / BASE)
    assert app.rollback_model(confirm=True).to_version == BASE


def tamper(app, version):
    """Change one byte of a version's weights, as its length stays."""
    file = app.workspace.models / version / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def test_a_version_whose_files_were_changed_is_not_promoted(app):
    build(app, serve(app, "one", seed=1))
    tamper(app, "one")
    for confirm in (False, True):
        with pytest.raises(DigestMismatch, match=r"changed: model\.safetensors"):
            app.promote_model("one", confirm=confirm)
    assert app.champion() == BASE


def test_a_version_whose_files_were_changed_is_not_rolled_back_to(app):
    for number, version in enumerate(("one", "two"), 1):
        build(app, serve(app, version, seed=number))
        app.promote_model(version, confirm=True)
    tamper(app, "one")
    for version in ("", "one"):
        with pytest.raises(DigestMismatch, match=r"changed: model\.safetensors"):
            app.rollback_model(version, confirm=True)
    assert app.champion() == "two"


def test_no_switch_while_a_test_runs(app):
    build(app, serve(app, "one", seed=1))
    app.start_ab_test(test_model="one")
    with pytest.raises(Conflict, match="is running"):
        app.promote_model("one", confirm=True)


def test_a_version_without_its_encoder_is_given_one_before_it_serves(app):
    build(app, serve(app, "one", seed=1))
    app.encoders.folder("one").rename(app.workspace.root / "elsewhere")
    with pytest.raises(NotReady):
        app.start_ab_test(test_model="one")


@pytest.fixture
def exports(monkeypatch):
    """The serving encoders exported by jobs: of the tiny models, which have no real form."""
    made = []

    def export(model_folder, target, base):
        made.append(model_folder.name)
        shutil.rmtree(target, ignore_errors=True)
        make_encoder(target, target.name, seed=len(model_folder.name) % 2)

    monkeypatch.setattr(pipeline, "export_onnx", export)
    return made


@pytest.mark.parametrize("content", [None, b"", b"junk"])
@pytest.mark.parametrize("name", ["encoder.json", "model.onnx"])
def test_an_incomplete_encoder_is_exported_again_by_what_the_errors_advise(app, exports, name, content):
    path = app.encoders.folder(BASE) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    other = opened(app.workspace.root)
    with pytest.raises((DigestMismatch, NotReady)) as caught:
        other.search("roll back")
    assert "index_documents" in caught.value.hint
    assert indexed(other, paths=["*.md"]).job_id
    assert exports == [BASE]
    assert len(other.search("roll back").results) == 3
    assert other.index_documents(paths=["*.md"]).message == "Everything is up to date."
    other.close()


def test_an_encoder_damaged_behind_its_copy_in_memory_is_not_promoted_but_exported_again(app, exports):
    build(app, serve(app, "one", seed=1))
    app.encoders.get("one")
    (app.encoders.folder("one") / "model.onnx").write_bytes(b"junk")
    with pytest.raises(NotReady, match="serving encoder of one is missing or damaged") as caught:
        app.promote_model("one", confirm=True)
    assert "job_status" in caught.value.hint
    assert work(app, app.jobs.list(1)[0].job_id).status == "completed"
    assert exports == ["one"]
    assert app.promote_model("one", confirm=True).changed


def test_a_version_whose_encoder_does_not_work_is_not_tested(app, monkeypatch):
    build(app, serve(app, "one", seed=1))
    check = app.encoders.check

    def broken(version):
        if version == "one":
            raise ExportMismatch("The encoder of one gives another vector.", hint="Index again.")
        check(version)

    monkeypatch.setattr(app.encoders, "check", broken)
    with pytest.raises(ExportMismatch):
        app.start_ab_test(test_model="one")
    assert app.trials.active() is None


def test_a_name_that_ollama_does_not_take_is_refused_before_a_job_starts(app):
    jobs = len(app.jobs.list())
    with pytest.raises(InvalidInput, match="no name"):
        app.export_model(BASE, name="bad name!")
    assert len(app.jobs.list()) == jobs


def test_a_base_model_that_is_a_folder_has_an_export_name(app):
    serve(app, "./mine", kind="base")
    job = app.jobs.get(app.export_model("./mine").job_id)
    assert job.spec["name"] == "ragtune-mine"


def test_a_rating_counts_towards_the_next_training_at_once(app):
    app.record_feedback(app.search("index").query_id, rating=4)
    assert app.record_feedback(app.search("rating").query_id, rating=2).ready_to_train["have"] == 2


def test_an_export_is_compared_on_what_the_users_queries_find(app, monkeypatch):
    for number in range(20):
        add_document(app, f"b{number}")
    indexed(app, paths=["*.md"])
    told = []
    ctx = SimpleNamespace(event=told.append)
    queries = ["rating model", "index search"]
    best = [app.searcher.search(BASE, query, 1)[0].text for query in queries]
    assert len(set(best)) == 2
    assert pipeline._export_texts(app, ctx, queries)[:2] == best
    assert len(pipeline._export_texts(app, ctx, queries)) == 23
    monkeypatch.setattr(pipeline, "_EXPORT_TEXTS", 12)
    at_random = pipeline._export_texts(app, ctx, [])
    assert at_random == pipeline._export_texts(app, ctx, [])
    assert at_random != list(app.documents.all_texts().values())[:12]
    assert told == []

    def unavailable(*_):
        raise ChromaUnavailable("no store")

    monkeypatch.setattr(app.searcher, "search_all", unavailable)
    assert len(pipeline._export_texts(app, ctx, queries)) == 10
    assert "no store" in told[0]
