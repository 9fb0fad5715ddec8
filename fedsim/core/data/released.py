"""What whoever serves or asks a released model must know of its table, and raw records as its features.

A run folder keeps it as ``schema.json``. Where a party is under DP, everything in it was declared or learnt
from public records; else private records may have told the classes and how columns are written (DESIGN §7).

`encode_rows` gives a record the features that `encode.encode` gave it in training, without a table: a service
encodes one record in microseconds where pandas takes ten milliseconds. The tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.core.data import dates, numbers
from fedsim.core.data.columns import Reading
from fedsim.core.data.dates import DateStyle
from fedsim.core.data.encode import REACH
from fedsim.core.data.numbers import Spelling
from fedsim.core.data.schema import Column, Schema
from fedsim.core.data.table import numeric, texts
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import read_json, write_json
from fedsim.core.scenario.settings import DataSettings

FILE = "schema.json"

LONGEST = 100
"""Characters of a number or a date: some patterns take the square of a text's length."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Cell = str | int | float | bool | None
"""A raw value; None: missing."""


@dataclass(frozen=True)
class ReleasedSchema:
    """The feature columns, the classes, how numbers and dates are written, and missing values beside None.

    schema: every column declared; no party, no person
    written: column → how its text is read; the others as `table.numeric` reads it
    """

    schema: Schema
    spellings: tuple[str, ...]
    written: Mapping[str, Spelling | DateStyle] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Number of features of a record."""
        return sum(_width(column) for column in self.schema.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record's features."""
        return self.schema.image or (self.width,)

    @cached_property
    def places(self) -> dict[str, dict[str, int]]:
        """Category column → spelling → place among its features."""
        return {
            column.name: _places(column.categories or ())
            for column in self.schema.columns
            if column.kind == "category"
        }

    def is_date(self, name: str) -> bool:
        """Whether a column's cells are dates as people write them."""
        return isinstance(self.written.get(name), DateStyle)

    @cached_property
    def missing_numbers(self) -> frozenset[float]:
        """Spellings of a missing value that are numbers, such as −9."""
        return frozenset(filter(math.isfinite, map(_as_float, self.spellings)))


def release_schema(
    schema: Schema, settings: DataSettings, readings: Mapping[str, Reading] | None = None
) -> ReleasedSchema:
    """Return what is released of ``schema``, which must be wholly declared.

    A scenario's own files have its spellings of a missing value. A named set has those of its publisher,
    all among the usual ones; a category of the set that is spelled like one of them stays a category.

    Raises:
        ValueError: a column is undeclared.
    """
    if schema.undeclared:
        raise ValueError(f"undeclared columns: {schema.undeclared}")
    spellings = tuple(text.strip() for text in settings.missing)
    if settings.path is None:
        known = {value for column in schema.columns for value in column.categories or ()}
        spellings = tuple(text for text in spellings if text not in known)
    written = {
        column.name: style
        for column in schema.columns
        if column.kind == "number" and (style := _style((readings or {}).get(column.name))) is not None
    }
    own = Schema(schema.columns, schema.label, schema.classes, image=schema.image)
    return ReleasedSchema(own, spellings, written)


def _style(reading: Reading | None) -> Spelling | DateStyle | None:
    return None if reading is None else reading.number or reading.date


def to_json(released: ReleasedSchema) -> dict[str, Any]:
    """Return the schema as JSON values; `from_json` undoes it."""
    schema = released.schema
    return {
        "label": schema.label,
        "classes": list(schema.classes),
        "columns": [asdict(column) | _written(released, column) for column in schema.columns],
        "image": schema.image,
        "missing": list(released.spellings),
    }


def _written(released: ReleasedSchema, column: Column) -> dict[str, Any]:
    style = released.written.get(column.name)
    if style is None:
        return {}
    return {"dates": style.words} if isinstance(style, DateStyle) else {"numbers": asdict(style)}


def _as_written(entry: Mapping[str, Any]) -> Spelling | DateStyle | None:
    if "dates" in entry:
        return {style.words: style for style in dates.STYLES}[entry["dates"]]
    return Spelling(**entry["numbers"]) if "numbers" in entry else None


def from_json(document: Mapping[str, Any]) -> ReleasedSchema:
    """Undo `to_json`.

    Raises:
        KeyError, TypeError, ValueError: it is no such document.
    """
    columns = tuple(
        Column(
            entry["name"],
            entry["kind"],
            None if entry["bounds"] is None else (float(entry["bounds"][0]), float(entry["bounds"][1])),
            None if entry["categories"] is None else tuple(entry["categories"]),
            bool(entry["missing"]),
            bool(entry["other"]),
        )
        for entry in document["columns"]
    )
    image = None if document["image"] is None else tuple(document["image"])
    schema = Schema(columns, document["label"], tuple(document["classes"]), image=image)
    if schema.undeclared:
        raise ValueError(f"undeclared columns: {schema.undeclared}")
    written = {
        entry["name"]: style for entry in document["columns"] if (style := _as_written(entry)) is not None
    }
    return ReleasedSchema(schema, tuple(document["missing"]), written)


