"""Tables whose file declares types: Parquet, Excel."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedsim.core.data import contents
from fedsim.core.errors import InputError

_INTEGERS: dict[Any, Any] = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}
# At most so many rows and columns are read of a worksheet: Excel's own limits.
_EXCEL_ROWS, _EXCEL_COLUMNS = 1 << 20, 1 << 14


def read_parquet(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a Parquet file, or a folder of parts, into typed columns, with notices.

    Integers stay integers where some are missing, so that numbers beyond 2^53 are exact. Named levels of a
    pandas index are columns. Dictionaries are read as their values, decimals as numbers, bytes as UTF-8
    text, durations in days; nested columns and bytes that are no text are left out.

    Raises:
        InputError: the parts have different columns, or the file is damaged.
    """
    try:
        table = _parts(path) if path.is_dir() else pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise contents.unreadable(path, ValueError(str(error).splitlines()[0])) from error
    notices: list[str] = []
    columns: dict[str, pa.ChunkedArray] = {}
    for place, field in enumerate(table.schema):
        column = _simple(table.column(place))
        if column is None:
            notices.append(
                f"{path.name}: column '{field.name}' ({field.type}) is no plain value and is ignored"
            )
        elif not _is_unnamed_index(field.name, table.schema):
            columns.setdefault(_unique(" ".join(field.name.split()), columns, path), column)
    frame = pa.table(columns).to_pandas(types_mapper=_INTEGERS.get)
    return frame.reset_index(drop=True), notices


def _parts(path: Path) -> pa.Table:
    files = [file for file in sorted(path.rglob("*.parquet")) if not file.name.startswith((".", "_"))]
    if any("=" in part for file in files for part in file.relative_to(path).parts[:-1]):
        return pq.read_table(path)  # Hive's folders 'ward=icu' are columns as well
    tables = [pq.ParquetFile(file).read() for file in files]
    for file, table in zip(files, tables, strict=True):
        if set(table.schema.names) != set(tables[0].schema.names):
            differing = sorted(set(table.schema.names) ^ set(tables[0].schema.names))
            raise InputError(f"{file}: column '{differing[0]}' is not in every part of {path}")
    return pa.concat_tables(
        [table.select(tables[0].schema.names) for table in tables], promote_options="permissive"
    )


def _is_unnamed_index(name: str, schema: pa.Schema) -> bool:
    """Whether this is the index without a name that pandas writes along."""
    return schema.pandas_metadata is not None and name.startswith("__index_level_")


def _unique(name: str, taken: dict[str, Any], path: Path) -> str:
    if name in taken:
        raise InputError(f"{path}: column '{name}' appears twice; rename one of them")
    return name


def _simple(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return the column in a type that a table's cell can have, or None where it has none."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _simple(column.cast(kind.value_type))
    if pa.types.is_decimal(kind):
        return column.cast(pa.float64())
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        try:
            return column.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            return None
    if pa.types.is_duration(kind):
        microseconds = column.cast(pa.duration("us")).cast(pa.int64()).cast(pa.float64())
        return pc.divide(microseconds, 86_400e6)
    if pa.types.is_time(kind):
        return column.cast(pa.string())
    if pa.types.is_nested(kind):
        return None
    return column


def read_excel(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the first sheet that holds anything of an .xlsx workbook; the first row names the columns.

    Raises:
        InputError: openpyxl is not there, the workbook is damaged, empty or has no header.
    """
    try:
        import openpyxl  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise InputError(
            f"{path}: reading Excel needs openpyxl: pip install 'fedsim[excel]', or save the table as CSV"
        ) from None
    contents.check_archive(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = [(sheet.title, _rows(sheet)) for sheet in book.worksheets]
        book.close()
    except Exception as error:  # openpyxl raises whatever its XML parser meets in a damaged workbook
        raise InputError(f"cannot read {path}: the workbook is damaged ({error})") from error
    filled = [(title, rows) for title, rows in sheets if rows]
    if not filled:
        raise InputError(f"{path}: the workbook is empty")
    title, rows = filled[0]
    notices = []
    if len(filled) > 1:
        notices.append(f"{path.name}: sheet '{title}' was read, {len(filled) - 1} other(s) were not")
    start = _header_row(rows)
    if start:
        notices.append(f"{path.name}: {start} row(s) above the header were left out")
    header = [" ".join(str(cell).split()) if cell is not None else "" for cell in rows[start]]
    frame = pd.DataFrame(rows[start + 1 :], columns=range(len(header)), dtype=object)
    frame.columns = pd.Index(header, dtype=object)
    return frame.loc[:, [name != "" for name in header]].apply(_cells), notices


def _rows(sheet: Any) -> list[list[Any]]:
    """Return the rows with anything in them, all of one length."""
    sheet.reset_dimensions()  # a file may claim a million empty rows
    rows = [
        list(row) for row in sheet.iter_rows(values_only=True, max_row=_EXCEL_ROWS, max_col=_EXCEL_COLUMNS)
    ]
    rows = [row for row in rows if any(cell is not None for cell in row)]
    width = max((k + 1 for row in rows for k, cell in enumerate(row) if cell is not None), default=0)
    return [(row + [None] * width)[:width] for row in rows]


def _header_row(rows: list[list[Any]]) -> int:
    """Return the first row that is filled as far as most of the rows are."""
    filled = [sum(cell is not None for cell in row) for row in rows[:50]]
    usual = sorted(filled)[len(filled) // 2]
    return next(k for k, count in enumerate(filled) if count >= min(usual, max(2, usual - 1)))


def _cells(column: pd.Series) -> pd.Series:
    """Return text, but numbers, dates and booleans of a column that has nothing else in their own type."""
    known = column.dropna()
    kinds: list[tuple[Any, Callable[[pd.Series], pd.Series]]] = [
        (bool, lambda cells: cells.map({True: "True", False: "False"})),
        (datetime.datetime, lambda cells: pd.to_datetime(cells, errors="coerce")),
    ]
    for kind, convert in kinds:
        if len(known) and known.map(lambda cell, kind=kind: isinstance(cell, kind)).all():
            return convert(column)
    if (
        len(known)
        and known.map(lambda cell: isinstance(cell, int | float) and not isinstance(cell, bool)).all()
    ):
        return pd.to_numeric(column)
    return column.map(_spelled, na_action="ignore")


def _spelled(cell: object) -> str:
    if isinstance(cell, datetime.datetime):
        return cell.isoformat(sep=" ")
    if isinstance(cell, float):
        return repr(cell)
    return str(cell)
