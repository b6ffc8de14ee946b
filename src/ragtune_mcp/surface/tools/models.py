"""Tools of deployment: list, promote, roll back, export."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ragtune_mcp.core.results import ExportResult, ModelList, SwitchResult
from ragtune_mcp.surface.tool import Call, session_of, tool
from ragtune_mcp.surface.tools.fields import Confirm, OptionalVersion, Reason, Version


@tool(
    "List models",
    "Use to see all versions with metrics, gate verdict, lineage and which one serves (champion) or is up"
    " next (challenger). Changes nothing.",
    read_only=True,
)
async def list_models(call: Call) -> ModelList:
    """List the registered versions."""
    return await session_of(call).call(lambda core: core.list_models())


@tool(
    "Promote model",
    "Use after a won A/B test. With confirm=false it only says what would change: show that to the user "
    "first. With confirm=true the version answers all searches from now on; one that just won its test "
    "first answers 80 % of them for a day and is rolled back by itself if it does harm. Undo: rollback_model.",
    destructive=True,
)
async def promote_model(
    call: Call,
    version: Version,
    confirm: Confirm = False,
    force: Annotated[bool, Field(description="Promote a version its gate blocked; needs a reason.")] = False,
    reason: Reason = "",
) -> SwitchResult:
    """Let a version serve."""
    return await session_of(call).call(
        lambda core: core.promote_model(version, confirm=confirm, force=force, reason=reason)
    )


@tool(
    "Roll back model",
    "Use when the serving version disappoints. With confirm=false it only says what would change; with "
    "confirm=true the earlier version answers all searches again, at once. Next: search to check.",
    destructive=True,
)
async def rollback_model(
    call: Call,
    version: Annotated[OptionalVersion, Field(description="Empty = the version that served before.")] = "",
    confirm: Confirm = False,
    reason: Reason = "",
) -> SwitchResult:
    """Return to an earlier version."""
    return await session_of(call).call(
        lambda core: core.rollback_model(version, confirm=confirm, reason=reason)
    )


@tool(
    "Export model",
    "Use to run a version elsewhere. Writes files for Ollama or ONNX in the background and checks that "
    "they give the same vectors. Next: job_status with the job_id; its result names files, commands and "
    "parity.",
    idempotent=True,
)
async def export_model(
    call: Call,
    version: Version,
    format: Literal["ollama", "onnx"] = "ollama",
    name: Annotated[
        str, Field(max_length=100, description="Ollama model name; empty = after the version.")
    ] = "",
    quantization: Annotated[Literal["f16", "q8_0", "f32"], Field(description="Ollama only.")] = "f16",
) -> ExportResult:
    """Export a version."""
    return await session_of(call).call(
        lambda core: core.export_model(version, format=format, name=name, quantization=quantization)
    )
