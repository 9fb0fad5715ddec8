"""From a table to arrays, by public knowledge only.

The rule (DESIGN §7): bounds, vocabularies and kinds come from what is declared, else from public records:
a table of them, or a share of the records that is set aside for good. Changing any private record changes
that record's own features and nothing else.

Numbers are clipped to their bounds and mapped linearly to [-REACH, REACH]; a missing number lies in the
middle. Categories are one-hot; a missing or unseen one is all zeros. Pixels are mapped to [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data.records import Records
from fedsim.core.data.schema import Bounds, Column, Schema, declare
from fedsim.core.data.table import Table, numeric, read_frame, sha256, texts
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import DataSettings

# Clinical bounds are four to six standard deviations wide: on [-2, 2] most columns get one near 0.5 to 1.
REACH = 2.0
# How many records are set aside as public: at least AT_LEAST, at most one in ONE_IN.
AT_LEAST, ONE_IN, TOO_FEW = 20, 5, 5
# Share of a column's public values that must be numbers for the column to be one.
MOSTLY_NUMBERS = 0.9
MAX_CATEGORIES = 100


@dataclass(frozen=True)
class Encoded:
    """All records of a table as arrays, in an order of their own.

    features: (n, d) or (n, channels, height, width) float32
    labels: (n,) int64, indices into ``classes``
    party, person: (n,) objects (text), or None where the table has no such column
    notices: what a person should know of the encoding, one sentence each
    hashes: SHA-256 by file name
    public: public records with a label, encoded alike; None where there are none. They are in no party.
    schema: by which the records were encoded, every column declared or learnt from public records
    """

    features: np.ndarray
    labels: np.ndarray
    party: np.ndarray | None
    person: np.ndarray | None
    feature_names: tuple[str, ...]
    classes: tuple[str, ...]
    notices: tuple[str, ...]
    hashes: dict[str, str]
    name: str = "table"
    public: Records | None = None
    schema: Schema | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def records(self, index: np.ndarray | slice = slice(None)) -> Records:
        """Return the records at ``index``, without their keys."""
        return Records(self.features[index], self.labels[index])

    def take(self, index: np.ndarray, *notices: str) -> Encoded:
        """Return the records at ``index`` (integers or a boolean mask) with their keys; add ``notices``."""
        return replace(
            self,
            features=self.features[index],
            labels=self.labels[index],
            party=None if self.party is None else self.party[index],
            person=None if self.person is None else self.person[index],
            notices=(*self.notices, *notices),
        )


def encode(
    table: Table,
    settings: DataSettings,
    generator: np.random.Generator,
    sector_bounds: Mapping[str, Bounds] | None = None,
) -> Encoded:
    """Encode ``table`` by its schema, the settings, the sector's typical bounds and public records.

    generator: draws the records set aside as public and the subset of ``max_records``.
    sector_bounds: typical bounds by lower-case column name.

    Raises:
        InputError: a setting names no column or contradicts another, a column declared a number holds none,
            or there are too few records to set public ones aside.
    """
    schema = declare(table.schema, settings, table.name, sector_bounds)
    frame, notices = _usable(table.frame, schema)
    notices = [*table.notices, *_borrowed(table.schema, schema, settings), *notices]
    hashes = dict(table.source_hashes)
    public = None if settings.public is None else _public_table(settings, ())
    if schema.undeclared:
        public, frame, said = _public(frame, schema, settings, generator, table.name)
        schema, dropped = learn(schema, public)
        notices += [said, *dropped]
    if settings.public is not None:
        hashes[f"public/{Path(settings.public).name}"] = sha256(Path(settings.public))
    frame, drawn = _subset(frame, schema, settings.max_records, generator)
    features, names, unreadable = _features(frame, schema, table.name)
    return Encoded(
        features=features,
        labels=_indices(frame[schema.label], schema.classes),
        party=None if schema.party is None else texts(frame[schema.party]),
        person=None if schema.person is None else _persons(frame[schema.person]),
        feature_names=names,
        classes=schema.classes,
        notices=(*notices, *drawn, *unreadable),
        hashes=hashes,
        name=table.name,
        public=_labelled(public, schema),
        schema=schema,
    )


def deduplicate(encoded: Encoded) -> Encoded:
    """Keep the first of each set of records with equal features and label, in whatever party they are.

    A record that is both a member and held out would have no membership to infer.
    """
    rows = encoded.features.reshape(len(encoded), -1) + np.float32(0)  # -0.0 and 0.0 are one value
    first: dict[bytes, int] = {}
    for index, (row, label) in enumerate(zip(rows, encoded.labels, strict=True)):
        first.setdefault(hashlib.blake2b(row.tobytes() + label.tobytes(), digest_size=16).digest(), index)
    removed = len(encoded) - len(first)
    if not removed:
        return encoded
    return encoded.take(
        np.fromiter(first.values(), dtype=np.int64), f"{removed} duplicate record(s) were removed"
    )


def _usable(frame: pd.DataFrame, schema: Schema) -> tuple[pd.DataFrame, list[str]]:
    """Drop records without a label of the task, and those that belong to no party."""
    notices = []
    for name in filter(None, (schema.label, schema.party)):
        known = frame[name].notna().to_numpy()
        if name == schema.label:
            known = _indices(frame[name], schema.classes) >= 0
        if not known.all():
            notices.append(f"{(~known).sum()} record(s) without '{name}' were dropped")
            frame = frame[known]
    return frame.reset_index(drop=True), notices


def _borrowed(before: Schema, after: Schema, settings: DataSettings) -> list[str]:
    """Say which columns took the sector's bounds: they clip, and the unit might be another one."""
    known = {column.name for column in before.columns if column.bounds} | set(settings.bounds)
    names = [
        f"'{column.name}' {list(column.bounds)}"
        for column in after.columns
        if column.bounds and column.name not in known
    ]
    if not names:
        return []
    return [f"typical bounds of the sector scale {', '.join(names)}; set [data.bounds] to change them"]


