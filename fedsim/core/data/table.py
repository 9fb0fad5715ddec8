"""Tables with their schema, and the reading of your own CSV and Parquet files.

Reading looks at each cell by itself: it strips blanks, recognises missing values and numbers in their usual
spellings. Whatever needs several records (kinds, bounds, vocabularies) waits for `encode`, which asks public
records only. Dates in ISO 8601 become numbers: days since 1970-01-01. Booleans are categories.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api import types

from fedsim.core.data.schema import Column, Schema, check_settings
from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import cannot_read
from fedsim.core.scenario.settings import DataSettings

SEPARATORS = ",;\t|"
# More classes than this need at least FEW_PER_CLASS records each, or the label is no class at all.
MANY_CLASSES = 50
FEW_PER_CLASS = 5

_GROUPED = r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$"  # 1,234,567.8
_DECIMAL_COMMA = r"^[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][+-]?\d+)?$"  # 1.234,5
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}(?:[T ].*)?$"
_INTEGRAL = r"^([+-]?\d+)\.0*$"


@dataclass(frozen=True)
class Table:
    """Raw records with what is publicly known of them.

    frame: one row a record, one column for each feature, label and key; text or numbers, NaN/None = missing.
    source_hashes: SHA-256 by file name.
    notices: what a person should know of the reading, one sentence each.
    """

    frame: pd.DataFrame
    schema: Schema
    name: str
    source_hashes: dict[str, str]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)


def read(settings: DataSettings) -> Table:
    """Read the scenario's own table, ``settings.path``: one file, or one file per party.

    Raises:
        InputError: a file cannot be read, a column named in the settings is missing, or the label is not a
            usable set of classes.
    """
    if settings.path is None or settings.label is None:
        raise ValueError("settings.path and settings.label are needed")
    if isinstance(settings.path, str):
        path = Path(settings.path)
        frame, notices = read_frame(path, settings.missing)
        name, hashes, party = path.name, {path.name: sha256(path)}, settings.party
    else:
        frame, hashes, notices, party = _read_parties(settings.path, settings)
        name = ", ".join(hashes)
    everything = _columns(frame)
    check_settings(Schema(everything, "", ()), settings, name)
    classes = classes_of(frame[settings.label], f"{name}: data.label = '{settings.label}'")
    keys = {settings.label, party, settings.person}
    columns = tuple(column for column in everything if column.name not in keys)
    schema = Schema(columns, settings.label, classes, party, settings.person)
    return Table(frame, schema, name, hashes, tuple(notices))


def _read_parties(
    paths: Mapping[str, str], settings: DataSettings
) -> tuple[pd.DataFrame, dict[str, str], list[str], str]:
    """Read one file per party into one frame with a party column."""
    if settings.party is not None:
        raise InputError(
            f"data.party = '{settings.party}': data.path names one file per party already; "
            "drop one of the two"
        )
    frames: dict[str, pd.DataFrame] = {}
    hashes: dict[str, str] = {}
    notices: list[str] = []
    for party, file in paths.items():
        frames[party], found = read_frame(Path(file), settings.missing)
        hashes[f"{party}/{Path(file).name}"] = sha256(Path(file))
        notices += found
    _check_same_columns(frames, paths)
    first = next(iter(frames.values()))
    party_column = "party" if "party" not in first else "party (file)"
    parts = [frame[list(first)].assign(**{party_column: party}) for party, frame in frames.items()]
    return pd.concat(parts, ignore_index=True), hashes, notices, party_column


def _check_same_columns(frames: Mapping[str, pd.DataFrame], paths: Mapping[str, str]) -> None:
    everywhere = list(dict.fromkeys(name for frame in frames.values() for name in frame))
    for party, frame in frames.items():
        for name in everywhere:
            if name not in frame:
                near = suggestion(name, map(str, frame))
                raise InputError(f"{paths[party]}: no column '{name}', which another party's file has{near}")


def _columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """Return the columns with what the file's own types declare (Parquet: numbers and booleans)."""

    def column(name: str) -> Column:
        if types.is_bool_dtype(frame[name].dtype):
            return Column(name, "category", categories=("False", "True"))
        is_number = types.is_numeric_dtype(frame[name].dtype)
        return Column(name, "number" if is_number else None)

    return tuple(column(str(name)) for name in frame)


def classes_of(label: pd.Series, where: str) -> tuple[str, ...]:
    """Return the distinct labels, in numeric order where all are numbers, else sorted as text.

    Raises:
        InputError: fewer than two classes, or so many that the label is a number to be predicted.
    """
    values = pd.unique(texts(label))
    classes = [value for value in values if value is not None]
    if len(classes) < 2:
        found = f"the only class is '{classes[0]}'" if classes else "it holds no value"
        raise InputError(f"{where}: {found}; a label needs at least two classes")
    as_numbers = numeric(pd.Series(classes, dtype=object))
    is_numeric = not np.isnan(as_numbers).any()
    few = label.notna().sum() < FEW_PER_CLASS * len(classes)
    fractional = is_numeric and bool((as_numbers % 1 != 0).any())
    if len(classes) > MANY_CLASSES and (few or fractional):
        raise InputError(
            f"{where} has {len(classes)} distinct values; fedsim does classification only: "
            "choose a column with few classes, or cut this one into classes"
        )
    order = np.argsort(as_numbers, kind="stable") if is_numeric else np.argsort(classes)
    return tuple(classes[index] for index in order)


