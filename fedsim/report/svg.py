"""Charts as SVG text, drawn by hand: a few kilobytes each, readable by a screen reader, sharp in print.

Colours are CSS variables, so that a chart follows the page into dark mode; `standalone` fills them in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

STYLE = Path(__file__).with_name("chart.css").read_text(encoding="utf-8")

SERIES = 6
"""Strokes that can be told apart, by colour and by dashes, also without colour vision (Okabe & Ito 2008)."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to pixels in [start, end]; values outside are moved to the nearer end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return decades on a log axis, else four to eight round numbers."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1)]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.8)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Frame:
    """The plotting area between a horizontal and a vertical scale."""

    x: Scale
    y: Scale

    def path(self, points: Points) -> str:
        """Return the ``d`` of a line through finite points."""
        known = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in known) if known else ""

    def line(self, points: Points, style: str, title: str = "") -> str:
        """Return a line; ``title`` is shown when the pointer rests on it."""
        return f'<path class="line {style}" d="{self.path(points)}">{_title(title)}</path>'

    def band(self, low: Points, high: Points, style: str) -> str:
        """Return the area between two lines."""
        return f'<path class="band {style}" d="{self.path([*low, *reversed(high)])}Z"/>'

    def axes(self, x_label: str, y_label: str) -> str:
        """Return grid lines, numbers and labels of both axes."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = []
        for value in self.x.ticks():
            at = self.x(value)
            parts.append(f'<path class="grid" d="M{at:.1f},{bottom}V{top}"/>')
            parts.append(text(at, bottom + 16, number(value), anchor="middle"))
        for value in self.y.ticks():
            at = self.y(value)
            parts.append(f'<path class="grid" d="M{left},{at:.1f}H{right}"/>')
            parts.append(text(left - 6, at + 4, number(value), anchor="end"))
        parts.append(text((left + right) / 2, bottom + 34, x_label, anchor="middle"))
        parts.append(text(left, top - 10, y_label))
        return "".join(parts)


def number(value: float) -> str:
    """Write a tick: shares below 1 % with as many digits as they need, no trailing zeros."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if abs(value) < 1e4 else f"{value:g}"


def text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> str:
    """Return one line of text; anchor: 'start', 'middle' or 'end'."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def legend(x: float, y: float, names: Iterable[tuple[str, str]]) -> str:
    """Return names with a sample of their stroke, one a line; names: (text, style)."""
    parts = []
    for row, (name, style) in enumerate(names):
        at = y + 18 * row
        parts.append(f'<path class="line {style}" d="M{x},{at}h22"/>' + text(x + 28, at + 4, name))
    return "".join(parts)


def chart(width: int, height: int, label: str, *parts: str) -> str:
    """Return an SVG picture; ``label`` is what a screen reader says."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{_quoted(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def standalone(picture: str) -> str:
    """Return the picture as a file of its own, on white, with the colours filled in."""
    colours = dict(re.findall(r"(--[\w-]+):\s*([^;]+);", STYLE.split("@media")[0]))
    style = re.sub(r"var\((--[\w-]+)\)", lambda match: colours[match[1]], STYLE.split("/* strokes */")[1])
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', picture)
    assert size is not None
    opened = picture.replace("<svg ", f'<svg width="{size[1]}" height="{size[2]}" ', 1)
    head, rest = opened.split(">", 1)
    return f'{head}><style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{rest}\n'


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""


def _quoted(words: str) -> str:
    return escape(words, {'"': "&quot;"})
