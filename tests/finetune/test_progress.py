import pytest

from ragtune_mcp.core.errors import JobCancelled
from ragtune_mcp.core.finetune.progress import Progress


def test_fractions_rise_from_zero_to_one_with_an_estimate():
    seen = []
    progress = Progress(lambda share, message, fields: seen.append((share, message, fields)), lambda: None)
    progress.plan({"first": 30, "second": 10})
    progress.start("first")
    progress.advance(15, "half", loss=1.0)
    progress.start("second")
    progress.advance(100, "over", loss=0.5)
    shares = [share for share, _, _ in seen]
    assert shares == [0.0, 0.375, 0.75, 1.0]
    assert seen[0][2]["eta_s"] is None
    assert seen[1][2]["eta_s"] >= 0
    assert seen[1][2]["loss"] == 1.0


def test_work_beyond_the_plan_never_passes_one():
    seen = []
    progress = Progress(lambda share, message, fields: seen.append(share), lambda: None)
    progress.plan({"only": 1})
    progress.start("only")
    for _ in range(5):
        progress.advance(1, loss=0.0)
    assert max(seen) == 1.0


def test_a_share_reached_counts_what_an_attempt_before_has_done():
    seen = []
    progress = Progress(lambda share, message, fields: seen.append((share, message)), lambda: None)
    progress.plan({"first": 30, "second": 10})
    progress.start("first")
    progress.reach(0.8, "step 8 of 10", loss=0.5)
    assert seen[-1] == (pytest.approx(0.6), "step 8 of 10")
    progress.reach(0.9, "step 9 of 10", loss=0.5)
    assert seen[-1] == (pytest.approx(0.675), "step 9 of 10")


def test_every_advance_asks_whether_the_job_was_cancelled():
    def cancelled():
        raise JobCancelled("stop")

    progress = Progress(lambda *_: None, cancelled)
    progress.start("phase")
    with pytest.raises(JobCancelled):
        progress.advance(1)
