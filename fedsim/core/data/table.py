"""Tables with their schema, and the reading of your own files: CSV, Parquet, Excel, arrays, images.

Reading strips blanks and recognises missing values; text stays text. Whatever needs several records (how
numbers and dates are written, kinds, bounds, vocabularies) waits for `encode`, which asks public records.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from fedsim.core.data import arrays, contents, csv_files, typed_files
from fedsim.core.data.schema import Bounds, Column, Schema, check_settings
from fedsim.core.errors import InputError, suggestion
from fedsim.core.imports import is_reference
from fedsim.core.scenario.settings import DataSettings

# More classes than this need at least FEW_PER_CLASS records each, or the label is no class at all.
MANY_CLASSES = 50
FEW_PER_CLASS = 5

_ISO_DATE = r"^\d{4}-\d{2}-\d{2}(?:[T ].*)?$"
_INTEGRAL = r"^([+-]?\d+)\.0*$"


@dataclass(frozen=True)
class Table:
    """Raw records with what is publicly known of them.

    frame: one row a record, one column for each feature, label and key; text or numbers, NaN/None = missing.
    source_hashes: SHA-256 by file name.
    notices: what a person should know of the reading, one sentence each.
    classes_declared: whether the classes are public; else they are those of all records.
    owner_notices: the like that tells of records, for the eyes of whoever owns the table.
    """

    frame: pd.DataFrame
    schema: Schema
    name: str
    source_hashes: dict[str, str]
    notices: tuple[str, ...] = ()
    classes_declared: bool = True
    owner_notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class _Read:
    """One file's records; shape, bounds and pixels where they are images; notices that tell of records."""

    frame: pd.DataFrame
    notices: list[str]
    shape: tuple[int, int, int] | None = None
    bounds: Bounds | None = None
    of_records: list[str] = field(default_factory=list)


def read(settings: DataSettings) -> Table:
    """Read the scenario's own table, ``settings.path``: one file, or one file per party.

    Raises:
        InputError: a file cannot be read, a column named in the settings is missing, or the label is not a
            usable set of classes.
    """
    if settings.path is None or settings.label is None:
        raise ValueError("settings.path and settings.label are needed")
    if isinstance(settings.path, str):
        whole, name, digest = _read_source(settings.path, settings)
        hashes, party = {name: digest}, settings.party
    else:
        whole, hashes, party = _read_parties(settings.path, settings)
        name = ", ".join(hashes)
    frame = _named_keys(whole.frame, {settings.label, party, settings.person})
    everything = _columns(frame)
    check_settings(Schema(everything, "", ()), settings, name)
    classes, declared = _classes(frame, settings, name)
    keys = {settings.label, party, settings.person}
    columns = tuple(column for column in everything if column.name not in keys)
    columns, shape = _as_image(columns, whole, settings, name)
    schema = Schema(columns, settings.label, classes, party, settings.person, shape)
    said, of_records = (tuple(dict.fromkeys(texts)) for texts in (whole.notices, whole.of_records))
    return Table(frame, schema, name, hashes, said, declared, of_records)


def _classes(frame: pd.DataFrame, settings: DataSettings, name: str) -> tuple[tuple[str, ...], bool]:
    """Return the classes, and whether they are declared (`data.categories` of the label)."""
    label = settings.label or ""
    where = f"{name}: data.label = '{label}'"
    if label not in settings.categories:
        return classes_of(frame[label], where), False
    classes = tuple(dict.fromkeys(texts(pd.Series(settings.categories[label], dtype=object))))
    if len(classes) < 2:
        raise InputError(f"data.categories.{label}: a label needs at least two classes")
    return classes, True


def _as_image(
    columns: tuple[Column, ...], whole: _Read, settings: DataSettings, name: str
) -> tuple[tuple[Column, ...], tuple[int, int, int] | None]:
    """Return the columns as pixels where the file or `data.shape` says so, with the image's shape."""
    shape = whole.shape
    if settings.shape is not None:
        channels, height, width = settings.shape
        shape = (channels, height, width)
    if shape is None:
        return columns, None
    pixels = tuple(column for column in columns if column.name not in settings.ignore)
    if len(pixels) != int(np.prod(shape)):
        raise InputError(
            f"{name}: data.shape = {list(shape)} has {int(np.prod(shape))} values, there are {len(pixels)} "
            "feature columns; name in data.ignore what is no pixel"
        )
    declared = [replace(column, kind="number", bounds=column.bounds or whole.bounds) for column in columns]
    return tuple(declared), shape


