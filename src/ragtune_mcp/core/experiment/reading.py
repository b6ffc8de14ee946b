"""What a look at a test tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ragtune_mcp.core.experiment.findings import Pair


@dataclass(frozen=True, slots=True)
class Effect:
    """Effect on the primary metric, test - baseline; intervals are (low, high) at 95 %.

    In interleave mode the metric is the delta-DCG credit of a query, in [-1, 1].
    """

    metric: str
    difference: float | None
    ci95_fixed: tuple[float, float] | None
    ci95_anytime: tuple[float, float] | None
    hedges_g: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What `ab_results` tells.

    Attributes:
        status: active, completed or stopped (a ramp after a win shows as completed).
        statistical_significance: the p-value that may be used now is below its level: p_anytime while the
            test runs, also p_value at the planned end.
        p_value: fixed-horizon Welch test; `p_value_valid` only at the planned end.
        p_anytime: valid however often it is read.
        srm: {"e_value", "p", "alarm"}: does the assignment follow the split?
        need: rated units still missing in each arm for 80 % power at the reference effect.
        secondary: Holm-adjusted p of the other metrics.
        health: (baseline, test) of rates and latencies.
        tallies: feedback that was refused, repeated, edited or late.
        replay: the newest offline replay as plain numbers, {} without one; not causal.
    """

    test_id: str
    status: str
    mode: str
    baseline_version: str
    test_version: str
    baseline_metrics: Mapping[str, float | int | None]
    test_metrics: Mapping[str, float | int | None]
    statistical_significance: bool
    p_value: float | None
    p_value_valid: bool
    p_anytime: float
    effect: Effect
    srm: Mapping[str, float | bool]
    guardrails: Mapping[str, str]
    secondary: Mapping[str, float]
    health: Mapping[str, Pair]
    recommendation: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    next_step: str
    need: Mapping[str, int]
    tallies: Mapping[str, int]
    replay: Mapping[str, Any]
    minimum_detectable_effect: float
    start_time: datetime
    estimated_end_time: datetime
    ended_at: datetime | None
