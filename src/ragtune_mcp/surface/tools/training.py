"""Tools of training: build a data set, start and follow jobs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import anyio.from_thread
from pydantic import Field, WithJsonSchema

from ragtune_mcp.core.results import CancelResult, JobStarted, JobStatusResult, TrainingDataResult
from ragtune_mcp.surface.tool import Call, session_of, tool
from ragtune_mcp.surface.tools.fields import JobId

Config = Annotated[
    dict[str, bool | int | float | str],
    WithJsonSchema({"type": "object", "additionalProperties": True}),
    Field(
        description="Training parameters that differ from the settings: batch_size, num_epochs, "
        "learning_rate, loss_function ('auto' measured best), max_seq_length, warmup_steps, "
        "evaluation_steps, save_steps, use_amp, early_stopping_patience, validation_split, random_seed."
    ),
]


@tool(
    "Build training data",
    "Use when enough feedback has come in (record_feedback says how much). Turns the ratings kept in "
    "ConPort into a leak-free data set of query-document pairs, written under the training data folder. "
    "Next: start_finetune with the dataset_id returned.",
)
async def generate_training_data(
    call: Call,
    min_positive_samples: Annotated[
        int, Field(ge=0, le=1_000_000, description="Refuse with fewer positive pairs.")
    ] = 50,
    min_negative_samples: Annotated[
        int, Field(ge=0, le=1_000_000, description="Refuse with fewer negative pairs.")
    ] = 50,
    include_hard_negatives: Annotated[
        bool, Field(description="Mine near misses from the live index.")
    ] = True,
    include_synthetic: Annotated[
        bool, Field(description="Add queries made from the documents themselves.")
    ] = False,
    days_back: Annotated[
        int, Field(ge=1, le=36_500, description="Use feedback of this many past days.")
    ] = 90,
    export_format: Literal["csv", "json", "jsonl", "triplets"] = "csv",
) -> TrainingDataResult:
    """Build a data set from feedback."""

    def report(fraction: float, message: str) -> None:
        anyio.from_thread.run(call.report_progress, 100 * fraction, 100, message)

    return await session_of(call).call(
        lambda core: core.generate_training_data(
            min_positive_samples=min_positive_samples,
            min_negative_samples=min_negative_samples,
            include_hard_negatives=include_hard_negatives,
            include_synthetic=include_synthetic,
            days_back=days_back,
            export_format=export_format,
            progress=report,
        )
    )


@tool(
    "Start fine-tuning",
    "Use after generate_training_data. Trains a new version of the embedding model in the background and "
    "checks it offline; the serving model does not change. Next: job_status with the job_id returned.",
    open_world=True,
)
async def start_finetune(
    call: Call,
    training_data_path: Annotated[
        str, Field(max_length=1000, description="Data set file; or give dataset_id.")
    ] = "",
    dataset_id: Annotated[
        str, Field(max_length=200, description="Data set id; or give training_data_path.")
    ] = "",
    base_model: Annotated[
        str, Field(min_length=1, max_length=500, description="Model to start from.")
    ] = "all-MiniLM-L6-v2",
    model_name_suffix: Annotated[
        str, Field(min_length=1, max_length=64, description="Begins the version's name.")
    ] = "feedback",
    config: Config = {},  # noqa: B006 (shown as the default in the schema; never changed)
) -> JobStarted:
    """Start a fine-tuning job."""
    return await session_of(call).call(
        lambda core: core.start_finetune(
            training_data_path=training_data_path,
            dataset_id=dataset_id,
            base_model=base_model,
            model_name_suffix=model_name_suffix,
            config=config,
        )
    )


@tool(
    "Job status",
    "Use to follow a job started by start_finetune, index_documents or export_model. Changes nothing. "
    "Give wait_s=30 and repeat until status is completed, failed or cancelled; next_step says what "
    "follows.",
    read_only=True,
)
async def job_status(
    call: Call,
    job_id: JobId,
    wait_s: Annotated[float, Field(ge=0, le=30, description="Seconds to wait for a change of status.")] = 0,
) -> JobStatusResult:
    """Look at a job."""
    return await session_of(call).wait_for_job(job_id, wait_s, partial(_report_job, call))


async def _report_job(call: Call, state: JobStatusResult) -> None:
    await call.report_progress(state.progress, 100, state.message)


@tool(
    "Cancel job",
    "Use to stop a queued or running job. Training asked for again with the same arguments goes on from its"
    " last checkpoint, indexing from what is indexed. Next: job_status until it is cancelled.",
    destructive=True,
    idempotent=True,
)
async def cancel_job(call: Call, job_id: JobId) -> CancelResult:
    """Cancel a job."""
    return await session_of(call).call(lambda core: core.cancel_job(job_id))