def _public(
    frame: pd.DataFrame,
    schema: Schema,
    settings: DataSettings,
    generator: np.random.Generator,
    source: str,
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return (public records, records that stay in the game, a notice)."""
    names = schema.undeclared
    what = f"{len(names)} column(s) have no declared bounds or categories ({_some(names)})"
    if settings.public is not None:
        public = _public_table(settings, names)
        return (
            public,
            frame,
            f"{what}: taken from {len(public)} public records in {Path(settings.public).name}",
        )
    aside = _set_aside(frame, schema, settings.public_share, generator)
    if aside.sum() < TOO_FEW:
        raise InputError(
            f"{source}: {len(frame)} records are too few to set public ones aside for {_some(names)}; "
            "declare data.bounds and data.categories, or name a table in data.public"
        )
    said = (
        f"{what}: {aside.sum()} of {len(frame)} records were set aside as public to encode them; "
        "declare [data.bounds] and [data.categories] to keep them"
    )
    return frame[aside], frame[~aside].reset_index(drop=True), said


def _some(names: tuple[str, ...], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _public_table(settings: DataSettings, names: tuple[str, ...]) -> pd.DataFrame:
    path = Path(settings.public or "")
    public, _ = read_frame(path, settings.missing)
    for name in names:
        if name not in public:
            raise InputError(
                f"data.public: {path} has no column '{name}'{suggestion(name, map(str, public))}"
            )
    return public


def _labelled(public: pd.DataFrame | None, schema: Schema) -> Records | None:
    """Return the public records that have a label of the task, or None where they cannot be told of any."""
    needed = (schema.label, *(column.name for column in schema.columns))
    if public is None or any(name not in public for name in needed):
        return None
    known = public[_indices(public[schema.label], schema.classes) >= 0].reset_index(drop=True)
    if known.empty:
        return None
    features, _, _ = _features(known, schema, "data.public")
    return Records(features, _indices(known[schema.label], schema.classes))


def _set_aside(
    frame: pd.DataFrame, schema: Schema, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Return a (n,) mask of the public records: whole persons, drawn without looking at any other column."""
    most = len(frame) // ONE_IN
    wanted = min(max(AT_LEAST, round(share * len(frame))), most)
    return draw_whole(_units(frame, schema), wanted, most, generator)


def _units(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return a (n,) int64 number of each record's person; each record for itself where there is none."""
    if schema.person is None:
        return np.arange(len(frame))
    return pd.factorize(_persons(frame[schema.person]))[0]


def draw_whole(units: np.ndarray, wanted: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return a (n,) mask of about ``wanted`` and never more than ``most`` records, made of whole units.

    units: (n,) integers 0 … k-1, the unit (person) of each record.
    """
    sizes = np.bincount(units)
    chosen = np.zeros(len(sizes), dtype=bool)
    total = 0
    for unit in generator.permutation(len(sizes)):
        if total >= wanted:
            break
        if total + sizes[unit] <= most:
            chosen[unit] = True
            total += sizes[unit]
    return chosen[units]


def _subset(
    frame: pd.DataFrame, schema: Schema, most: int | None, generator: np.random.Generator
) -> tuple[pd.DataFrame, list[str]]:
    if most is None or most >= len(frame):
        return frame, []
    kept = frame[draw_whole(_units(frame, schema), most, most, generator)]
    return kept.reset_index(drop=True), [f"{len(kept)} of {len(frame)} records were drawn (data.max_records)"]


def learn(schema: Schema, public: pd.DataFrame) -> tuple[Schema, list[str]]:
    """Return the schema with its undeclared columns filled in from public records, and notices.

    Numbers get the 1st to 99th percentile as bounds, categories the values seen. Columns that tell nothing
    (constant) or too much (an identifier, free text) in the public records are dropped.
    """
    columns, notices = [], []
    for column in schema.columns:
        found, problem = _learn_column(column, public[column.name]) if column.name in public else (column, "")
        if found is None:
            notices.append(f"'{column.name}' was dropped: {problem}")
        else:
            columns.append(found)
    if not columns:
        raise InputError(f"no usable feature column in the public records: {'; '.join(notices)}")
    return replace(schema, columns=tuple(columns)), notices


def _learn_column(column: Column, public: pd.Series) -> tuple[Column | None, str]:
    """Return the column filled in, or None and the reason why it is of no use."""
    is_number = column.kind == "number"
    if column.declared:
        seen_missing = is_number and bool(np.isnan(numeric(public)).any())
        return replace(column, missing=column.missing or seen_missing), ""
    known = public[public.notna()]
    if len(known) == 0:
        return None, "it is empty in the public records"
    values = numeric(known)
    if is_number or (column.kind is None and np.isfinite(values).mean() >= MOSTLY_NUMBERS):
        bounds = _percentiles(values[np.isfinite(values)])
        missing = len(known) < len(public) or bool(np.isnan(values).any())
        filled = replace(column, kind="number", bounds=bounds, missing=missing) if bounds else None
        return filled, "it is constant in the public records"
    return _learn_category(column, [str(text) for text in texts(known)])


def _percentiles(values: np.ndarray) -> Bounds | None:
    """Return the 1st and 99th percentile, or the extremes where these two are equal; None for a constant."""
    if len(values) == 0 or values.min() == values.max():
        return None
    low, high = np.percentile(values, [1, 99])
    return (float(low), float(high)) if low < high else (float(values.min()), float(values.max()))


def _learn_category(column: Column, known: list[str]) -> tuple[Column | None, str]:
    seen = sorted(set(known))
    if len(seen) == 1:
        return None, "it is constant in the public records"
    if column.kind is None and (len(seen) > MAX_CATEGORIES or len(seen) == len(known)):
        return (
            None,
            f"its {len(known)} public values have {len(seen)} spellings, like an identifier or free text",
        )
    return replace(column, kind="category", categories=tuple(seen)), ""


def _features(
    frame: pd.DataFrame, schema: Schema, source: str
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return features, their names, and notices of cells that could not be read."""
    if schema.image is not None:
        return _pixels(frame, schema), schema.names, []
    blocks: list[np.ndarray] = []
    names: list[str] = []
    notices: list[str] = []
    for column in schema.columns:
        if column.kind == "number":
            block, unreadable = _number(frame[column.name], column, source)
            names += [column.name, *[f"{column.name} missing"] * column.missing]
            notices += unreadable
        else:
            block = _one_hot(frame[column.name], column.categories or ())
            names += [f"{column.name}={value}" for value in column.categories or ()]
        blocks.append(block)
    return np.concatenate(blocks, axis=1), tuple(names), notices


def _pixels(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return (n, channels, height, width) float32 in [0, 1]."""
    low, high = schema.columns[0].bounds or (0.0, 1.0)
    pixels = frame[list(schema.names)].to_numpy(dtype=np.float32)
    return ((pixels - np.float32(low)) / np.float32(high - low)).reshape(-1, *(schema.image or ()))


def _number(cells: pd.Series, column: Column, source: str) -> tuple[np.ndarray, list[str]]:
    """Return (n, 1) float32 in [-REACH, REACH], or (n, 2) with the missing indicator; and notices."""
    low, high = column.bounds or (0.0, 1.0)
    values = numeric(cells)
    missing = np.isnan(values)
    unreadable = int((missing & cells.notna().to_numpy()).sum())
    if unreadable and missing.all():
        raise InputError(
            f"{source}: column '{column.name}' is declared a number but holds none; "
            f"set data.kinds.{column.name} = 'category'"
        )
    scaled = REACH * (2 * (np.clip(values, low, high) - low) / (high - low) - 1)
    parts = [np.where(missing, 0.0, scaled), *[missing] * column.missing]
    notice = f"{unreadable} value(s) of '{column.name}' are not finite numbers and count as missing"
    return np.column_stack(parts).astype(np.float32), [notice] * bool(unreadable)


def _one_hot(cells: pd.Series, known: tuple[str, ...]) -> np.ndarray:
    """Return (n, len(known)) float32 of zeros and ones; all zeros where a value is missing or unseen."""
    index = _indices(cells, tuple(texts(pd.Series(known, dtype=object))))
    block = np.zeros((len(cells), len(known)), dtype=np.float32)
    seen = np.flatnonzero(index >= 0)
    block[seen, index[seen]] = 1
    return block


def _indices(cells: pd.Series, known: tuple[str, ...]) -> np.ndarray:
    """Return (n,) int64 places of the cells in ``known``; -1 where a cell is missing or unseen."""
    places = {value: place for place, value in reversed(list(enumerate(known)))}
    return np.array([places.get(value, -1) for value in texts(cells)], dtype=np.int64)


def _persons(cells: pd.Series) -> np.ndarray:
    """Return (n,) person names; a record without one is a person of its own."""
    names = texts(cells)
    for index in np.flatnonzero([name is None for name in names]):
        names[index] = f"(unnamed {index})"
    return names