def _named_keys(frame: pd.DataFrame, keys: Iterable[str | None]) -> pd.DataFrame:
    """Return the frame with one spelling in Unicode (NFC) of each label, party and person."""
    for key in filter(None, keys):
        if key in frame and not types.is_numeric_dtype(frame[key].dtype):
            codes, distinct = pd.factorize(frame[key], use_na_sentinel=True)
            names = np.array([*map(_visible, map(str, distinct)), None], dtype=object)
            frame = frame.assign(**{key: names[codes]})
    return frame


def _visible(text: str) -> str:
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    return unicodedata.normalize("NFC", " ".join(plain.split()))


def _read_parties(paths: Mapping[str, str], settings: DataSettings) -> tuple[_Read, dict[str, str], str]:
    """Read one file per party into one frame with a party column."""
    if settings.party is not None:
        raise InputError(
            f"data.party = '{settings.party}': data.path names one file per party already; "
            "drop one of the two"
        )
    parts: dict[str, _Read] = {}
    hashes: dict[str, str] = {}
    for party, file in paths.items():
        parts[party], name, digest = _read_source(file, settings)
        hashes[f"{party}/{name}"] = digest
    frames = {party: part.frame for party, part in parts.items()}
    _check_same_columns(frames, paths)
    if len({part.shape for part in parts.values()}) > 1:
        raise InputError(f"{', '.join(hashes)}: the parties' images differ in size; bring them to one size")
    first = next(iter(parts.values()))
    party_column = "party" if "party" not in first.frame else "party (file)"
    aligned = [frame[list(first.frame)].assign(**{party_column: party}) for party, frame in frames.items()]
    notices = [notice for part in parts.values() for notice in part.notices]
    of_records = [notice for part in parts.values() for notice in part.of_records]
    everyone = pd.concat(aligned, ignore_index=True)
    whole = replace(first, frame=everyone, notices=notices, of_records=of_records)
    return whole, hashes, party_column


def _check_same_columns(frames: Mapping[str, pd.DataFrame], paths: Mapping[str, str]) -> None:
    everywhere = list(dict.fromkeys(name for frame in frames.values() for name in frame))
    for party, frame in frames.items():
        for name in everywhere:
            if name not in frame:
                near = suggestion(name, map(str, frame))
                raise InputError(f"{paths[party]}: no column '{name}', which another party's file has{near}")


def _columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """Return the columns with what the file's own types declare (Parquet: numbers and booleans)."""

    def column(name: str, dtype: Any) -> Column:
        if types.is_bool_dtype(dtype):
            return Column(name, "category", categories=("False", "True"))
        # Whole numbers may be ids: what they are is for public records to say.
        return Column(name, "number" if types.is_float_dtype(dtype) else None)

    return tuple(column(str(name), dtype) for name, dtype in frame.dtypes.items())


def classes_of(label: pd.Series, where: str) -> tuple[str, ...]:
    """Return the distinct labels, in numeric order where all are numbers, else sorted as text.

    Raises:
        InputError: fewer than two classes, or so many that the label is a number to be predicted.
    """
    values = pd.unique(texts(label))
    classes = [value for value in values if value is not None]
    if len(classes) < 2:
        problem = f"the only class is '{classes[0]}'" if classes else "it holds no value"
        raise InputError(f"{where}: {problem}; a label needs at least two classes")
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


def read_frame(path: Path, settings: DataSettings) -> tuple[pd.DataFrame, list[str]]:
    """Read a table's file (what it is, its first bytes say) into clean cells, with notices.

    Raises:
        InputError: the file is missing, unreadable, empty, or has a column name twice.
    """
    whole = _read_any(path, settings)
    return whole.frame, whole.notices


def read_source(text: str, settings: DataSettings) -> pd.DataFrame:
    """Read a file, or what a function 'module:callable' returns, into clean cells.

    Raises:
        InputError: see `read_frame`.
    """
    return _read_source(text, settings)[0].frame


