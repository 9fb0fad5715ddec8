"""Which encoded features belong to which column of the table: public, and all that is needed to read a row.

A number, or a date, takes one feature, two where it may be missing (the second says so); a category takes one
per known value, all zero where the cell is missing or unseen. A pixel is a number on [0, 1], any other number
lies on [−REACH, REACH] (`fedsim.core.data.encode`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.core.data.encode import REACH, Encoded
from fedsim.core.data.schema import Bounds, Column
from fedsim.core.errors import InputError, plainly, suggestion
from fedsim.core.files import read_json, write_json

LAYOUT = "layout.json"


@dataclass(frozen=True)
class ColumnLayout:
    """Where a column lies in a flattened row of features.

    start, stop: its features are ``row[start:stop]``
    categories: the known values of a category, one feature each, 'other' last where the encoder gathers the
        rest; empty for a number
    missing: whether a number's second feature tells that it is missing
    low, high: encoded range of a number's first feature
    bounds: the same range in the column's own unit, of a date in days since 1970; None for a category
    """

    name: str
    kind: Literal["number", "category"]
    start: int
    stop: int
    categories: tuple[str, ...] = ()
    missing: bool = False
    low: float = -REACH
    high: float = REACH
    bounds: Bounds | None = None

    @property
    def features(self) -> slice:
        """The column's place in a flattened row."""
        return slice(self.start, self.stop)

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Return (n,) bool, whether the cell is neither missing nor unseen; rows: (n, d)."""
        block = rows[:, self.features]
        if self.kind == "category":
            return np.asarray(block.sum(axis=1) > 0)
        return block[:, 1] == 0 if self.missing else np.ones(len(rows), dtype=bool)

    def in_unit(self, encoded: float) -> float:
        """Return an encoded number in the column's own unit."""
        low, high = self.bounds or (self.low, self.high)
        return low + (encoded - self.low) / (self.high - self.low) * (high - low)


Layout = tuple[ColumnLayout, ...]


def of(encoded: Encoded) -> Layout:
    """Return the layout of encoded records.

    Raises:
        ValueError: they do not say which columns their features are of.
    """
    if encoded.features.ndim > 2:
        bounds = encoded.feature_columns[0].bounds if encoded.feature_columns else None
        return _pixels(encoded.feature_names, bounds)
    columns: list[ColumnLayout] = []
    start = 0
    for column in encoded.feature_columns:
        columns.append(_placed(column, start))
        start = columns[-1].stop
    if start != encoded.features.shape[1]:
        raise ValueError(f"{encoded.name}: {encoded.features.shape[1]} features, the columns have {start}")
    return tuple(columns)


def _placed(column: Column, start: int) -> ColumnLayout:
    """Return the column's place from ``start`` on, as `encode` lays it out."""
    if column.kind == "number":
        stop = start + 1 + column.missing
        return ColumnLayout(
            column.name, "number", start, stop, missing=column.missing, bounds=column.bounds or (0.0, 1.0)
        )
    values = column.categories or ()
    return ColumnLayout(column.name, "category", start, start + len(values), values)


def _pixels(names: tuple[str, ...], bounds: Bounds | None) -> Layout:
    return tuple(
        ColumnLayout(name, "number", i, i + 1, low=0.0, high=1.0, bounds=bounds or (0.0, 1.0))
        for i, name in enumerate(names)
    )


def column_of(layout: Layout, name: str, option: str = "--column") -> ColumnLayout:
    """Return the column called ``name``, which was named by an ``option``.

    Raises:
        InputError: there is none.
    """
    by_name = {column.name: column for column in layout}
    if name not in by_name:
        raise InputError(f"{option} {name}: no such column{suggestion(name, by_name)}")
    return by_name[name]


def write_layout(folder: Path, layout: Layout) -> None:
    """Write ``layout.json`` into a run's folder; of pixels, which are alike, only the names and bounds."""
    if layout == _pixels(tuple(column.name for column in layout), layout[0].bounds):
        pixels = {"names": [column.name for column in layout], "bounds": layout[0].bounds}
        write_json(folder / LAYOUT, {"pixels": pixels})
    else:
        write_json(folder / LAYOUT, {"columns": [asdict(column) for column in layout]})


def read_layout(folder: Path) -> Layout:
    """Read what `write_layout` wrote.

    Raises:
        InputError: the file is missing (a run of an older version) or corrupt.
    """
    path = folder / LAYOUT
    if not path.exists():
        raise InputError(f"{folder} has no {LAYOUT}: an older fedsim made this run; run it again")
    document = read_json(path)
    try:
        if "pixels" in document:
            pixels = document["pixels"]
            return _pixels(tuple(pixels["names"]), _bounds(pixels["bounds"]))
        return tuple(_column(entry) for entry in document["columns"])
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"cannot read {path}: {plainly(error)}") from error


def _column(entry: dict[str, Any]) -> ColumnLayout:
    lifted = {"categories": tuple(entry["categories"]), "bounds": _bounds(entry["bounds"])}
    return ColumnLayout(**{**entry, **lifted})


def _bounds(pair: list[float] | None) -> Bounds | None:
    if pair is None:
        return None
    low, high = pair
    return float(low), float(high)
