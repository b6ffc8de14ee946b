"""A finished test on one page, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ragtune_mcp.core.clock import to_iso
from ragtune_mcp.core.experiment.metrics import METRICS
from ragtune_mcp.core.experiment.reading import Reading


def markdown_report(
    reading: Reading, decisions: Sequence[Mapping[str, Any]], chance_of_better: float | None
) -> str:
    """The results of a test as Markdown.

    Args:
        reading: its results.
        decisions: rows of its decision log, oldest first: at, recommendation, reasons, n.
        chance_of_better: of a search with the test version against one with the baseline, ties half.

    Returns:
        The text; every number stands with its n or its interval.
    """
    effect = reading.effect
    lines = [
        f"# A/B test {reading.test_id}: {reading.recommendation}",
        "",
        *(f"- {reason}" for reason in (*reading.reasons, *reading.warnings)),
        "",
        f"`{reading.test_version}` against `{reading.baseline_version}`, {reading.mode}, {reading.status};"
        f" started {to_iso(reading.start_time)}, planned end {to_iso(reading.estimated_end_time)}.",
        "",
        "| | baseline | test |",
        "|---|---|---|",
        *_arm_rows(reading),
        "",
        f"**Effect on {effect.metric}**: {_number(effect.difference)};"
        f" 95 % always valid {_interval(effect.ci95_anytime)}, 95 % fixed {_interval(effect.ci95_fixed)}"
        f"{'' if reading.p_value_valid else ' (not valid before the planned end)'};"
        f" Hedges g {_number(effect.hedges_g)};"
        f" chance that a search is rated higher with the test version {_number(chance_of_better)}.",
        "",
        f"p_anytime {_number(reading.p_anytime)}, p_value {_number(reading.p_value)}"
        f" ({'valid' if reading.p_value_valid else 'not valid: the test did not reach its planned end'}).",
        "",
        *_checks(reading),
    ]
    if reading.replay:
        lines += _replay_lines(reading.replay)
    lines += ["## Decisions", "", "| at | decision | rated units | reasons |", "|---|---|---|---|"]
    lines += [
        f"| {d['at']} | {d['recommendation']} | {d['n']} | {'; '.join(d['reasons'])} |" for d in decisions
    ]
    return "\n".join(lines) + "\n"


def _arm_rows(reading: Reading) -> list[str]:
    rows = [
        ("units searched for", reading.baseline_metrics["n_exposed"], reading.test_metrics["n_exposed"]),
        ("rated units", reading.baseline_metrics["n_rated"], reading.test_metrics["n_rated"]),
    ]
    for metric in METRICS:
        name = f"avg_{metric}"
        rows.append((name, reading.baseline_metrics[name], reading.test_metrics[name]))
    rows += [(name, *pair) for name, pair in reading.health.items()]
    return [f"| {name} | {_number(baseline)} | {_number(test)} |" for name, baseline, test in rows]


def _checks(reading: Reading) -> list[str]:
    guards = ", ".join(f"{name} {state}" for name, state in reading.guardrails.items())
    lines = [
        f"Sample ratio: e-value {_number(reading.srm['e_value'])} (alarm above 1000), chi-square p"
        f" {_number(reading.srm['p'])}. Guardrails: {guards or 'none'}.",
        "",
    ]
    if reading.secondary:
        adjusted = ", ".join(f"{name} {_number(p)}" for name, p in reading.secondary.items())
        lines += [f"Other metrics, Holm-adjusted p: {adjusted}.", ""]
    if reading.tallies:
        counted = ", ".join(f"{name} {count}" for name, count in sorted(reading.tallies.items()))
        lines += [f"Feedback not counted as given: {counted}.", ""]
    return lines


def _replay_lines(replay: Mapping[str, Any]) -> list[str]:
    return [
        "## Offline replay (not causal)",
        "",
        f"{replay['queries']} logged queries answered again by both versions and scored with the ratings:"
        f" nDCG@10 over judged documents {_number(replay['baseline'])} (baseline), {_number(replay['test'])}"
        f" (test), difference {_number(replay['difference'])},"
        f" 95 % {_interval((replay['low'], replay['high']))}."
        f" Of the first 5 results {_number(replay['judged_baseline'])} and {_number(replay['judged_test'])}"
        " were ever rated; documents that only the test version finds are mostly unrated, which favours the"
        " baseline.",
        "",
    ]


def _number(value: float | int | bool | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _interval(bounds: Sequence[float | None] | None) -> str:
    return "-" if not bounds or None in bounds else f"{bounds[0]:+.3g} to {bounds[1]:+.3g}"
