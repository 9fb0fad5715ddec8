"""Which encoded features belong to which column of the table: public, and all that is needed to read a row.

A number takes one feature, two where it may be missing (the second says so); a category takes one per known
value, all zero where the cell is missing or unseen. A pixel is a number on [0, 1], any other number lies on
[−REACH, REACH] (`fedsim.core.data.encode`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.core.data import catalogue
from fedsim.core.data.encode import REACH, Encoded
from fedsim.core.data.schema import Bounds
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import read_json, write_json
from fedsim.core.scenario.settings import DataSettings

LAYOUT = "layout.json"
_INDICATOR = " missing"


@dataclass(frozen=True)
class ColumnLayout:
    """Where a column lies in a flattened row of features.

    start, stop: its features are ``row[start:stop]``
    categories: the known values of a category, one feature each; empty for a number
    missing: whether a number's second feature tells that it is missing
    low, high: encoded range of a number's first feature
    bounds: the same range in the column's own unit; None where it was learnt from public records
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
        """Return an encoded number in the column's own unit, as it is where the bounds are not declared."""
        if self.bounds is None:
            return encoded
        low, high = self.bounds
        return low + (encoded - self.low) / (self.high - self.low) * (high - low)


Layout = tuple[ColumnLayout, ...]


def of(encoded: Encoded, bounds: Mapping[str, Bounds] | None = None) -> Layout:
    """Return the layout of encoded records; bounds: declared ones by column name."""
    if encoded.features.ndim > 2:
        names = enumerate(encoded.feature_names)
        return tuple(ColumnLayout(name, "number", i, i + 1, low=0.0, high=1.0) for i, name in names)
    return of_names(encoded.feature_names, bounds or {})


def of_names(names: Sequence[str], bounds: Mapping[str, Bounds]) -> Layout:
    """Return the layout of a table's features by their names: 'age', 'age missing', 'ward=A', 'ward=B'."""
    columns: list[ColumnLayout] = []
    start = 0
    while start < len(names):
        column, is_value, _ = names[start].partition("=")
        if is_value:
            stop = start
            while stop < len(names) and names[stop].startswith(f"{column}="):
                stop += 1
            values = tuple(name[len(column) + 1 :] for name in names[start:stop])
            columns.append(ColumnLayout(column, "category", start, stop, values))
        else:
            missing = names[start + 1 : start + 2] == (column + _INDICATOR,)
            stop = start + 1 + missing
            known = bounds.get(column)
            columns.append(ColumnLayout(column, "number", start, stop, missing=missing, bounds=known))
        start = stop
    return tuple(columns)


def declared_bounds(settings: DataSettings, sector: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Return the bounds that are declared of a scenario's columns: its own, else the schema's or sector's."""
    schema = catalogue.get(settings.name).schema.columns if settings.name else ()
    own = {column.name: column.bounds for column in schema if column.bounds}
    return {**sector, **own, **settings.bounds}


def column_of(layout: Layout, name: str) -> ColumnLayout:
    """Return the column called ``name``.

    Raises:
        InputError: there is none.
    """
    by_name = {column.name: column for column in layout}
    if name not in by_name:
        raise InputError(f"--column {name}: no such column{suggestion(name, by_name)}")
    return by_name[name]


def write_layout(folder: Path, layout: Iterable[ColumnLayout]) -> None:
    """Write ``layout.json`` into a run's folder."""
    write_json(folder / LAYOUT, [asdict(column) for column in layout])


def read_layout(folder: Path) -> Layout:
    """Read what `write_layout` wrote.

    Raises:
        InputError: the file is missing (a run of an older version) or corrupt.
    """
    if not (folder / LAYOUT).exists():
        raise InputError(f"{folder} has no {LAYOUT}: an older fedsim made this run; run it again")
    try:
        return tuple(_column(entry) for entry in read_json(folder / LAYOUT))
    except (TypeError, KeyError) as error:
        raise InputError(f"cannot read {folder / LAYOUT}: {error}") from error


def _column(entry: dict[str, Any]) -> ColumnLayout:
    bounds = entry["bounds"]
    lifted = {"categories": tuple(entry["categories"]), "bounds": None if bounds is None else tuple(bounds)}
    return ColumnLayout(**{**entry, **lifted})
