"""How the files of named data sets are read."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pandas as pd

from fedsim.core.data.schema import Schema
from fedsim.core.data.table import numeric

UCI = "https://archive.ics.uci.edu"
UCI_FILES = f"{UCI}/ml/machine-learning-databases"
CC_BY_4 = "CC BY 4.0"


def codes(low: int, high: int) -> tuple[str, ...]:
    """Return the whole numbers from ``low`` to ``high`` as text."""
    return tuple(str(code) for code in range(low, high + 1))


def words(text: str) -> tuple[str, ...]:
    """Return the words of ``text``."""
    return tuple(text.split())


def csv(content: str | bytes, missing: Iterable[str] = (), **options: object) -> pd.DataFrame:
    """Read a headed CSV as text; only ``missing`` spellings become missing."""
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    return pd.read_csv(
        io.StringIO(text), dtype=object, keep_default_na=False, na_values=list(missing), **options
    )  # type: ignore[call-overload]


def with_numbers(frame: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """Return the schema's columns and keys, numbers as float64."""
    keys = [name for name in (schema.label, schema.party, schema.person) if name is not None]
    columns = {
        column.name: numeric(frame[column.name]) if column.kind == "number" else frame[column.name]
        for column in schema.columns
    }
    return pd.DataFrame({**columns, **{name: frame[name] for name in keys}})
