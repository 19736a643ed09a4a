"""Pictures for the Prefect UI: SVG documents, each as a data URI.

SVG as in the report: no plotting library is needed, and text stays sharp at any size.
"""

import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import NamedTuple

from tasks.evaluate.report.charts import Scale

Interval = Mapping[str, float]
Curve = Sequence[tuple[float, float]]


class Mark(NamedTuple):
    """One point of a picture, whose whole name is seen when it is pointed at."""

    x: float
    y: float
    name: str
    on_front: bool


_WIDTH, _LEFT, _TOP, _BOTTOM = 770, 110, 20, 54
_COLOURS = (
    *("#1f6feb", "#c2410c", "#15803d", "#8a8f98", "#9333ea"),
    *("#b45309", "#0e7490", "#be185d", "#4d7c0f", "#475569"),
)
_FEW_TICKS = 2
"""Round values on an axis, up to which the points' own values are shown instead."""
_MOST_POINTS = 400
"""Points of a curve; longer ones are means over neighbouring updates."""


def intervals(scores: Mapping[str, Interval], x_label: str) -> str:
    """Draw each score as a point with its interval; return the data URI."""
    x = Scale.around([score[end] for score in scores.values() for end in ("low", "high")])
    right, row = _WIDTH - 30, 56
    bottom = _TOP + row * len(scores)
    parts = [_x_axis([(x.at(tick), f"{tick:g}") for tick in x.ticks], right, bottom, x_label)]
    for n, (name, score) in enumerate(scores.items()):
        y, colour = _TOP + row * (n + 0.5), _COLOURS[n % len(_COLOURS)]
        low, mean, high = (_across(x.at(score[end]), right) for end in ("low", "mean", "high"))
        parts += [
            f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="4"/>',
            f'<circle cx="{mean}" cy="{y}" r="6" fill="{colour}"/>',
            _text(mean, y - 12, f"{score['mean']:.3f}"),
            *(
                _text(_LEFT - 12, y + 5 + 16 * line, part, "end")
                for line, part in enumerate(name.split("\n"))
            ),
        ]
    return _document(bottom, parts)


def curves(
    series: Mapping[str, Sequence[Curve]], x_label: str, y_label: str, *, linear: bool = False
) -> str:
    """Draw the curves of each name in one colour; return the data URI.

    y is on a log scale, unless `linear`.
    """
    place = float if linear else math.log10
    thin = {name: [_thinned(curve) for curve in some] for name, some in series.items()}
    points = [point for some in thin.values() for curve in some for point in curve]
    x = Scale.around([0.0, *(px for px, _ in points)], tight=True)
    places = [place(py) for _, py in points] or [0.0]
    y = Scale.around([min(places) - 0.02, max(places) + 0.02], tight=True)
    right, bottom = _WIDTH - 190, _TOP + max(260, 22 * len(series))
    parts = [_x_axis([(x.at(tick), f"{tick:g}") for tick in x.ticks], right, bottom, x_label)]
    for tick in y.ticks if linear else _log_ticks(y):
        at = _down(y.at(place(tick)), bottom)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}" stroke="#d8dee4"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{tick:g}", "end"))
    parts.append(_text(_LEFT, _TOP - 6, y_label, "end"))
    for n, ((name, some), colour) in enumerate(zip(thin.items(), cycle(_COLOURS), strict=False)):
        for curve in some:
            line = " ".join(
                f"{_across(x.at(px), right)},{_down(y.at(place(py)), bottom)}" for px, py in curve
            )
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        at = _TOP + 10 + 22 * n
        parts.append(f'<rect x="{right + 16}" y="{at - 9}" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(right + 36, at, name, "start"))
    return _document(bottom, parts)


def trade_off(points: Sequence[Mark], x_label: str, y_label: str) -> str:
    """Draw points, x on a log scale, and a line through those of the front; return the SVG."""
    logs = [math.log10(mark.x) for mark in points]
    x = Scale.around([min(logs) - 0.05, max(logs) + 0.05], tight=True)
    y = Scale.around([mark.y for mark in points])
    right, bottom = _WIDTH - 60, _TOP + 360
    round_values = _log_ticks(x)
    # within less than a power of ten, where few lie, the sizes of the front say more
    on_front = [mark.x for mark in points if mark.on_front]
    values = round_values if len(round_values) > _FEW_TICKS else on_front
    ticks = [(x.at(math.log10(value)), f"{value:.3g}") for value in values]
    parts = [_x_axis(ticks, right, bottom, x_label), _text(4, _TOP - 6, y_label, "start")]
    for tick in y.ticks:
        at = _down(y.at(tick), bottom)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}" stroke="#d8dee4"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{tick:g}", "end"))
    places = [
        (_across(x.at(math.log10(mark.x)), right), _down(y.at(mark.y), bottom)) for mark in points
    ]
    line = " ".join(
        f"{px},{py}" for mark, (px, py) in zip(points, places, strict=True) if mark.on_front
    )
    parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[0]}"/>')
    for mark, (px, py) in zip(points, places, strict=True):
        colour = _COLOURS[0] if mark.on_front else _COLOURS[3]
        title = f"<title>{escape(mark.name)}</title>"
        parts.append(f'<circle cx="{px}" cy="{py}" r="5" fill="{colour}">{title}</circle>')
        if mark.on_front:
            parts.append(_text(px, py - 10, mark.name.split()[0]))
    return _svg(bottom, parts)


def _thinned(curve: Curve) -> Curve:
    positive = [point for point in curve if point[1] > 0]  # the rest has no logarithm
    width = max(1, math.ceil(len(positive) / _MOST_POINTS))
    runs = [positive[start : start + width] for start in range(0, len(positive), width)]
    return [(sum(px for px, _ in r) / len(r), sum(py for _, py in r) / len(r)) for r in runs]


def _log_ticks(y: Scale) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten on a scale of logarithms."""
    powers = range(math.floor(y.low), math.ceil(y.high) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in ticks if y.low <= math.log10(tick) <= y.high]


def _x_axis(ticks: Iterable[tuple[float, str]], right: int, bottom: float, label: str) -> str:
    parts = [f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#57606a"/>']
    parts += [_text(_across(at, right), bottom + 18, text) for at, text in ticks]
    return "".join([*parts, _text((_LEFT + right) / 2, bottom + 42, label)])


def _across(percent: float, right: int) -> float:
    return round(_LEFT + percent / 100 * (right - _LEFT), 1)


def _down(percent: float, bottom: float) -> float:
    return round(bottom - percent / 100 * (bottom - _TOP), 1)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(bottom: float, parts: Iterable[str]) -> str:
    """Return the picture as a data URI."""
    svg = _svg(bottom, parts)
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _svg(bottom: float, parts: Iterable[str]) -> str:
    height = round(bottom + _BOTTOM)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13" fill="#24292f">'
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>'
    )
