"""The background round of a server."""

import pytest

from ragtune_mcp.surface.session import Session, _tend_once

pytestmark = pytest.mark.anyio


def fails(*arguments):
    raise RuntimeError("the disk is full")


@pytest.mark.parametrize("broken", ["watch_test", "flush_outbox", "job_status", "watch_feedback"])
def test_a_step_that_fails_is_logged_and_the_others_are_done(core, monkeypatch, caplog, broken):
    watched = []
    monkeypatch.setattr(core, "watch_test", lambda: watched.append("test"))
    monkeypatch.setattr(core, "watch_feedback", lambda: watched.append("feedback"))
    monkeypatch.setattr(core, broken, fails)
    _tend_once(core)
    done = {
        "watch_test": "test" in watched,
        "flush_outbox": core.flushes == 1,
        "job_status": ("job_status", ("ft_1",), {}) in core.calls,
        "watch_feedback": "feedback" in watched,
    }
    assert [name for name, is_done in done.items() if not is_done] == [broken]
    assert "the disk is full" in caplog.text


async def test_one_dead_job_does_not_hide_the_next(core, monkeypatch):
    session, status = Session(core.workspace.root, core.workspace.settings, core), core.status()
    monkeypatch.setattr(core, "status", lambda: status.model_copy(update={"running_jobs": ["crash", "ft_1"]}))
    await session.call(_tend_once)
    assert [arguments for verb, arguments, _ in core.calls if verb == "job_status"] == [("crash",), ("ft_1",)]