def write_schema(folder: Path, released: ReleasedSchema) -> None:
    """Write ``schema.json`` into a run's folder."""
    write_json(folder / FILE, to_json(released))


def read_schema(folder: Path) -> ReleasedSchema:
    """Read what `write_schema` wrote.

    Raises:
        InputError: the file is missing or corrupt.
    """
    path = folder / FILE
    if not path.exists():
        raise InputError(f"{path} is missing: an earlier fedsim made this run; `fedsim run` it again")
    try:
        return from_json(read_json(path))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"cannot read {path}: it is not the schema of a table ({error})") from error


# ------------------------------------------------------------------------------------------- raw → features
def encode_rows(released: ReleasedSchema, rows: Sequence[Mapping[str, Cell]]) -> np.ndarray:
    """Return the features of raw records, (n, *shape) float32, bit for bit as in training.

    rows: column → value; every feature column and no other. A category that nobody declared counts as unseen.

    Raises:
        InputError: naming the record (from 1) and the column, never the value: it may be a person's.
    """
    names = frozenset(released.schema.names)
    for number, row in enumerate(rows, start=1):
        if row.keys() != names:
            raise _wrong_columns(number, row, names)
    features = np.zeros((len(rows), released.width), dtype=np.float32)
    start = 0
    for column in released.schema.columns:
        cells = [row[column.name] for row in rows]
        block = features[:, start : start + _width(column)]
        if column.kind == "category":
            _fill_one_hot(block, cells, column, released)
        else:
            _fill_number(block, cells, column, released)
        start += block.shape[1]
    return features.reshape(-1, *released.shape)


def _width(column: Column) -> int:
    return len(column.categories or ()) if column.kind == "category" else 1 + column.missing


def _places(categories: Iterable[str]) -> dict[str, int]:
    spelled = texts(pd.Series(list(categories), dtype=object))
    return {value: place for place, value in reversed(list(enumerate(spelled)))}


def _wrong_columns(number: int, row: Mapping[str, Cell], names: frozenset[str]) -> InputError:
    absent, unknown = sorted(names - row.keys()), sorted(map(str, row.keys() - names))
    if unknown:  # its name stays unsaid: what was sent by mistake may be anything
        near = suggestion(unknown[0][:100], names)
        return InputError(f"record {number} has a column that the model does not know{near}")
    return InputError(f"record {number} has no column '{absent[0]}'; a missing value is null")


def _fill_one_hot(block: np.ndarray, cells: Sequence[Cell], column: Column, released: ReleasedSchema) -> None:
    """Write zeros and ones into ``block``, (n, categories); see `encode._one_hot`."""
    places = released.places[column.name]
    unseen = len(places) - 1 if column.other else None
    for index, cell in enumerate(cells):
        if cell is None:
            continue
        _check_type(cell, index, column)
        spelled = str(cell).strip()
        place = places.get(spelled)
        if place is None and "." in spelled:  # '1.0' is the category '1'
            place = places.get(texts(pd.Series([spelled], dtype=object))[0])
        if place is None:
            place = unseen
        if place is not None and not _is_missing(cell, spelled, released):
            block[index, place] = 1


def _is_missing(cell: Cell, spelled: str, released: ReleasedSchema) -> bool:
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    return spelled in released.spellings or (is_number and cell in released.missing_numbers)


