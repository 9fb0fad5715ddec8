"""What a column is: read as numbers, dates or words, with which bounds or values, or of no use.

All of it is decided on public records (`public`), or on all records where there are no public ones; then
it says so, and a run under DP is refused unless the scenario declares the spelling.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pandas.api import types

from fedsim.core.data import codes, dates, numbers
from fedsim.core.data.public import Public, some
from fedsim.core.data.schema import Bounds, Column, Schema, key
from fedsim.core.data.table import numeric, texts
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

# So many cells of a table, and rows of it, are looked at to find out how its columns are written.
_EVIDENCE_CELLS, _EVIDENCE_ROWS = 200_000, 2_000
MAX_CATEGORIES = 100
# Values of a column of codes that are kept beside 'other'.
TOP_CODES = 50
OTHER = "other"


@dataclass(frozen=True)
class Reading:
    """How a column of text is read; both None: as words.

    evident: whether the column, or the file, shows a decimal mark.
    """

    number: numbers.Spelling | None = None
    date: dates.DateStyle | None = None
    evident: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether every program would read it so: words, numbers with a point, ISO dates."""
        if self.number is not None:
            return self.number.decimal == "." and not self.number.unit
        return self.date is None or self.date.words == "YYYY-MM-DD"

    @property
    def words(self) -> str:
        """The spelling as a person would say it, '' where it is plain."""
        if self.date is not None:
            return f"dates {self.date.words}, in days since 1970-01-01"
        return "" if self.number is None else self.number.words


WORDS = Reading()


@dataclass(frozen=True)
class ReadTable:
    """Private and public records in which columns of numbers and dates are float64, by one reading each.

    odd: column → spelling → count of private cells that count as missing for what they are.
    notices: what that tells of private records. from_private: see `Encoded`.
    """

    frame: pd.DataFrame
    public: pd.DataFrame | None
    readings: Mapping[str, Reading]
    odd: Mapping[str, Mapping[str, int]]
    notices: tuple[str, ...] = ()
    from_private: tuple[str, ...] = ()

    def is_date(self, name: str) -> bool:
        """Whether the column holds dates, read as days."""
        return name in self.readings and self.readings[name].date is not None


def read_columns(chosen: Public, schema: Schema, settings: DataSettings, source: str) -> ReadTable:
    """Read the columns of text of a user's own table; named data sets are read as they are.

    Raises:
        InputError: two readings of a column fit, ways of writing are mixed, or most cells do not fit.
    """
    if settings.path is None:
        return ReadTable(chosen.rest, chosen.records, {}, {})
    evidence = chosen.rest if chosen.records is None else chosen.records
    by_column = readings(evidence, schema, settings, source)
    left = tuple(c for c in schema.columns if c.name not in by_column)
    alone = readings(chosen.rest, replace(schema, columns=left), settings, source) if left else {}
    private = list(alone) if chosen.records is not None else list(by_column)
    by_column |= alone
    frame, odd = apply(chosen.rest, by_column, settings.missing)
    _check_fit(chosen.rest, by_column, odd, settings, source)
    public = None if chosen.records is None else apply(chosen.records, by_column, settings.missing)[0]
    spelled: dict[str, list[str]] = {}
    for name in private:
        spelled.setdefault(by_column[name].words, []).append(name)
    notices = [
        f"{some(tuple(names))}: {words}, as private records show" for words, names in spelled.items() if words
    ]
    notices += odd_notices(odd)
    return ReadTable(
        frame, public, by_column, odd, tuple(notices), _from_private(by_column, private, settings)
    )


def _from_private(
    by_column: Mapping[str, Reading], private: list[str], settings: DataSettings
) -> tuple[str, ...]:
    """Return a sentence for each spelling that only private records show, with the way to declare it."""
    remedies = []
    for name in private:
        reading = by_column[name]
        number = reading.number
        if number is not None and (number.unit or (number.decimal == "," and settings.decimal is None)):
            remedy = "name public records in data.public" if number.unit else "set data.decimal = ','"
            remedies.append(f"how '{name}' is written ({reading.words}) must be public; {remedy}")
        elif reading.date is not None and not reading.is_plain:
            remedies.append(
                f"how '{name}' is written ({reading.words}) must be public; name records in data.public"
            )
    return tuple(remedies)


