"""The effect of a test over its ratings as one hand-written SVG: no plotting library, a few kB."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from ragtune_mcp.core.experiment.evidence import Evidence, Point
from ragtune_mcp.core.experiment.trials import Trial

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP, _FOOT = 680, 190, 52, 20, 84, 72, 44
_COLOURS = {"band": "#c6dbef", "effect": "#08519c", "baseline": "#6b6b6b", "test": "#d95f02"}
_INK, _MUTED, _GRID = "#222", "#666", "#e4e4e4"
_TICKS = 5
# Early intervals span the whole range; the scale follows those after this share of the ratings.
_SETTLED = 0.3

Scale = Callable[[float], float]


def effect_svg(trial: Trial, evidence: Evidence) -> str:
    """Two panels over the rated units: the effect with its always-valid band, and each variant's mean.

    Args:
        trial: the test.
        evidence: its running statistics.

    Returns:
        An SVG document; says so in words while nothing is rated, and has one panel for an interleaved test.
    """
    title = f"{trial.test_id}: {trial.test_version} against {trial.baseline_version}"
    points = [p for p in (*evidence.points, evidence.present) if p.effect is not None]
    measured = "interleaving_credit" if trial.mode == "interleave" else trial.metrics[0]
    body = [
        _text(_LEFT, 24, f"{trial.test_version} against {trial.baseline_version}", 14, weight="bold"),
        _text(_LEFT, 42, f"{trial.test_id}, {measured}, {trial.status}", 11, _MUTED),
    ]
    panels = 1
    if not points:
        body.append(_text(_LEFT, _TOP + 40, "No rated units in both variants yet.", 12))
    else:
        body += _effect_panel(points, _TOP)
        if trial.mode == "split":
            panels = 2
            body += _means_panel(points, _TOP + _PANEL + _GAP, trial.primary.lo, trial.primary.hi)
    height = _TOP + panels * _PANEL + (panels - 1) * _GAP + _FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}" role="img" font-family="sans-serif">\n<title>{escape(title)}</title>\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _effect_panel(points: Sequence[Point], top: float) -> list[str]:
    settled = [p for p in points if p.n >= _SETTLED * points[-1].n]
    reach = max(max(abs(p.low), abs(p.high), abs(p.effect or 0.0)) for p in settled)
    x, y = _scales(points, top, -reach, reach)

    def at(n: int, value: float) -> str:
        return f"{x(n):.1f},{y(max(-reach, min(reach, value))):.1f}"

    band = [at(p.n, p.high) for p in points] + [at(p.n, p.low) for p in reversed(points)]
    line = " ".join(at(p.n, p.effect or 0.0) for p in points)
    last = points[-1]
    label = f"effect {last.effect or 0.0:+.2f}, always valid 95 %: {last.low:+.2f} to {last.high:+.2f}, n = {last.n}"
    return [
        f'<polygon points="{" ".join(band)}" fill="{_COLOURS["band"]}"/>',
        *_axes(points, top, -reach, reach),
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{_INK}"'
        ' stroke-dasharray="4 3"/>',
        f'<polyline points="{line}" fill="none" stroke="{_COLOURS["effect"]}" stroke-width="2"/>',
        _text(_LEFT, top - 10, label, 12, _COLOURS["effect"]),
    ]


def _means_panel(points: Sequence[Point], top: float, lo: float, hi: float) -> list[str]:
    x, y = _scales(points, top, lo, hi)
    parts = _axes(points, top, lo, hi)
    for column, name in enumerate(("baseline", "test")):
        arms = [(p.n, p.baseline if name == "baseline" else p.test) for p in points]
        line = " ".join(f"{x(n):.1f},{y(arm.mean):.1f}" for n, arm in arms)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"/>')
        last = arms[-1][1]
        legend = f"{name} {last.mean:.2f} (n = {last.n})"
        parts.append(_text(_LEFT + 190 * column, top - 10, legend, 12, _COLOURS[name]))
    return parts


def _scales(points: Sequence[Point], top: float, lo: float, hi: float) -> tuple[Scale, Scale]:
    first, last = _range(points)

    def x(n: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (n - first) / (last - first)

    def y(value: float) -> float:
        return top + _PANEL * (hi - value) / (hi - lo)

    return x, y


def _range(points: Sequence[Point]) -> tuple[int, int]:
    return points[0].n, max(points[-1].n, points[0].n + 1)


def _axes(points: Sequence[Point], top: float, lo: float, hi: float) -> list[str]:
    """Light lines at round values, numbers beside them."""
    x, y = _scales(points, top, lo, hi)
    first, last = _range(points)
    right, bottom = _WIDTH - _RIGHT, top + _PANEL
    parts = []
    for value in _round_values(lo, hi):
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{_GRID}"/>'
        )
        parts.append(_text(_LEFT - 7, y(value) + 4, f"{value:g}", 10, _MUTED, anchor="end"))
    sizes = [n for n in _round_values(first, last) if n == int(n)]
    parts += [_text(x(n), bottom + 15, f"{n:g}", 10, _MUTED, anchor="middle") for n in sizes]
    parts.append(_text((_LEFT + right) / 2, bottom + 31, "rated units", 10, _MUTED, anchor="middle"))
    parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="{_MUTED}"/>')
    return parts


def _round_values(lo: float, hi: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range, about `_TICKS` of them."""
    rough = (hi - lo) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(hi / step + 1e-9) + 1)]


def _text(
    x: float, y: float, words: str, size: int, colour: str = _INK, *, anchor: str = "", weight: str = ""
) -> str:
    options = (f' text-anchor="{anchor}"' if anchor else "") + (f' font-weight="{weight}"' if weight else "")
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}"{options}>{escape(words)}</text>'
