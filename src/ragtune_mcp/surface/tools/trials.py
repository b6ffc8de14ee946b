"""Tools of live comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ragtune_mcp.core.results import AbResults, AbTestStarted
from ragtune_mcp.surface.tool import Call, session_of, tool
from ragtune_mcp.surface.tools.fields import Metric, OptionalVersion, Reason, TestId


@tool(
    "Start A/B test",
    "Use when a version passed its offline gate. From now on a share of the searches is answered by the "
    "test model, unseen, until the time is up or stop_ab_test. Next: search and record_feedback as usual,"
    " then ab_results.",
)
async def start_ab_test(
    call: Call,
    baseline_model: Annotated[OptionalVersion, Field(description="Empty = the serving version.")] = "",
    test_model: Annotated[
        OptionalVersion, Field(description="Empty = the newest version that passed its gate.")
    ] = "",
    traffic_split: Annotated[
        float, Field(ge=0.01, le=0.99, description="Share of searches for the test model.")
    ] = 0.5,
    duration_hours: Annotated[float, Field(ge=0.01, le=8760)] = 24,
    metrics: Annotated[Sequence[Metric], Field(min_length=1, max_length=3)] = (
        "response_quality",
        "relevance_score",
        "user_satisfaction",
    ),
    mode: Annotated[
        Literal["split", "interleave"],
        Field(description="split: one model per search; interleave: both mixed, decides with fewer ratings."),
    ] = "split",
    force: Annotated[bool, Field(description="Test a version its gate blocked; needs a reason.")] = False,
    reason: Reason = "",
) -> AbTestStarted:
    """Start a live comparison."""
    return await session_of(call).call(
        lambda core: core.start_ab_test(
            baseline_model=baseline_model,
            test_model=test_model,
            traffic_split=traffic_split,
            duration_hours=duration_hours,
            metrics=tuple(metrics),
            mode=mode,
            force=force,
            reason=reason,
        )
    )


@tool(
    "A/B results",
    "Use at any time, as often as you like: p_anytime stays valid however often it is read. A decision "
    "that has become final ends the test. Next: what recommendation and next_step say, e.g. promote_model "
    "after deploy_test_model.",
    idempotent=True,
)
async def ab_results(
    call: Call,
    test_id: Annotated[
        str, Field(max_length=100, description="Id returned by start_ab_test; empty = the latest.")
    ] = "",
) -> AbResults:
    """Read a live comparison, and end it once it is decided."""
    return await session_of(call).call(lambda core: core.ab_results(test_id))


@tool(
    "Stop A/B test",
    "Use to end a test before its time. The baseline answers all searches again; the results are kept. "
    "Next: promote_model if they favour the test model.",
    destructive=True,
    idempotent=True,
)
async def stop_ab_test(
    call: Call, test_id: TestId, reason: Annotated[Reason, Field(min_length=1)]
) -> AbResults:
    """End a live comparison."""
    return await session_of(call).call(lambda core: core.stop_ab_test(test_id, reason))
