"""Argument types that several tools share; ranges and descriptions end up in the input schemas."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

JobId = Annotated[
    str, Field(min_length=1, max_length=100, description="Id returned when the job was started.")
]
TestId = Annotated[str, Field(min_length=1, max_length=100, description="Id returned by start_ab_test.")]
Version = Annotated[str, Field(min_length=1, max_length=500, description="Version id; see list_models.")]
OptionalVersion = Annotated[str, Field(max_length=500)]
Reason = Annotated[str, Field(max_length=1000, description="Why; kept with the decision.")]
Confirm = Annotated[bool, Field(description="false = preview.")]
Metric = Literal["response_quality", "relevance_score", "user_satisfaction"]
Stars = Annotated[int, Field(ge=1, le=5)]
OptionalStars = Annotated[int, Field(ge=0, le=5)]
DocumentId = Annotated[str, Field(min_length=1, max_length=1000)]
