"""Figures for people who would rather look: a drawing of how each metric is distributed, as SVG."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from html import escape

from quire_engine.bench.figures import TITLES, percentile

_WIDTH, _HEIGHT, _MARGIN, _TOP = 420, 260, 46, 40
_POINTS = 200
_MARKS = (50, 90, 99)
_STYLE = """text { font: 12px system-ui, sans-serif; fill: #444 } .title { font-size: 14px; fill: #111 }
.curve { fill: none; stroke: #2f5fd0; stroke-width: 2 } .grid { stroke: #ddd }
.mark { stroke: #b42318; stroke-dasharray: 3 } .named { fill: #b42318; font-size: 11px }"""


def drawing(values: Mapping[str, Sequence[float]], caption: str) -> str:
    """An SVG with a panel a metric: the share of answers, 0 to 100%, that took at most so many milliseconds."""
    panels = [(name, sorted(found)) for name, found in values.items() if found]
    rows = math.ceil(len(panels) / 2)
    width, height = 2 * _WIDTH, _TOP + rows * _HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="title" x="{_MARGIN}" y="24">{escape(caption)}</text>',
    ]
    for place, (name, ordered) in enumerate(panels):
        x, y = place % 2 * _WIDTH, _TOP + place // 2 * _HEIGHT
        parts.append(f'<g transform="translate({x} {y})">{_panel(TITLES[name], ordered)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(title: str, ordered: Sequence[float]) -> str:
    most = _round_up(ordered[-1])
    left, right, top, bottom = _MARGIN, _WIDTH - 20, 30, _HEIGHT - 34

    def across(value: float) -> float:
        return left + (right - left) * value / most

    def up(percent: float) -> float:
        return bottom - (bottom - top) * percent / 100

    percents = [100 * i / _POINTS for i in range(_POINTS + 1)]
    curve = " ".join(f"{across(percentile(ordered, p)):.1f},{up(p):.1f}" for p in percents)
    parts = [f'<text class="title" x="{left}" y="18">{escape(title)} (ms)</text>']
    for quarter in range(5):
        value, percent = most * quarter / 4, 25 * quarter
        parts += [
            f'<line class="grid" x1="{left}" x2="{right}" y1="{up(percent)}" y2="{up(percent)}"/>',
            f'<text x="{left - 6}" y="{up(percent) + 4}" text-anchor="end">{percent}%</text>',
            f'<text x="{across(value)}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>',
        ]
    for mark in _MARKS:
        value = percentile(ordered, mark)
        at = across(value)
        side, anchor = (-3, "end") if at > (left + 3 * right) / 4 else (3, "start")  # where there is room
        parts += [
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>',
            f'<text class="named" x="{at + side:.1f}" y="{up(mark) + 14:.1f}" text-anchor="{anchor}">'
            f"p{mark} {value:.1f}</text>",
        ]
    return "".join([*parts, f'<polyline class="curve" points="{curve}"/>'])


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 or 10 times a power of ten, so that quarters are short numbers."""
    if value < sys.float_info.min:  # 0, or so close to it that its power of ten is none
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)
