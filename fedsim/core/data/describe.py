"""What became of a table's columns and classes, in rows and sentences for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.core.data.codes import missing_codes
from fedsim.core.data.columns import ReadTable, variants
from fedsim.core.data.public import Public, some
from fedsim.core.data.schema import Column, Schema, key
from fedsim.core.data.table import Table, numeric, texts
from fedsim.core.scenario.settings import DataSettings


@dataclass(frozen=True)
class ColumnFacts:
    """What became of one column.

    kind: 'number', 'date', 'category' or 'pixel'. range: its bounds or how many values. origin: where these
    come from. clipped, missing, unreadable: shares of the private cells. kept: whether it is a feature.
    change: the key that changes it, or why it was dropped and the key that keeps it.
    """

    name: str
    kind: str
    range: str
    origin: str
    missing: float
    unreadable: float
    kept: bool
    change: str
    clipped: float = 0.0


def facts(
    declared: Schema,
    schema: Schema,
    chosen: Public,
    read: ReadTable,
    dropped: Mapping[str, str],
    settings: DataSettings,
) -> list[ColumnFacts]:
    """Return a row for each feature column of the table, kept or dropped."""
    if schema.image is not None:
        return [_image_facts(schema, settings)]
    final = {column.name: column for column in schema.columns}
    rows = []
    for column in declared.columns:
        odd = sum(read.odd.get(column.name, {}).values()) / max(1, len(read.frame))
        empty = float(read.frame[column.name].isna().mean()) if len(read.frame) else 0.0
        missing = max(0.0, empty - odd)
        if column.name not in final:
            rows.append(
                ColumnFacts(column.name, "", "", "", missing, odd, False, dropped.get(column.name, ""))
            )
            continue
        ready = final[column.name]
        kind = "date" if read.is_date(column.name) else str(ready.kind)
        origin = _origin(column, chosen, settings)
        change = key("bounds" if ready.kind == "number" else "categories", ready.name)
        rows.append(ColumnFacts(column.name, kind, _range(ready), origin, missing, odd, True, change))
    return rows


def _origin(column: Column, chosen: Public, settings: DataSettings) -> str:
    """Return where the bounds or values of a column come from."""
    name = column.name
    if name in settings.bounds or name in settings.categories:
        return "declared"
    if not column.declared:
        return chosen.origin
    if settings.path is None:
        return "data set"
    return "sector" if column.bounds is not None else "the file's type"


def _range(column: Column) -> str:
    if column.bounds is not None:
        return f"{column.bounds[0]:g} to {column.bounds[1]:g}"
    values = column.categories or ()
    return f"{len(values) - column.other} values{' and other' if column.other else ''}: {some(values, 4)}"


def _image_facts(schema: Schema, settings: DataSettings) -> ColumnFacts:
    low, high = schema.columns[0].bounds or (0.0, 1.0)
    shape = "x".join(map(str, schema.image or ()))
    origin = "declared" if settings.shape else "the file's type"
    return ColumnFacts(
        "(image)", "pixel", f"{low:g} to {high:g}, {shape}", origin, 0.0, 0.0, True, "data.shape"
    )


def borrowed(before: Schema, after: Schema, settings: DataSettings) -> list[str]:
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


def public_notices(schema: Schema, read: ReadTable, dropped: Mapping[str, str]) -> list[str]:
    """Say what was decided on public records: spellings, columns dropped, values that are gathered."""
    notices = [f"'{name}' was dropped: {why}" for name, why in list(dropped.items())[:20]]
    if len(dropped) > 20:
        notices.append(f"{len(dropped) - 20} more columns were dropped: `fedsim scenario check` lists them")
    spelled: dict[str, list[str]] = {}
    for column in schema.columns:
        words = read.readings[column.name].words if column.name in read.readings else ""
        if words and read.public is not None:
            spelled.setdefault(words, []).append(column.name)
        if column.other:
            count = len(column.categories or ()) - 1
            notices.append(
                f"'{column.name}' keeps its {count} commonest public values and 'other'; "
                f"declare {key('categories', column.name)} to choose them"
            )
        for group in variants(list(column.categories or ())) if column.kind == "category" else ():
            notices.append(f"values of '{column.name}' differ in case or blanks only: {_quoted(group)}")
    return notices + [f"{_quoted(names)}: {words}" for words, names in spelled.items()]


def owner_notices(table: Table, frame: pd.DataFrame, schema: Schema) -> list[str]:
    """Say what private records show: odd classes, numbers that look like codes for 'missing'."""
    counted = pd.Series(texts(frame[schema.label]), dtype=object).value_counts()
    counts = {str(value): int(count) for value, count in counted.items()}
    notices = []
    if not table.classes_declared:
        classes = ", ".join(f"'{value}' ({counts.get(value, 0)})" for value in schema.classes[:12])
        notices.append(
            f"classes of '{schema.label}' in all records: {classes}"
            f"{', …' if len(schema.classes) > 12 else ''}; declare {key('categories', schema.label)}"
        )
    for group in variants(list(counts)):
        notices.append(
            f"classes of '{schema.label}' differ in case or blanks only: {_quoted(group)}; spell them alike"
        )
    rare = [value for value, count in counts.items() if count == 1]
    if rare:
        notices.append(
            f"class(es) of '{schema.label}' with one record: {_quoted(rare)}; a typing error, or a total?"
        )
    codes = [
        value for value in counts if value in ("-9", "-99", "-999", "-1", "99", "999", "9999", "-8", "-7")
    ]
    if codes and len(counts) > 2:
        notices.append(
            f"class {_quoted(codes)} of '{schema.label}' looks like a code; add it to data.missing if so"
        )
    for column in schema.columns if schema.image is None else ():
        suspects = missing_codes(numeric(frame[column.name])) if column.kind == "number" else []
        if suspects:
            notices.append(
                f"{_quoted(suspects)} in '{column.name}' stand apart like codes for 'missing'; "
                "add them to data.missing if they are"
            )
    return notices


def _quoted(values: list[str], limit: int = 5) -> str:
    shown = ", ".join(f"'{value}'" for value in values[:limit])
    return shown + (", …" if len(values) > limit else "")


def class_counts(labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, int]:
    """Return how many records each class has.

    labels: (n,) int64 class indices
    """
    counts = np.bincount(labels, minlength=len(classes))
    return {value: int(count) for value, count in zip(classes, counts, strict=True)}
