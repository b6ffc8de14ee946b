"""What may be started: the ranges of a test's plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ragtune_mcp.core.errors import GateBlocked, InvalidInput

Mode = Literal["split", "interleave"]
StopRule = Literal["hybrid", "anytime", "fixed"]


def check_split(split: float) -> None:
    """Refuse a share of the test version outside (0, 1)."""
    if not isinstance(split, int | float) or isinstance(split, bool) or not 0.0 < split < 1.0:
        raise InvalidInput(
            f"traffic_split is {split!r}; it must be above 0 and below 1.",
            hint="It is the share of queries that get the test model; 0.5 finds an effect soonest.",
        )


def check_plan(
    baseline: str, test: str, split: float, duration_hours: float, mode: str, alpha: float, stop_rule: str
) -> None:
    """Refuse a plan with a value outside its range, or the same version twice."""
    check_split(split)
    if not (isinstance(duration_hours, int | float) and 0.0 < duration_hours <= 24 * 365):
        raise InvalidInput(
            f"duration_hours is {duration_hours!r}; it must be above 0 and at most 8760.",
            hint="Plan at least 24 hours.",
        )
    if baseline == test:
        raise InvalidInput(
            f"Baseline and test model are the same version {test!r}.", hint="list_models shows others."
        )
    if mode not in get_args(Mode):
        raise InvalidInput(f"mode is {mode!r}; it must be 'split' or 'interleave'.")
    if stop_rule not in get_args(StopRule):
        raise InvalidInput(f"stop_rule is {stop_rule!r}; it must be one of {', '.join(get_args(StopRule))}.")
    if not (math.isfinite(alpha) and 0.0 < alpha < 0.5):
        raise InvalidInput(f"The significance level is {alpha!r}; it must be above 0 and below 0.5.")


def check_gate(test_version: str, gate: Mapping[str, Any], force_reason: str) -> None:
    """Refuse a version that the offline gate blocked, unless a reason to test it all the same is given."""
    if gate.get("verdict") == "block" and not force_reason:
        why = "; ".join(str(reason) for reason in gate.get("reasons", [])) or "worse on held-out queries"
        raise GateBlocked(
            f"The version {test_version!r} did not pass the offline gate: {why}.",
            hint="Train on more feedback, or pass force=true to test it all the same.",
        )
