"""The funnel as a picture: a Sankey diagram in SVG, the same bytes for the same figures."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

_WIDTH, _HEIGHT, _TOP, _LEFT = 960, 220, 44, 12
_NODE, _LEAST = 6, 1.0
_INK, _PALE, _KEPT, _DROPPED = "#1f2430", "#6b7280", "#3b6ea5", "#c8553d"
_FONT = 'font-family="system-ui, sans-serif"'


def funnel_svg(steps: Sequence[dict[str, Any]]) -> str:
    """Return the rows that pass each filter as a band, and what it drops as a band that leaves."""
    first = max(steps[0]["seen"], 1) if steps else 1
    column = (_WIDTH - 2 * _LEFT) / max(len(steps), 1)
    height = _TOP + _HEIGHT + 132
    left = [_step(n, step, first, column) for n, step in enumerate(steps)]
    title = (
        f"{_rows(steps[-1]['seen'] - steps[-1]['dropped'])} of {_rows(first)} rows kept"
        if steps
        else "no filter"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
            f'aria-label="{title}">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="{_LEFT}" y="24" {_FONT} font-size="16" fill="{_INK}">{title}</text>',
            *left,
            "</svg>\n",
        ]
    )


def _step(number: int, step: dict[str, Any], first: int, column: float) -> str:
    x, share = _LEFT + number * column, _HEIGHT / first
    came, lost = max(step["seen"] * share, _LEAST), step["dropped"] * share
    stayed, bottom = came - lost, _TOP + _HEIGHT + 14
    kept, dropped = _Band(x, _TOP, stayed), _Band(x, _TOP + stayed, max(lost, _LEAST))
    parts = [
        kept.to(x + column, _TOP, _KEPT),
        f'<rect x="{x:.1f}" y="{_TOP}" width="{_NODE}" height="{came:.1f}" fill="{_INK}"/>',
        dropped.to(x + column / 2, bottom - dropped.width, _DROPPED) if lost else "",
        _label(step, x, bottom + 16),
    ]
    return "\n".join(part for part in parts if part)


def _label(step: dict[str, Any], x: float, y: float) -> str:
    told = f"−{_rows(step['dropped'])}" if step["dropped"] else "all kept"
    colour = _DROPPED if step["dropped"] else _PALE
    name, reasons = escape(step["filter"].replace("_", " ")), escape(_reasons(step))
    return (
        f'<text x="{x:.1f}" y="{y}" transform="rotate(40 {x:.1f} {y})" {_FONT} font-size="12" '
        f'fill="{_INK}">{name} <tspan fill="{colour}">{told}</tspan><title>{reasons}</title></text>'
    )


class _Band(NamedTuple):
    """Where a band of rows begins."""

    x: float
    y: float
    width: float

    def to(self, x: float, y: float, fill: str) -> str:
        """Draw it on to where it ends."""
        middle, low, end_low = (self.x + x) / 2, self.y + self.width, y + self.width
        upper = f"C{middle:.1f},{self.y:.1f} {middle:.1f},{y:.1f} {x:.1f},{y:.1f}"
        lower = f"C{middle:.1f},{end_low:.1f} {middle:.1f},{low:.1f} {self.x:.1f},{low:.1f}"
        path = f"M{self.x:.1f},{self.y:.1f} {upper} L{x:.1f},{end_low:.1f} {lower} Z"
        return f'<path d="{path}" fill="{fill}" fill-opacity="0.8"/>'


def _rows(number: int) -> str:
    return f"{number:,}"


def _reasons(step: dict[str, Any]) -> str:
    told = sorted(step["reasons"].items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{reason}: {count}" for reason, count in told) or "nothing dropped"
