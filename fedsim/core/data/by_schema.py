"""An organisation's own table, encoded by a schema that was fixed elsewhere: bounds, categories, classes.

What `encode.encode` learns from a table is public here and given: a node's records decide nothing of how they
are read, and two nodes encode equal cells alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data import columns
from fedsim.core.data.columns import Reading
from fedsim.core.data.dates import DateStyle
from fedsim.core.data.encode import class_indices, features_of, first_of_equals
from fedsim.core.data.numbers import Spelling
from fedsim.core.data.records import Records
from fedsim.core.data.released import ReleasedSchema
from fedsim.core.data.table import read_frame, texts
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import DataSettings


@dataclass(frozen=True, eq=False)
class OwnTable:
    """The records of a table that have a known label, equal ones once.

    person: (n,) int64 whose each record is, None where no column names persons. rows: (n,) their rows in the
        file, from 0. notices: what became of the others, for the eyes of whoever owns the table.
    """

    records: Records
    person: np.ndarray | None
    rows: np.ndarray
    notices: tuple[str, ...]


def read_own(
    path: Path, released: ReleasedSchema, settings: DataSettings, person: str | None = None
) -> OwnTable:
    """Read and encode a table by ``released``.

    settings: of the federation's scenario, for its spellings of a missing value and how files are written

    Raises:
        InputError: the file cannot be read, lacks a column, or no record has a known label.
    """
    settings = settings.model_copy(update={"path": str(path), "missing": list(released.spellings)})
    frame, notices = read_frame(path, settings)
    schema = released.schema
    for name in filter(None, (*schema.names, schema.label, person)):
        if name not in frame:
            raise InputError(f"{path}: there is no column '{name}'{suggestion(name, frame.columns)}")
    frame, odd = columns.apply(frame, _readings(released), settings.missing)
    notices += columns.odd_notices(odd)
    labels = class_indices(frame[schema.label], schema.classes)
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        classes = ", ".join(f"'{value}'" for value in schema.classes[:8])
        raise InputError(f"{path}: no record has a '{schema.label}' of the federation's: {classes}")
    if len(known) < len(frame):
        notices.append(f"{len(frame) - len(known)} record(s) without a known '{schema.label}' were dropped")
    features, _, unreadable = features_of(frame.iloc[known].reset_index(drop=True), schema, str(path))
    records = Records(features, labels[known])
    first = np.sort(first_of_equals(records.features, records.labels.astype(np.uint64)))
    if len(first) < len(known):
        notices.append(f"{len(known) - len(first)} duplicate record(s) were removed")
    rows = known[first]
    owner = None if person is None else _numbered(frame[person].iloc[rows])
    return OwnTable(records.take(first), owner, rows, (*notices, *unreadable))


def _readings(released: ReleasedSchema) -> Mapping[str, Reading]:
    return {name: _reading(style) for name, style in released.written.items()}


def _reading(style: Spelling | DateStyle) -> Reading:
    return Reading(date=style) if isinstance(style, DateStyle) else Reading(number=style)


def _numbered(cells: pd.Series) -> np.ndarray:
    """Return (n,) int64, whose each record is; a missing one is a person of its own."""
    codes = pd.factorize(texts(cells), use_na_sentinel=True)[0].astype(np.int64)
    alone = codes < 0
    codes[alone] = -1 - np.arange(alone.sum())
    return codes
