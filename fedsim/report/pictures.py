"""Pictures of what was asked beside membership: intervals by name, typical records as images or rows."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from fedsim.core.data.layout import ColumnLayout, read_layout
from fedsim.core.files import read_arrays
from fedsim.core.run_directory import RunDirectory
from fedsim.report.svg import Frame, Scale, chart, number, text

MOST_CLASSES, MOST_COLUMNS = 12, 14

SOURCES = ("class mean", "released", "released from mean", "rounds")


def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    label: str,
    span: tuple[float, float],
    mark: float | None,
) -> str:
    """Draw one line a row: (name, value, low, high) on an axis over ``span``, a dashed line at ``mark``."""
    height = 64 + 22 * len(rows)
    frame = Frame(Scale(*span, 304, 590), Scale(0, 1, height - 40, 14))
    parts = [] if mark is None else [frame.line([(mark, 0), (mark, 1)], "chance", "guessing")]
    for tick in frame.x.ticks():
        parts.append(text(frame.x(tick), height - 22, number(round(tick, 6)), anchor="middle"))
    parts.append(text(447, height - 5, label, anchor="middle"))
    for row, (name, value, low, high) in enumerate(rows):
        y = 26 + 22 * row
        parts.append(text(294, y + 4, name, anchor="end"))
        if math.isfinite(value):
            parts.append(f'<path class="line s0" d="M{frame.x(low):.1f},{y}H{frame.x(high):.1f}"/>')
            parts.append(f'<circle class="dot s0" cx="{frame.x(value):.1f}" cy="{y}" r="4"/>')
            parts.append(text(598, y + 4, f"{value:.2f} ({low:.2f} to {high:.2f})"))
    return chart(750, height, label, *parts)


def typical_images(run: RunDirectory) -> str:
    """Draw the typical records of game 0, a row per source, a column per class; '' if they are no images."""
    shape = [int(n) for n in run.manifest.get("input_shape", [])]
    side = _side(run, shape)
    if side is None:
        return ""
    rows = _typical(run)
    size, left = 52, 132
    classes = min(MOST_CLASSES, max((len(records) for records in rows.values()), default=0))
    parts = []
    for line, (source, records) in enumerate(rows.items()):
        y = 8 + line * (size + 6)
        parts.append(text(left - 8, y + size / 2 + 4, source, anchor="end"))
        for label in range(classes):
            data = base64.b64encode(png(records[label].reshape(-1, *side)[0])).decode()
            parts.append(
                f'<image x="{left + label * (size + 4)}" y="{y}" width="{size}" height="{size}" '
                f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
            )
    bottom = 8 + len(rows) * (size + 6)
    for label in range(classes):
        name = str(run.manifest["classes"][label])
        parts.append(text(left + label * (size + 4) + size / 2, bottom + 12, name, anchor="middle"))
    width = left + classes * (size + 4) + 8
    return chart(width, bottom + 24, "Typical records of each class, as images", *parts)


def _side(run: RunDirectory, shape: Sequence[int]) -> tuple[int, int] | None:
    """Return height and width of a record that is an image; digits' 64 pixels come as a row."""
    if len(shape) == 3:
        return shape[1], shape[2]
    layout = read_layout(run.path)
    side = math.isqrt(len(layout))
    pixels = all(c.kind == "number" and (c.low, c.high) == (0.0, 1.0) for c in layout)
    pixels = pixels or all(c.name.startswith("pixel") for c in layout)
    return (side, side) if pixels and side * side == len(layout) and side > 3 else None


def _typical(run: RunDirectory) -> dict[str, np.ndarray]:
    """Return the typical records of game 0 for all parties together, by source, (C, d) each."""
    arrays = read_arrays(run.path / "inverted.safetensors")
    return {source: arrays[f"0/{source}/all"] for source in SOURCES if f"0/{source}/all" in arrays}


def png(pixels: np.ndarray) -> bytes:
    """Return a grey image of (height, width) values, their range stretched to black … white, as PNG."""
    low, high = float(pixels.min()), float(pixels.max())
    grey = np.round(255 * (pixels - low) / (high - low if high > low else 1.0)).astype(np.uint8)
    height, width = pixels.shape
    lines = b"".join(b"\0" + grey[k].tobytes() for k in range(height))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def typical_rows(run: RunDirectory) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the typical records of game 0 as a table: a line per column of the data, two cells a class.

    The cells are those of the class mean of the adversary's own records, and of the released model's.
    """
    rows, layout = _typical(run), read_layout(run.path)[:MOST_COLUMNS]
    classes = [str(name) for name in run.manifest["classes"]][:4]
    shown = [source for source in ("class mean", "released") if source in rows]
    heads = ("column", *(f"{source}, {name}" for name in classes for source in shown))
    lines = [
        (column.name, *(_cell(column, rows[source][k]) for k in range(len(classes)) for source in shown))
        for column in layout
    ]
    return heads, tuple(lines)


def _cell(column: ColumnLayout, row: np.ndarray) -> str:
    block = row[column.features]
    if column.kind == "number":
        return f"{column.in_unit(float(block[0])):.4g}"
    return str(column.categories[int(block.argmax())])
