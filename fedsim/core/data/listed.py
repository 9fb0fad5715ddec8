"""Persons in a file of one's own, read as a released model's table reads them: who is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data.records import Records
from fedsim.core.data.released import Cell, ReleasedSchema, encode_rows
from fedsim.core.data.table import read_frame, texts
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import DataSettings

YES, NO = ("1", "true", "yes", "member"), ("0", "false", "no", "non-member")
"""How a file may say who is a member; case does not matter."""


@dataclass(frozen=True, eq=False)
class Persons:
    """Records of a file, in its order.

    truth: (n,) bool, who is a member, None where no column was said to tell. No attack is handed it.
    """

    records: Records
    truth: np.ndarray | None = None


def read_persons(path: Path, released: ReleasedSchema, truth: str | None = None) -> Persons:
    """Read a table with the released columns and the label; others are left aside.

    truth: the column that says who is a member

    Raises:
        InputError: a column is missing, or a record does not fit the table; naming file, record and column.
    """
    frame, _ = read_frame(path, DataSettings(missing=sorted({"", *released.spellings})))
    names = [str(name) for name in frame.columns]
    label = released.schema.label
    wanted = [*released.schema.names, *([label] if label is not None else []), *([truth] if truth else [])]
    for name in wanted:
        if name not in names:
            raise InputError(f"{path}: column '{name}' is missing{suggestion(name, names)}")
    rows = _rows(frame[list(released.schema.names)])
    try:
        features = encode_rows(released, rows)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    labels = _labels(path, frame[label], released.schema.classes)
    return Persons(Records(features, labels), _truth(path, frame[truth], truth) if truth else None)


def _rows(frame: pd.DataFrame) -> list[dict[str, Cell]]:
    columns = {name: [_cell(value) for value in frame[name]] for name in frame.columns}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _cell(value: object) -> Cell:
    """Return a cell as JSON would say it."""
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, str | int | float | bool) else str(value)


def _labels(path: Path, column: pd.Series, classes: tuple[str, ...]) -> np.ndarray:
    """Return (n,) int64 class indices."""
    places = {name: place for place, name in enumerate(texts(pd.Series(list(classes), dtype=object)))}
    spelled = texts(column)
    for number, text in enumerate(spelled, start=1):
        if text not in places:
            raise InputError(
                f"{path}: record {number}: column '{column.name}' is none of the classes "
                f"{', '.join(classes[:10])}"
            )
    return np.array([places[text] for text in spelled], dtype=np.int64)


def _truth(path: Path, column: pd.Series, name: str) -> np.ndarray:
    """Return (n,) bool."""
    spelled = [str(text).lower() for text in texts(column)]
    for number, text in enumerate(spelled, start=1):
        if text not in YES + NO:
            raise InputError(f"{path}: record {number}: column '{name}' takes {', '.join((*YES, *NO))}")
    return np.array([text in YES for text in spelled])