def _read_source(text: str, settings: DataSettings) -> tuple[_Read, str, str]:
    """Read a file, or what a function of the user's returns; with its name and the SHA-256 of its content."""
    if is_reference(text) and not Path(text).exists():
        whole = _cleaned(text, _of_own(text, settings), settings)
        return whole, text, frame_sha256(whole.frame)
    path = Path(text)
    return _read_any(path, settings), path.name, sha256(path)


def _of_own(reference: str, settings: DataSettings) -> _Read:
    made = arrays.call(reference, settings.folder)
    if isinstance(made, pd.DataFrame):
        return _Read(made.reset_index(drop=True), [])
    return _of_pixels(arrays.of_arrays(reference, made, settings))


def _read_any(path: Path, settings: DataSettings) -> _Read:
    contents.check_path(path)
    try:
        raw = _read_folder(path, settings) if path.is_dir() else _read_file(path, settings)
    except pd.errors.ParserError as error:
        raise contents.unreadable(
            path, ValueError(str(error).replace("Error tokenizing data. C error: ", ""))
        ) from error
    except (OSError, ValueError, csv.Error, MemoryError) as error:
        raise contents.unreadable(path, error) from error
    return _cleaned(path, raw, settings)


def _cleaned(path: Path | str, raw: _Read, settings: DataSettings) -> _Read:
    frame = raw.frame
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in set(names[:k]))
        raise InputError(f"{path}: column '{twice}' appears twice; rename one of them")
    if len(frame) == 0:
        raise InputError(f"{path}: the file holds no records")
    csv_files.check_totals(path, frame)
    missing = [text.strip() for text in settings.missing]
    cleaned = pd.DataFrame({name: _clean(frame.iloc[:, k], missing) for k, name in enumerate(names)})
    return replace(raw, frame=cleaned)


def _read_file(path: Path, settings: DataSettings) -> _Read:
    start = contents.head(path, 4)
    if start == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
        return _Read(*typed_files.read_parquet(path))
    if contents.is_zip(path):
        members = contents.check_archive(path)
        if "xl/workbook.xml" in members or path.suffix.lower() in (".xlsx", ".xlsm"):
            return _Read(*typed_files.read_excel(path))
        if members and all(name.endswith(".npy") for name in members):
            return _of_pixels(arrays.of_arrays(path, arrays.read_npz(path), settings))
        if any(name.endswith("/data.pkl") for name in members):
            return _of_pixels(arrays.of_arrays(path, arrays.read_tensors(path), settings))
    frame, notices, of_records = csv_files.read_csv(path, settings)
    return _Read(frame, notices, of_records=of_records)


def _read_folder(path: Path, settings: DataSettings) -> _Read:
    if any(path.rglob("*.parquet")):
        return _Read(*typed_files.read_parquet(path))
    if arrays.image_files(path):
        beside = arrays.labels_beside(path)
        table = None if beside is None else _read_file(beside, settings).frame
        return _of_pixels(arrays.read_images(path, table, settings))
    raise InputError(f"cannot read {path}: it is a folder without Parquet parts or PNGs; name a file")


def _of_pixels(pixels: arrays.Pixels) -> _Read:
    return _Read(pixels.frame, pixels.notices, pixels.shape, pixels.bounds)


def _clean(column: pd.Series, missing: list[str]) -> pd.Series:
    """Return the column with None/NaN for missing cells: numbers as numbers, dates as days, text stripped."""
    if types.is_datetime64_any_dtype(column.dtype):
        return pd.Series(_days(column))
    if types.is_bool_dtype(column.dtype):
        return column
    if types.is_integer_dtype(column.dtype) or types.is_float_dtype(column.dtype):
        spelled = [float(text) for text in missing if _is_number(text)]
        return column.mask(column.isin(spelled)) if spelled else column
    text = column if types.is_string_dtype(column.dtype) and column.dtype != object else _as_text(column)
    text = text.str.strip()
    return text.mask(text.isin(missing) | text.isna(), None)


def _as_text(column: pd.Series) -> pd.Series:
    present = column.notna()
    return column.where(~present, column.astype(str)).where(present, None).astype("str")


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


def frame_sha256(frame: pd.DataFrame) -> str:
    """Return a hash of a frame's values, for records that come without a file of their own."""
    return hashlib.sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; of a folder, that of its files' names and hashes."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        text = "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files)
        return hashlib.sha256(text.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