def read_frame(path: Path, missing: Iterable[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read a CSV or Parquet file (by its suffix) into clean cells, with notices.

    CSV: UTF-8 with or without BOM, UTF-16 with BOM, else Windows-1252; separator one of ``, ; tab |``.

    Raises:
        InputError: the file is missing, unreadable, empty, or has a column name twice.
    """
    try:
        is_parquet = path.suffix.lower() in (".parquet", ".pq")
        frame, notices = _read_parquet(path) if is_parquet else _read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise cannot_read(path, error) from error
    names = list(frame)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: column '{name}' appears twice; rename one of them")
    if len(frame) == 0:
        raise InputError(f"{path}: the file holds no records")
    spellings = [text.strip() for text in missing]
    return pd.DataFrame({name: _clean(frame[name], spellings) for name in names}), notices


def _read_parquet(path: Path) -> tuple[pd.DataFrame, list[str]]:
    frame = pd.read_parquet(path)
    frame.columns = [str(name).strip() for name in frame]
    return frame.reset_index(drop=True), []


def _read_csv(path: Path) -> tuple[pd.DataFrame, list[str]]:
    text, notices = _decode(path)
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    separator = sniff(text.lstrip().splitlines()[0])
    cells = pd.read_csv(
        io.StringIO(text), sep=separator, header=None, dtype=object, na_filter=False, skipinitialspace=True
    )
    header = [str(cell).strip() for cell in cells.iloc[0]]
    frame = cells.iloc[1:].fillna("").reset_index(drop=True)
    frame.columns = header
    unnamed = header.count("")
    if unnamed:
        frame = frame.loc[:, [name != "" for name in header]]
        notices.append(f"{path.name}: {unnamed} column(s) without a name were ignored")
    return frame.apply(_plain_numbers, decimal_comma=separator == ";"), notices


def _decode(path: Path) -> tuple[str, list[str]]:
    content = path.read_bytes()
    if content.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: this is a spreadsheet or zip archive; export the table as CSV or Parquet")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        notice = f"{path.name} is not UTF-8; it was read as Windows-1252"
        return content.decode("cp1252", errors="replace"), [notice]


def sniff(header: str) -> str:
    """Return the separator that cuts the header line into most fields."""
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader([header], delimiter=mark))))


def _plain_numbers(column: pd.Series, decimal_comma: bool) -> pd.Series:
    """Rewrite numbers with commas as plain ones; in a file separated by ';' a comma is the decimal mark."""
    text = column.astype(str).str.strip()
    with_comma = text.str.contains(",", regex=False)
    if not with_comma.any():
        return text
    if decimal_comma:
        cut = with_comma & text.str.match(_DECIMAL_COMMA)
        plain = text.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    else:
        cut = with_comma & text.str.match(_GROUPED)
        plain = text.str.replace(",", "", regex=False)
    return text.where(~cut, plain)


def _clean(column: pd.Series, missing: list[str]) -> pd.Series:
    """Return the column with None/NaN for missing cells: numbers as float64, dates as days, text stripped."""
    if types.is_datetime64_any_dtype(column.dtype):
        return pd.Series(_days(column))
    if types.is_bool_dtype(column.dtype):
        return column
    if types.is_integer_dtype(column.dtype) or types.is_float_dtype(column.dtype):
        spelled = [float(text) for text in missing if _is_number(text)]
        return column.mask(column.isin(spelled)) if spelled else column
    text = column.astype(object)
    text = text.where(text.isna(), text.astype(str).str.strip())
    return text.mask(text.isin(missing) | text.isna(), None)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text)).item()
    except ValueError:
        return False


def numeric(column: pd.Series) -> np.ndarray:
    """Return the column as (n,) float64; NaN where a cell is missing, infinite or not a number.

    ISO 8601 dates are numbers: days since 1970-01-01, UTC.
    """
    if types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        text = column.astype(object).where(column.notna(), None)
        values = np.array(pd.to_numeric(text, errors="coerce"), dtype=np.float64)
        rest = np.isnan(values) & text.notna().to_numpy()
        values[rest] = _dates(text[rest])
    return np.where(np.isfinite(values), values, np.nan)


def _dates(text: pd.Series) -> np.ndarray:
    spelled = text.astype(str)
    is_date = spelled.str.match(_ISO_DATE).to_numpy(dtype=bool)
    days = np.full(len(spelled), np.nan)
    if is_date.any():
        parsed = pd.to_datetime(spelled[is_date], format="ISO8601", errors="coerce", utc=True)
        days[is_date] = _days(parsed)
    return days


def _days(moments: pd.Series) -> np.ndarray:
    if getattr(moments.dtype, "tz", None) is not None:
        moments = moments.dt.tz_convert("UTC").dt.tz_localize(None)
    return ((moments - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(np.float64)


def texts(column: pd.Series) -> np.ndarray:
    """Return the column as (n,) objects: text, or None where missing; whole numbers without '.0'."""
    codes, values = pd.factorize(column, use_na_sentinel=True)
    spelled = pd.Series([str(value).strip() for value in values], dtype=object)
    if len(spelled):
        spelled = spelled.str.replace(_INTEGRAL, r"\1", regex=True)
    return np.array([*spelled, None], dtype=object)[codes]  # the code of a missing cell is -1


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