def odd_notices(odd: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a sentence for each column with cells that count as missing for what they are."""
    return [
        f"{sum(counts.values())} value(s) of '{name}' are not finite numbers and count as missing: "
        + ", ".join(f"'{text}' ({count})" for text, count in list(counts.items())[:4])
        + (", …" if len(counts) > 4 else "")
        for name, counts in odd.items()
    ]


def _check_fit(
    frame: pd.DataFrame,
    by_column: Mapping[str, Reading],
    odd: Mapping[str, Mapping[str, int]],
    settings: DataSettings,
    source: str,
) -> None:
    """Refuse a reading that most private cells do not fit, or that only they show to be doubtful."""
    for name, reading in by_column.items():
        present = int(frame[name].notna().sum()) if name in frame else 0
        counts = odd.get(name, {})
        unfit = sum(count for text, count in counts.items() if not numbers.is_odd(text))
        if unfit and unfit == present:
            raise InputError(
                f"{source}: column '{name}' is declared a number but holds none; "
                f"set {key('kinds', name)} = 'category'"
            )
        if unfit * 2 > present:
            example = next(text for text in counts if not numbers.is_odd(text))
            raise InputError(
                f"{source}: {unfit} of {present} cells of '{name}' are no numbers as the others are written, "
                f"such as '{example}'; set data.decimal and data.thousands, "
                f"or {key('kinds', name)} = 'category'"
            )
        if reading.number is not None and not reading.evident and settings.decimal is None:
            doubt = numbers.doubtful(frame[name])
            if doubt:
                raise InputError(f"{source}: column '{name}': {doubt}")


def readings(
    evidence: pd.DataFrame, schema: Schema, settings: DataSettings, source: str
) -> dict[str, Reading]:
    """Return how each feature column of text is read, by the cells in ``evidence``.

    Raises:
        InputError: two readings of a column fit and differ, or two ways of writing are mixed in it.
    """
    cells = _cells(evidence, schema)
    styles = numbers.allowed(settings.decimal, settings.thousands)
    day_styles = {name: _date_styles(texts) for name, texts in cells.items()}
    profiles = {name: numbers.profile(texts) for name, texts in cells.items() if not day_styles[name]}
    usual = settings.decimal or numbers.habit(profiles.values(), styles)
    day_first = dates.habit(list(filter(None, day_styles.values())))
    by_column = {}
    by_name = {column.name: column for column in schema.columns}
    try:
        for name in cells:
            column = by_name[name]
            if day_styles[name]:
                example = _two_readings(cells[name], day_styles[name])
                style = dates.choose(name, day_styles[name], example, settings.dates, day_first)
                by_column[name] = Reading(date=style)
            elif column.kind == "number" or profiles[name].is_number:
                number = numbers.choose(name, profiles[name], styles, usual, column.bounds)
                evident = usual is not None or profiles[name].has_marks
                by_column[name] = Reading(number=number, evident=evident)
            else:
                by_column[name] = WORDS
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return by_column


def _cells(evidence: pd.DataFrame, schema: Schema) -> dict[str, list[str]]:
    """Return the present cells of each column of text, of a part of the rows where there are many."""
    rows = int(np.clip(_EVIDENCE_CELLS // max(1, len(schema.columns)), 50, _EVIDENCE_ROWS))
    start = evidence.iloc[:: max(1, len(evidence) // rows)][:rows]
    names = [c.name for c in schema.columns if c.kind != "category" and c.name in start]
    return {name: start[name].dropna().tolist() for name in names if is_text(start[name])}


def is_text(column: pd.Series) -> bool:
    """Whether the file gave text for this column: no numbers, dates or booleans."""
    return bool(types.is_object_dtype(column.dtype) or types.is_string_dtype(column.dtype))


def _date_styles(cells: list[str]) -> list[dates.DateStyle]:
    """Return the ways of writing dates that fit the column, none where it holds no dates."""
    if not dates.could_be_dates(cells[:50]):
        return []
    styles, share = dates.best(cells)
    return styles if share >= 0.8 else []


def _two_readings(cells: list[str], styles: list[dates.DateStyle]) -> str:
    parsed = [dates.days(cells, style) for style in styles[:2]]
    differs = np.flatnonzero(parsed[0] != parsed[-1])
    return cells[int(differs[0])] if len(differs) else cells[0]


def apply(
    frame: pd.DataFrame, by_column: Mapping[str, Reading], missing: list[str]
) -> tuple[pd.DataFrame, dict[str, dict[str, int]]]:
    """Return the frame with numbers where columns are read as such, and the cells that could not be read.

    missing: spellings of a missing value; a number among them is missing however it is written.

    Returns: frame, and column → spelling → count of the cells that count as missing for what they are.
    """
    gaps = [float(text) for text in missing if _is_number(text)]
    converted: dict[str, pd.Series] = {}
    odd: dict[str, dict[str, int]] = {}
    for name, reading in by_column.items():
        if reading == WORDS or name not in frame or not is_text(frame[name]):
            continue
        values = _read(frame[name], reading)
        unreadable = np.isnan(values) & frame[name].notna().to_numpy()
        if unreadable.any():
            counted = frame[name][unreadable].astype(str).value_counts()
            odd[name] = {str(text): int(count) for text, count in counted.items()}
        if gaps:
            values[np.isin(values, gaps)] = np.nan
        converted[name] = pd.Series(values, index=frame.index)
    return pd.DataFrame({name: converted.get(name, frame[name]) for name in frame.columns}), odd


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _read(cells: pd.Series, reading: Reading) -> np.ndarray:
    if reading.number is not None:
        return numbers.read(cells, reading.number)
    result = np.full(len(cells), np.nan)
    present = np.flatnonzero(cells.notna())
    result[present] = dates.days(cells.iloc[present], reading.date or dates.STYLES[0])
    return result


def learn(
    schema: Schema, public: pd.DataFrame, total: int | None = None, days: Container[str] = ()
) -> tuple[Schema, dict[str, str]]:
    """Return the schema with its undeclared columns filled in from public records.

    Numbers get the 1st to 99th percentile as bounds, categories the values seen. Columns that tell nothing
    (constant) or too much (an identifier, free text) in the public records are dropped.

    total: how many records the public ones were drawn from, all in all; their index is the row there.
    days: columns that were read as days, which number no records however evenly they rise.

    Returns: schema, and column → why it was dropped and the key that keeps it.
    """
    if schema.image is not None:
        return _learn_pixels(schema, public), {}
    columns: list[Column] = []
    dropped: dict[str, str] = {}
    for column in schema.columns:
        if column.name not in public:
            columns.append(column)
            continue
        counted = None if column.name in days else total or len(public)
        learnt, problem = _learn_column(column, public[column.name], counted)
        if learnt is None:
            dropped[column.name] = problem
        else:
            columns.append(learnt)
    if not columns:
        whole = "; ".join(f"'{name}' was dropped: {why}" for name, why in dropped.items())
        raise InputError(f"no usable feature column in the public records: {whole}")
    return replace(schema, columns=tuple(columns)), dropped


def _learn_pixels(schema: Schema, public: pd.DataFrame) -> Schema:
    """Return the schema with one pair of bounds for all pixels: [0, 1], [0, 255], or the public extremes."""
    if not set(schema.names) <= set(public.columns) or not schema.undeclared:
        return schema
    pixels = np.concatenate([numeric(public[name]) for name in schema.names])
    pixels = pixels[np.isfinite(pixels)]
    low, high = (float(pixels.min()), float(pixels.max())) if len(pixels) else (0.0, 1.0)
    usual = [pair for pair in ((0.0, 1.0), (0.0, 255.0)) if pair[0] <= low and high <= pair[1]]
    bounds = usual[0] if usual else (low, high)
    return replace(schema, columns=tuple(replace(c, kind="number", bounds=bounds) for c in schema.columns))


def _learn_column(column: Column, public: pd.Series, total: int | None) -> tuple[Column | None, str]:
    """Return the column filled in, or None and the reason why it is of no use; total: None for dates."""
    is_number = column.kind == "number"
    if column.declared:
        seen_missing = is_number and bool(np.isnan(numeric(public)).any())
        return replace(column, missing=column.missing or seen_missing), ""
    known = public[public.notna()]
    if len(known) == 0:
        return None, f"it is empty in the public records; declare {key('bounds', column.name)} to keep it"
    if is_number or (column.kind is None and types.is_numeric_dtype(known.dtype) and not _is_bool(known)):
        values = numeric(known)
        rows = known.index.to_numpy()
        if column.kind is None and total and is_row_number(column.name, values, rows, total):
            return None, (
                "it numbers the records and describes none; "
                f"declare {key('kinds', column.name)} = 'number' to keep it"
            )
        bounds = percentiles(values[np.isfinite(values)])
        may_miss = len(known) < len(public) or bool(np.isnan(values).any())
        filled = replace(column, kind="number", bounds=bounds, missing=may_miss) if bounds else None
        return (
            filled,
            f"it is constant in the public records; declare {key('bounds', column.name)} to keep it",
        )
    return _learn_category(column, [str(text) for text in texts(known)])


def _is_bool(cells: pd.Series) -> bool:
    return bool(types.is_bool_dtype(cells.dtype))


def is_row_number(name: str, values: np.ndarray, rows: np.ndarray, total: int) -> bool:
    """Whether public values number the records: whole, all different, as many as there are records.

    values: (k,) float64. rows: (k,) their rows in the file. total: number of records there.

    A column that rises with the rows in equal steps is one whatever its name; one in another order needs
    a name such as 'id' or a span that is the number of records.
    """
    if len(values) < 5 or not np.isfinite(values).all() or (values % 1 != 0).any():
        return False
    if len(np.unique(values)) < len(values):
        return False
    steps, gaps = np.diff(values), np.diff(rows)
    rising = bool(
        (gaps != 0).all() and np.allclose(steps / np.where(gaps == 0, 1, gaps), steps[0] / (gaps[0] or 1))
    )
    span = float(values.max() - values.min() + 1) / total
    ordered = bool((steps > 0).all() or (steps < 0).all())
    named = codes.names_a_record(name) and (ordered or span > 0.5)
    vaguely = codes.may_name_a_number(name) and (ordered or 0.5 < span <= 1.5)
    return rising or named or vaguely or (len(values) >= 15 and 0.75 < span <= 1.05)


def percentiles(values: np.ndarray) -> Bounds | None:
    """Return the 1st and 99th percentile, or the extremes where these two are equal; None for a constant."""
    if len(values) == 0 or values.min() == values.max():
        return None
    low, high = np.percentile(values, [1, 99])
    return (float(low), float(high)) if low < high else (float(values.min()), float(values.max()))


def _learn_category(column: Column, known: list[str]) -> tuple[Column | None, str]:
    """Return the values that the public records show; of codes, the commonest ones and 'other'."""
    counted = pd.Series(known, dtype=object).value_counts()
    seen = sorted(map(str, counted.index))
    name = column.name
    if len(seen) == 1:
        return None, f"it is constant in the public records; declare {key('categories', name)} to keep it"
    single = int((counted == 1).sum())
    few = len(seen) <= 10 or (len(seen) <= 20 and single * 4 <= len(known)) or single == 0
    if len(seen) < len(known) and few:
        return replace(column, kind="category", categories=tuple(seen)), ""
    repeated = sorted(str(value) for value in counted[counted > 1].index[:TOP_CODES])
    is_code = counted[counted > 1].sum() * 2 >= len(known)
    if column.kind is None and not (is_code and len(repeated) > 1):
        if units := numbers.several_units(known):
            return None, (
                f"its numbers are in several units ({units}); write them in one, "
                f"or declare {key('categories', name)}"
            )
        return None, (
            f"its {len(known)} public values have {len(seen)} spellings, {single} of them single, like an "
            f"identifier or free text; declare {key('categories', name)}, "
            f"or {key('kinds', name)} = 'category'"
        )
    if column.kind == "category" and len(seen) <= MAX_CATEGORIES:
        return replace(column, kind="category", categories=tuple(seen)), ""
    if not repeated:
        repeated = seen[:TOP_CODES]
    top = (*(value for value in repeated if value != OTHER), OTHER)
    return replace(column, kind="category", categories=top, other=True), ""


def variants(values: Mapping[str, int] | list[str]) -> list[list[str]]:
    """Return groups of values that differ in case or blanks only."""
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault("".join(value.split()).casefold(), []).append(value)
    return [sorted(group) for group in groups.values() if len(group) > 1]