def _fill_number(block: np.ndarray, cells: Sequence[Cell], column: Column, released: ReleasedSchema) -> None:
    """Write scaled numbers into ``block``, (n, 1), or (n, 2) with the missing indicator."""
    low, high = column.bounds or (0.0, 1.0)
    values = _values(cells, column, released)
    missing = np.isnan(values)
    if released.schema.image is not None:
        pixels = (values.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        block[:, 0] = np.nan_to_num(np.clip(pixels, 0, 1))
        return
    scaled = REACH * (2 * (np.clip(values, low, high) - low) / (high - low) - 1)
    block[:, 0] = np.where(missing, 0.0, scaled)
    if column.missing:
        block[:, 1] = missing


def _values(cells: Sequence[Cell], column: Column, released: ReleasedSchema) -> np.ndarray:
    """Return (n,) float64 numbers; NaN where a cell is missing.

    Training counts what it cannot read as missing; here whoever asks is told.
    """
    style = released.written.get(column.name)
    values = np.full(len(cells), np.nan)
    written: dict[int, str] = {}
    for index, cell in enumerate(cells):
        if cell is None:
            continue
        _check_type(cell, index, column)
        if isinstance(cell, bool) or (isinstance(style, DateStyle) and isinstance(cell, float)):
            raise _unreadable(index, column, style)
        if isinstance(cell, str) or isinstance(style, DateStyle):  # 20240131 is a day as people write it
            text = str(cell).strip() if isinstance(cell, str) or abs(cell) < 1e15 else ""
            if text not in released.spellings:
                written[index] = text
        else:
            values[index] = _as_float(cell)
            written |= {} if math.isfinite(values[index]) else {index: ""}
    values[list(written)] = _read(list(written.values()), style)
    for index in written:
        if math.isnan(values[index]):
            raise _unreadable(index, column, style)
    codes = np.isin(values, list(released.missing_numbers))
    if style is None:  # of text that is read as it is, only the very spellings are missing
        codes[list(written)] = False
    values[codes] = np.nan
    return values


def _read(spelled: Sequence[str], style: Spelling | DateStyle | None) -> np.ndarray:
    """Return (n,) float64 numbers, or days since 1970-01-01, of stripped texts; NaN: cannot be read."""
    # Half of a surrogate pair, which JSON can spell, is no text to pandas.
    usable = [text if len(text) <= LONGEST and _is_unicode(text) else "" for text in spelled]
    if not usable:
        return np.empty(0)
    if style is None:
        return numeric(pd.Series(usable, dtype=object))
    if isinstance(style, Spelling):
        return numbers.read(pd.Series(usable, dtype="str"), style)
    days = dates.days(usable, style)
    return np.where(np.isnan(days), dates.days(usable, dates.STYLES[0]), days)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _as_float(cell: float | str) -> float:
    """Return a cell as a number; infinity where it is none, or has more than 308 digits."""
    try:
        return float(cell)
    except (OverflowError, ValueError):
        return math.inf


def _check_type(cell: object, index: int, column: Column) -> None:
    if not isinstance(cell, str | int | float):
        kind = "a number" if column.kind == "number" else "a category"
        raise InputError(f"record {index + 1}: column '{column.name}' takes {kind} or null, nothing nested")


def _unreadable(index: int, column: Column, style: Spelling | DateStyle | None) -> InputError:
    if isinstance(style, DateStyle):
        return InputError(
            f"record {index + 1}: column '{column.name}' takes a date, {style.words} or YYYY-MM-DD, or null"
        )
    return InputError(f"record {index + 1}: column '{column.name}' takes a finite number or null")


# ------------------------------------------------------------------------------------------- features → raw
def decode_rows(released: ReleasedSchema, features: np.ndarray) -> list[dict[str, Cell]]:
    """Return raw records whose features are nearest to ``features``, (n, *shape) float32.

    Features of a real record come back as they were, to the last bits of a float32. Others are moved to what
    a table can say: numbers into their bounds, categories to one value or none.
    """
    flat = features.reshape(len(features), -1).astype(np.float64)
    columns: list[list[Cell]] = []
    start = 0
    for column in released.schema.columns:
        block = flat[:, start : start + _width(column)]
        if column.kind == "category":
            columns.append(_categories(block, column))
        else:
            columns.append(_numbers(block, column, released.is_date(column.name)))
        start += block.shape[1]
    if released.schema.image is not None:
        columns = [_pixel_values(flat[:, i], column) for i, column in enumerate(released.schema.columns)]
    names = released.schema.names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _categories(block: np.ndarray, column: Column) -> list[Cell]:
    known = column.categories or ()
    if not known:
        return [None] * len(block)
    places, tops = block.argmax(axis=1), block.max(axis=1)
    return [known[place] if top > 0.5 else None for place, top in zip(places, tops, strict=True)]


def _numbers(block: np.ndarray, column: Column, dated: bool) -> list[Cell]:
    low, high = column.bounds or (0.0, 1.0)
    values = np.clip(low + (block[:, 0] / REACH + 1) / 2 * (high - low), low, high)
    missing = block[:, 1] > 0.5 if column.missing else np.zeros(len(block), dtype=bool)
    said = [iso_date(value) if dated else float(value) for value in values.tolist()]
    return [None if gone else value for value, gone in zip(said, missing, strict=True)]


def random_rows(released: ReleasedSchema, n: int, stream: np.random.Generator) -> list[dict[str, Cell]]:
    """Return raw records whose cells are drawn apart from each other, uniformly on what a column can say."""
    columns: list[list[Cell]] = []
    for column in released.schema.columns:
        if column.kind == "category":
            known = column.categories or ()
            columns.append([known[i] for i in stream.integers(len(known), size=n)] if known else [None] * n)
            continue
        low, high = column.bounds or (0.0, 1.0)
        values = stream.uniform(low, high, n).tolist()
        columns.append([iso_date(value) for value in values] if released.is_date(column.name) else values)
    names = released.schema.names
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def iso_date(days: float) -> str:
    """Return days since 1970-01-01 as ISO 8601, in UTC, to the microsecond."""
    within = min(max(days, -719_162.0), 2_932_896.0)  # the years 1 to 9999
    return (EPOCH + timedelta(days=within)).replace(tzinfo=None).isoformat(timespec="microseconds")


def _pixel_values(pixels: np.ndarray, column: Column) -> list[Cell]:
    low, high = column.bounds or (0.0, 1.0)
    return [float(value) for value in low + np.clip(pixels, 0, 1) * (high - low)]
