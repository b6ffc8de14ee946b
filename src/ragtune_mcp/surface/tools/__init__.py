"""The tools of the server, grouped as the core's verbs. A signature is a schema, a body is one verb."""

from __future__ import annotations

from typing import Any

from ragtune_mcp.core.settings import Settings
from ragtune_mcp.surface.tool import RagTuneTool, ToolSpec
from ragtune_mcp.surface.tools.models import export_model, list_models, promote_model, rollback_model
from ragtune_mcp.surface.tools.retrieval import index_documents, record_feedback, search
from ragtune_mcp.surface.tools.training import cancel_job, generate_training_data, job_status, start_finetune
from ragtune_mcp.surface.tools.trials import ab_results, start_ab_test, stop_ab_test

TOOLS: tuple[ToolSpec, ...] = (
    generate_training_data,
    start_finetune,
    job_status,
    cancel_job,
    start_ab_test,
    ab_results,
    stop_ab_test,
    search,
    record_feedback,
    index_documents,
    list_models,
    promote_model,
    rollback_model,
    export_model,
)


def make_tools(settings: Settings) -> tuple[RagTuneTool, ...]:
    """The tools of a workspace; its settings decide some defaults, so that schemas show what will be used.

    Args:
        settings: of the workspace served.

    Returns:
        The tools in the order of the loop.
    """
    defaults: dict[str, dict[str, Any]] = {
        "generate_training_data": {
            "min_positive_samples": settings.min_positive_samples,
            "min_negative_samples": settings.min_negative_samples,
            "include_hard_negatives": settings.include_hard_negatives,
        },
        "start_finetune": {"base_model": settings.base_model_name},
        "start_ab_test": {
            "traffic_split": settings.ab_test_traffic_split,
            "duration_hours": settings.ab_test_duration_hours,
        },
    }
    return tuple(RagTuneTool.make(spec, defaults.get(spec.handler.__name__, {})) for spec in TOOLS)
