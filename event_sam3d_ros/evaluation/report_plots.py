"""Plots as inline SVG: lines over time and bars of parts, without a drawing library or anything from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

COLORS = ("#e8710a", "#1a73e8", "#188038", "#a142f4", "#d93025", "#12858d", "#8d6e63", "#5f6368")
_WIDTH, _HEIGHT = 760, 214
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 22, 42
_TICKS = 5
_GAP_FACTOR = 5.0  # a pause of so many usual steps breaks the line

Points = Sequence[tuple[float, float]]


def line_plot(
    series: Mapping[str, Points],
    label: str,
    span: tuple[float, float],
    bounds: tuple[float, float] | None = None,
) -> str:
    """An SVG with a line for each series of (seconds, value), and a legend; empty where there are no points. ``label``:
    of the values, with their unit; ``span``: of the seconds; ``bounds``: of the values, None: those that there are."""
    shown = {name: points for name, points in series.items() if points}
    if not shown:
        return ""
    t0, t1 = span if span[1] > span[0] else (span[0], span[0] + 1.0)
    values = [value for points in shown.values() for _, value in points]
    low, high = bounds or (min(values), max(values))
    if bounds is None:
        margin = 0.05 * (high - low) or max(abs(high) * 0.1, 0.1)
        low, high = low - margin, high + margin

    def x(time: float) -> float:
        return _LEFT + (time - t0) / (t1 - t0) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)} over time">']
    parts.append(f'<text x="{_LEFT}" y="12">{escape(label)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">seconds since the first frame</text>')
    for tick in _ticks(low, high):
        parts.append(f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(t0, t1):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{_number(tick)}</text>')
    for number, points in enumerate(shown.values()):
        color = COLORS[number % len(COLORS)]
        for piece in _pieces(points):
            if len(piece) == 1:
                (time, value) = piece[0]
                parts.append(f'<circle cx="{x(time):.1f}" cy="{y(value):.1f}" r="2" fill="{color}"/>')
            else:
                path = "L".join(f"{x(time):.1f} {y(value):.1f}" for time, value in piece)
                parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
    return "".join(parts) + "</svg>" + _legend(list(shown))


def bar_plot(parts: Mapping[str, float], unit: str) -> str:
    """One bar of parts, and a legend with each part's size."""
    total = sum(parts.values())
    if total <= 0:
        return ""
    svg, at = [f'<svg viewBox="0 0 {_WIDTH} 34" role="img" aria-label="parts of the time">'], 0.0
    for number, value in enumerate(parts.values()):
        width = value / total * _WIDTH
        svg.append(f'<rect x="{at:.1f}" y="4" width="{width:.1f}" height="26" fill="{COLORS[number % len(COLORS)]}"/>')
        at += width
    names = [f"{name}: {value:.1f} {unit} ({value / total:.0%})" for name, value in parts.items()]
    return "".join(svg) + "</svg>" + _legend(names)


def _legend(names: Sequence[str]) -> str:
    spans = [
        f'<span><i style="background:{COLORS[number % len(COLORS)]}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    ]
    return f'<div class="legend">{"".join(spans)}</div>'


def _pieces(points: Points) -> list[list[tuple[float, float]]]:
    """The line without the pauses."""
    ordered = sorted(points)
    steps = np.diff([time for time, _ in ordered])
    limit = _GAP_FACTOR * float(np.median(steps)) if len(steps) else 0.0
    pieces: list[list[tuple[float, float]]] = [[ordered[0]]]
    for step, point in zip(steps, ordered[1:], strict=True):
        if step > limit:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers between two."""
    raw = (high - low) / _TICKS
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw))
    first = np.ceil(low / step)
    return [float(round(number * step, 12)) for number in np.arange(first, np.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}"  # no minus before a zero
