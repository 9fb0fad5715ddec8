"""From a table to arrays, by public knowledge only.

The rule (DESIGN §7): spellings, bounds, vocabularies and kinds come from what is declared, else from public
records: a table of them, or a share of the records that is set aside for good. Changing any private record
changes that record's own features and nothing else.

Numbers are clipped to their bounds and mapped linearly to [-REACH, REACH]; a missing number lies in the
middle. Categories are one-hot; a missing or unseen one is all zeros. Pixels are mapped to [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data import clipping, describe
from fedsim.core.data.columns import Reading, ReadTable, learn, read_columns
from fedsim.core.data.describe import ColumnFacts
from fedsim.core.data.public import Public, check_overlap, choose, draw_whole, persons, subset
from fedsim.core.data.records import Records
from fedsim.core.data.schema import Bounds, Column, Schema, declare, key
from fedsim.core.data.table import Table, numeric, sha256, texts
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

__all__ = ["REACH", "Encoded", "deduplicate", "draw_whole", "encode", "learn", "under_dp"]

# Clinical bounds are four to six standard deviations wide: on [-2, 2] most columns get one near 0.5 to 1.
REACH = 2.0


@dataclass(frozen=True)
class Encoded:
    """All records of a table as arrays, in an order of their own.

    features: (n, d) or (n, channels, height, width) float32
    labels: (n,) int64, indices into ``classes``
    party, person: (n,) objects (text), or None where the table has no such column
    notices: what a person should know of the encoding, one sentence each; they tell of public records only
    hashes: SHA-256 by file name
    public: public records with a label, encoded alike; None where there are none. They are in no party.
    owner_notices: the like that tells of private records, for the eyes of whoever owns the table
    columns: what became of each column of the table
    flow: records in → out, (why, how many are left) in order
    label: name of the label's column
    public_classes: the classes that public records show; None where the classes are declared
    from_private: what was decided by private records, a sentence with its key each: no party may be under DP
    schema: by which the records were encoded, every column declared or learnt from public records
    readings: column → how its text is read; see `columns.read_columns`
    vocabulary: of text, the tokenizer as JSON (`fedsim.core.data.text`); '' of tables
    secret: (n,) objects (text), the secret that a canary holds, '' of other records; None where none has one
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
    owner_notices: tuple[str, ...] = ()
    columns: tuple[ColumnFacts, ...] = ()
    flow: tuple[tuple[str, int], ...] = ()
    label: str = "label"
    public_classes: tuple[str, ...] | None = None
    from_private: tuple[str, ...] = ()
    schema: Schema | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    vocabulary: str = ""
    secret: np.ndarray | None = None

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """The columns that the features are of, in their order, as they were encoded."""
        return () if self.schema is None else self.schema.columns

    def __len__(self) -> int:
        return len(self.labels)

    def records(self, index: np.ndarray | slice = slice(None)) -> Records:
        """Return the records at ``index``, without their keys."""
        return Records(self.features[index], self.labels[index])

    def take(self, index: np.ndarray, *notices: str) -> Encoded:
        """Return the records at ``index`` (integers or a mask) with their keys; add notices for the owner."""
        return replace(
            self,
            features=self.features[index],
            labels=self.labels[index],
            party=None if self.party is None else self.party[index],
            person=None if self.person is None else self.person[index],
            secret=None if self.secret is None else self.secret[index],
            owner_notices=(*self.owner_notices, *notices),
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
        InputError: a setting names no column or contradicts another, a column can be read in two ways, holds
            nothing that it is declared to hold or lies outside its bounds, or there are too few records to
            set public ones aside.
    """
    declared = declare(table.schema, settings, table.name, sector_bounds)
    chosen = choose(table.frame, declared, settings, generator, table.name)
    hashes, overlap = _public_file(table, chosen, settings)
    read = read_columns(chosen, declared, settings, table.name)
    schema, dropped = _learnt(declared, read, chosen)
    frame, flow, usable = _usable(table, read.frame, schema)
    frame, drawn = subset(frame, schema, settings.max_records, generator)
    features, names, unreadable = features_of(frame, schema, table.name)
    facts = describe.facts(declared, schema, chosen, read, dropped, settings)
    clipped: list[str] = []
    if settings.path is not None:
        facts, clipped = _clipping(frame, schema, features, facts, settings, table.name)
        clipped += describe.owner_notices(table, frame, schema)
    return Encoded(
        features=features,
        labels=class_indices(frame[schema.label], schema.classes),
        party=None if schema.party is None else texts(frame[schema.party]),
        person=None if schema.person is None else persons(frame[schema.person]),
        feature_names=names,
        classes=schema.classes,
        notices=(
            *table.notices,
            *describe.borrowed(table.schema, declared, settings),
            *chosen.notices,
            *describe.public_notices(schema, read, dropped),
            *drawn,
        ),
        hashes=hashes,
        name=table.name,
        public=_labelled(read.public, schema),
        owner_notices=(*table.owner_notices, *usable, *overlap, *read.notices, *unreadable, *clipped),
        columns=tuple(facts),
        flow=(*flow, *[("drawn (data.max_records)", len(frame))] * bool(drawn)),
        label=schema.label,
        public_classes=None if table.classes_declared else _public_classes(read.public, schema),
        from_private=read.from_private,
        schema=schema,
        readings=read.readings,
    )


def _learnt(declared: Schema, read: ReadTable, chosen: Public) -> tuple[Schema, dict[str, str]]:
    if read.public is None:
        return declared, {}
    days = {column.name for column in declared.columns if read.is_date(column.name)}
    return learn(declared, read.public, chosen.total, days)


def _public_file(table: Table, chosen: Public, settings: DataSettings) -> tuple[dict[str, str], list[str]]:
    """Return the hashes of all files, and how far a public table overlaps the private one."""
    hashes = dict(table.source_hashes)
    if settings.public is None or chosen.records is None:
        return hashes, []
    hashes[f"public/{Path(settings.public).name}"] = sha256(Path(settings.public))
    return hashes, check_overlap(table.frame, chosen.records, settings)


def _clipping(
    frame: pd.DataFrame,
    schema: Schema,
    features: np.ndarray,
    facts: list[ColumnFacts],
    settings: DataSettings,
    source: str,
) -> tuple[list[ColumnFacts], list[str]]:
    """Return the facts with the share of each column that its bounds cut off, and notices."""
    origins = {fact.name: fact.origin for fact in facts}
    numbers = [column for column in schema.columns if column.kind == "number"]
    shares, notices = clipping.check(frame, numbers, origins, settings.clipped, source)
    clipping.check_collapse(frame[list(schema.names)], features, shares, settings.clipped, source)
    return [replace(fact, clipped=shares.get(fact.name, 0.0)) for fact in facts], notices


def deduplicate(encoded: Encoded, within_parties: bool = False) -> Encoded:
    """Keep the first of each set of records with equal features and label.

    A record that is both a member and held out would have no membership to infer.

    within_parties: under DP, one party's records decide nothing about another's: equal records in two
        parties stay.
    """
    keys = encoded.labels.astype(np.uint64)
    if within_parties and encoded.party is not None:
        keys = keys + (pd.factorize(encoded.party)[0].astype(np.uint64) << np.uint64(32))
    first = first_of_equals(encoded.features, keys)
    removed = len(encoded) - len(first)
    if not removed:
        return encoded
    where = "within a party " if within_parties and encoded.party is not None else ""
    left = encoded.take(np.sort(first), f"{removed} duplicate record(s) {where}were removed")
    return replace(left, flow=(*encoded.flow, ("without duplicates", len(left))))


def first_of_equals(features: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return (k,) the first record of each group with equal features (n, …) and keys (n,) uint64."""
    hashes = clipping.row_hashes(features) ^ (keys * np.uint64(0xD6E8FEB86659FD93))
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    rows = features.reshape(len(features), -1)
    for start in range(0, len(rows), 1 << 16):  # 64 bits may collide: records of one hash are compared
        block = slice(start, start + (1 << 16))
        like = first[group[block]]
        if not (np.array_equal(rows[block], rows[like]) and np.array_equal(keys[block], keys[like])):
            return _first_of_equal_bytes(rows, keys)
    return first


def _first_of_equal_bytes(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the same as `first_of_equals`, by a cryptographic hash of each row."""
    rows = rows + np.float32(0)  # -0.0 and 0.0 are one value
    first: dict[bytes, int] = {}
    for index, (row, mark) in enumerate(zip(rows, keys, strict=True)):
        first.setdefault(hashlib.blake2b(row.tobytes() + mark.tobytes(), digest_size=16).digest(), index)
    return np.fromiter(first.values(), dtype=np.int64)


def under_dp(encoded: Encoded) -> Encoded:
    """Return the records for a run in which a party is under DP: no private record decides the classes.

    Classes that are not declared are those of the public records; a private record of another class is
    dropped.

    Raises:
        InputError: only private records show the classes, or how columns are written.
    """
    if encoded.from_private:
        raise InputError(f"{encoded.name}: under DP, {encoded.from_private[0]}")
    if encoded.public_classes is None:
        return encoded
    declared = key("categories", encoded.label)
    if len(encoded.public_classes) < 2:
        values = ", ".join(f"'{value}'" for value in encoded.classes[:8])
        raise InputError(
            f"{encoded.name}: under DP, the classes of '{encoded.label}' must be public, and private records "
            f"alone tell them; set {declared}, such as [{values}]"
        )
    place = {value: index for index, value in enumerate(encoded.public_classes)}
    index = np.array([place.get(value, -1) for value in encoded.classes], dtype=np.int64)
    known = np.flatnonzero(index[encoded.labels] >= 0)
    dropped = len(encoded) - len(known)
    notice = (
        f"{dropped} record(s) of classes that no public record has were dropped; set {declared} to keep them"
    )
    left = encoded.take(known, *[notice] * bool(dropped))
    public = encoded.public
    return replace(
        left,
        labels=index[left.labels],
        classes=encoded.public_classes,
        public_classes=None,
        schema=None if left.schema is None else replace(left.schema, classes=encoded.public_classes),
        notices=(*left.notices, f"the classes of '{encoded.label}' are those that public records show"),
        public=None if public is None else Records(public.features, index[public.labels]),
        flow=(*left.flow, *[("of a class that public records show", len(left))] * bool(dropped)),
    )


def _usable(
    table: Table, frame: pd.DataFrame, schema: Schema
) -> tuple[pd.DataFrame, list[tuple[str, int]], list[str]]:
    """Drop records without a label of the task, and those that belong to no party."""
    flow = [("in the table", len(table))]
    if len(frame) < len(table):
        flow.append(("not set aside as public", len(frame)))
    notices = []
    for name in filter(None, (schema.label, schema.party)):
        known = frame[name].notna().to_numpy()
        if name == schema.label:
            known = class_indices(frame[name], schema.classes) >= 0
        if not known.any():
            role = "label" if name == schema.label else "party"
            raise InputError(
                f"{table.name}: data.{role} = '{name}': no record has a value there that is known"
            )
        if not known.all():
            notices.append(f"{(~known).sum()} record(s) without '{name}'{_strange(frame, name)} were dropped")
            frame = frame[known]
            flow.append((f"with '{name}'", len(frame)))
    return frame.reset_index(drop=True), flow, notices


def _strange(frame: pd.DataFrame, name: str) -> str:
    """Return the words that are added where some of the records without a known value have an unknown one."""
    return "" if frame[name].isna().any() else " of a known class"


def _labelled(public: pd.DataFrame | None, schema: Schema) -> Records | None:
    """Return the public records that have a label of the task, or None where they cannot be told of any."""
    needed = (schema.label, *(column.name for column in schema.columns))
    if public is None or not set(needed) <= set(public.columns):
        return None
    known = public[class_indices(public[schema.label], schema.classes) >= 0].reset_index(drop=True)
    if known.empty:
        return None
    features, _, _ = features_of(known, schema, "data.public")
    return Records(features, class_indices(known[schema.label], schema.classes))


def _public_classes(public: pd.DataFrame | None, schema: Schema) -> tuple[str, ...]:
    """Return the classes that public records show, in the order of all classes."""
    if public is None or schema.label not in public:
        return ()
    shown = set(texts(public[schema.label]))
    return tuple(value for value in schema.classes if value in shown)


def features_of(
    frame: pd.DataFrame, schema: Schema, source: str
) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return features (n, …) float32, their names, and notices of cells that could not be read."""
    if schema.image is not None:
        return _pixels(frame, schema), schema.names, []
    width = sum(map(_width, schema.columns))
    features = np.empty((len(frame), width), dtype=np.float32)
    names: list[str] = []
    notices: list[str] = []
    for column in schema.columns:
        if column.kind == "number":
            block, unreadable = _number(frame[column.name], column, source)
            named = [column.name, *[f"{column.name} missing"] * column.missing]
            notices += unreadable
        else:
            block = _one_hot(frame[column.name], column)
            named = [f"{column.name}={value}" for value in column.categories or ()]
        features[:, len(names) : len(names) + len(named)] = block
        names += named
    return features, tuple(names), notices


def _width(column: Column) -> int:
    """Return how many features a column becomes."""
    return 1 + column.missing if column.kind == "number" else len(column.categories or ())


def _pixels(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return (n, channels, height, width) float32 in [0, 1]; a missing pixel is 0."""
    low, high = schema.columns[0].bounds or (0.0, 1.0)
    pixels = frame[list(schema.names)].to_numpy(dtype=np.float32, na_value=np.nan)
    scaled = (pixels - np.float32(low)) / np.float32(high - low)
    return np.nan_to_num(np.clip(scaled, 0, 1)).reshape(-1, *(schema.image or ()))


def _number(cells: pd.Series, column: Column, source: str) -> tuple[np.ndarray, list[str]]:
    """Return (n, 1) float32 in [-REACH, REACH], or (n, 2) with the missing indicator; and notices."""
    low, high = column.bounds or (0.0, 1.0)
    values = numeric(cells)
    missing = np.isnan(values)
    unreadable = int((missing & cells.notna().to_numpy()).sum())
    if unreadable and missing.all():
        raise InputError(
            f"{source}: column '{column.name}' is declared a number but holds none; "
            f"set {key('kinds', column.name)} = 'category'"
        )
    scaled = REACH * (2 * (np.clip(values, low, high) - low) / (high - low) - 1)
    parts = [np.where(missing, 0.0, scaled), *[missing] * column.missing]
    notice = f"{unreadable} value(s) of '{column.name}' are not finite numbers and count as missing"
    return np.column_stack(parts).astype(np.float32), [notice] * bool(unreadable)


def _one_hot(cells: pd.Series, column: Column) -> np.ndarray:
    """Return (n, number of categories) float32 of zeros and ones.

    All zeros where a value is missing or unseen; an unseen one is the last category where that is 'other'.
    """
    known = column.categories or ()
    index = class_indices(cells, tuple(texts(pd.Series(known, dtype=object))))
    if column.other:
        index[(index < 0) & cells.notna().to_numpy()] = len(known) - 1
    block = np.zeros((len(cells), len(known)), dtype=np.float32)
    seen = np.flatnonzero(index >= 0)
    block[seen, index[seen]] = 1
    return block


def class_indices(cells: pd.Series, known: tuple[str, ...]) -> np.ndarray:
    """Return (n,) int64 places of the cells in ``known``; -1 where a cell is missing or unseen."""
    places = {value: place for place, value in reversed(list(enumerate(known)))}
    codes, distinct = pd.factorize(texts(cells), use_na_sentinel=True)
    # One look-up a distinct value; the code of a missing cell is -1, the last entry.
    return np.array([*(places.get(value, -1) for value in distinct), -1], dtype=np.int64)[codes]
