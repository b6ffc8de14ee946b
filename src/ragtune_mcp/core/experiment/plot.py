"""The effect of a test over its ratings as one hand-written SVG: no plotting library, a few kB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from ragtune_mcp.core.experiment.evidence import Evidence, Point
from ragtune_mcp.core.experiment.trials import Trial

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 640, 200, 56, 16, 44, 46
_COLOURS = {"band": "#9ecae1", "effect": "#08519c", "baseline": "#6b6b6b", "test": "#d95f02", "axis": "#444"}
_TICKS = 5

Scale = Callable[[float], float]


def effect_svg(trial: Trial, evidence: Evidence) -> str:
    """Two panels over the rated units: the effect with its always-valid band, and each variant's mean.

    Args:
        trial: the test.
        evidence: its running statistics.

    Returns:
        An SVG document; says so in words while nothing is rated, and for an interleaved test.
    """
    title = f"{trial.test_id}: {trial.test_version} against {trial.baseline_version}"
    height = _TOP + 2 * _PANEL + 2 * _GAP
    body = [_text(_LEFT, 18, title, 13), _text(_LEFT, 34, f"{trial.metrics[0]}, {trial.status}", 11)]
    points = [p for p in evidence.points if p.effect is not None]
    if not points:
        body.append(_text(_LEFT, _TOP + 40, "No rated units in both variants yet.", 12))
    else:
        body += _effect_panel(points, _TOP)
        if trial.mode == "split":
            body += _means_panel(points, _TOP + _PANEL + _GAP, trial.primary.lo, trial.primary.hi)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}" role="img" font-family="sans-serif">\n<title>{escape(title)}</title>\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _effect_panel(points: Sequence[Point], top: float) -> list[str]:
    effects = [p.effect or 0.0 for p in points]
    # The first intervals span the whole range; the scale follows the later ones.
    reach = max(max(abs(p.low), abs(p.high)) for p in points[len(points) // 4 :])
    x, y = _scales(points, top, -reach, reach)
    upper = [f"{x(p.n):.1f},{y(_clip(p.high, reach)):.1f}" for p in points]
    lower = [f"{x(p.n):.1f},{y(_clip(p.low, reach)):.1f}" for p in reversed(points)]
    line = " ".join(f"{x(p.n):.1f},{y(_clip(e, reach)):.1f}" for p, e in zip(points, effects, strict=True))
    last = points[-1]
    label = f"effect {effects[-1]:+.2f}, always valid 95 %: {last.low:+.2f} to {last.high:+.2f}, n = {last.n}"
    return [
        f'<polygon points="{" ".join(upper + lower)}" fill="{_COLOURS["band"]}" fill-opacity="0.5"/>',
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"'
        f' stroke="{_COLOURS["axis"]}" stroke-dasharray="4 3"/>',
        f'<polyline points="{line}" fill="none" stroke="{_COLOURS["effect"]}" stroke-width="2"/>',
        *_axes(points, top, -reach, reach, label),
    ]


def _means_panel(points: Sequence[Point], top: float, lo: float, hi: float) -> list[str]:
    x, y = _scales(points, top, lo, hi)
    parts = []
    for row, name in enumerate(("baseline", "test")):
        arms = [(p.n, p.baseline if name == "baseline" else p.test) for p in points]
        line = " ".join(f"{x(n):.1f},{y(arm.mean):.1f}" for n, arm in arms)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"/>')
        last = arms[-1][1]
        legend = f"{name} {last.mean:.2f} (n = {last.n})"
        parts.append(_text(_WIDTH - _RIGHT - 150, top + 14 + 14 * row, legend, 11, _COLOURS[name]))
    return [*parts, *_axes(points, top, lo, hi, "mean of each variant")]


def _scales(points: Sequence[Point], top: float, lo: float, hi: float) -> tuple[Scale, Scale]:
    first, last = _range(points)

    def x(n: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (n - first) / (last - first)

    def y(value: float) -> float:
        return top + _PANEL * (hi - value) / (hi - lo)

    return x, y


def _range(points: Sequence[Point]) -> tuple[int, int]:
    return points[0].n, max(points[-1].n, points[0].n + 1)


def _axes(points: Sequence[Point], top: float, lo: float, hi: float, label: str) -> list[str]:
    x, y = _scales(points, top, lo, hi)
    first, last = _range(points)
    parts = [
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_PANEL}" fill="none"'
        f' stroke="{_COLOURS["axis"]}"/>',
        _text(_LEFT + 6, top + _PANEL - 6, label, 11),
    ]
    for tick in range(_TICKS):
        value = lo + (hi - lo) * tick / (_TICKS - 1)
        parts.append(_text(8, y(value) + 4, f"{value:.2f}", 10))
        n = first + (last - first) * tick / (_TICKS - 1)
        parts.append(_text(x(n) - 8, top + _PANEL + 14, f"{n:.0f}", 10))
    return parts


def _clip(value: float, reach: float) -> float:
    return max(-reach, min(reach, value))


def _text(x: float, y: float, words: str, size: int, colour: str = "#222") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}">{escape(words)}</text>'
