"""How the dates of a column are written, decided once for all its cells; they become days."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.core.errors import InputError

_TIME = (
    r"(?:[T ,]+(?P<hour>\d{1,2})[:h](?P<minute>\d{2})(?::(?P<second>\d{2}(?:[.,]\d+)?))?"
    r"\s?(?P<half>[AaPp]\.?[Mm]\.?)?"
    r"\s?(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}|[+-]\d{2})?)?$"
)
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "jan januar january janvier janv enero",
            "feb februar february février févr fevrier febrero",
            "mar mär märz mrz march mars marzo",
            "apr april avril avr abril",
            "may mai mayo",
            "jun juni june juin junio",
            "jul juli july juillet juil julio",
            "aug august août aout agosto",
            "sep sept september septembre septiembre",
            "oct okt oktober october octobre octubre",
            "nov november novembre noviembre",
            "dec dez dezember december décembre decembre diciembre",
        ),
        start=1,
    )
    for name in names.split()
}


@dataclass(frozen=True)
class DateStyle:
    """How dates are written.

    words: as a person would write it. pattern: its regular expression with the groups year, month, day.
    day_first: of two readings of the same digits, which; None where there is one only.
    """

    words: str
    pattern: str
    day_first: bool | None = None


_Y, _Y2, _M, _D = r"(?P<year>\d{4})", r"(?P<year>\d{2})", r"(?P<month>\d{1,2})", r"(?P<day>\d{1,2})"
_WORD = r"(?P<month>[^\W\d_]{3,10})\.?"
STYLES = (
    DateStyle("YYYY-MM-DD", rf"^{_Y}([-/.]){_M}\2{_D}"),
    DateStyle("YYYYMMDD", r"^(?P<year>(?:19|20)\d{2})(?P<month>0[1-9]|1[0-2])(?P<day>0[1-9]|[12]\d|3[01])"),
    DateStyle("YYYY-MM", r"^(?P<year>(?:19|20)\d{2})-(?P<month>0[1-9]|1[0-2])(?P<day>)"),
    DateStyle("DD.MM.YYYY", rf"^{_D}\.\s?{_M}\.\s?{_Y}"),
    DateStyle("DD.MM.YY", rf"^{_D}\.{_M}\.{_Y2}(?!\d)"),
    DateStyle("DD/MM/YYYY", rf"^{_D}([/-]){_M}\2{_Y}", True),
    DateStyle("MM/DD/YYYY", rf"^{_M}([/-]){_D}\2{_Y}", False),
    DateStyle("DD/MM/YY", rf"^{_D}([/-]){_M}\2{_Y2}(?!\d)", True),
    DateStyle("MM/DD/YY", rf"^{_M}([/-]){_D}\2{_Y2}(?!\d)", False),
    DateStyle("DD Mon YYYY", rf"^{_D}\.?[ -]{_WORD}[ -](?P<year>\d{{4}}|\d{{2}})(?!\d)"),
    DateStyle("Mon DD, YYYY", rf"^{_WORD} {_D},? {_Y}"),
)


def days(texts: Sequence[str] | pd.Series, style: DateStyle) -> np.ndarray:
    """Return (n,) float64 days since 1970-01-01 (UTC where a zone is named); NaN where one does not fit."""
    text = pd.Series(texts, dtype="str") if not isinstance(texts, pd.Series) else texts.astype("str")
    if not len(text):
        return np.empty(0)
    codes, distinct = pd.factorize(text)
    pattern = re.compile(style.pattern + _TIME)
    parsed = np.array([*(_day(value, pattern) for value in distinct.tolist()), np.nan], dtype=np.float64)
    return parsed[codes]


def _day(text: object, pattern: re.Pattern[str]) -> float:
    match = pattern.match(str(text).strip())
    if match is None:
        return np.nan
    month = match["month"]
    number = int(month) if month.isdigit() else _MONTHS.get(month.lower(), 0)
    year = int(match["year"])
    if len(match["year"]) == 2:  # as POSIX reads two digits: 69 to 99 are of the last century
        year += 1900 if year >= 69 else 2000
    try:
        date = np.datetime64(f"{year:04d}-{number:02d}-{int(match['day'] or 1):02d}", "D")
        return float(date.astype(np.int64)) + _time(match)
    except ValueError:
        return np.nan


def _time(match: re.Match[str]) -> float:
    """Return the time of day, moved to UTC, in days."""
    if match["hour"] is None:
        return 0.0
    hour, minute = int(match["hour"]), int(match["minute"])
    if match["half"]:
        hour = hour % 12 + (12 if match["half"].lower().startswith("p") else 0)
    second = float((match["second"] or "0").replace(",", "."))
    if hour > 24 or minute > 59 or second >= 61:
        raise ValueError("no time of a day")
    zone = match["zone"] or ""
    offset = 0.0
    if zone[:1] in "+-" and zone:
        digits = zone[1:].replace(":", "").ljust(4, "0")
        offset = (int(digits[:2]) * 60 + int(digits[2:])) * (1 if zone[0] == "+" else -1)
    return (hour * 3600 + minute * 60 + second) / 86_400 - offset / 1440


def best(cells: Sequence[str]) -> tuple[list[DateStyle], float]:
    """Return the styles that fit most cells, and which share of the cells that is."""
    few = cells[:20]
    likely = [style for style in STYLES if np.isfinite(days(few, style)).mean() >= 0.5] if len(few) else []
    shares = {style: float(np.isfinite(days(cells, style)).mean()) for style in likely}
    most = max(shares.values(), default=0.0)
    return [style for style, share in shares.items() if share == most], most


_LOOKS = re.compile(
    r"^\d{1,4}([-/.])\s?(\d{1,2}|[^\W\d_]{3,10})\1|^(19|20)\d{2}-\d{2}$|^(19|20)\d{6}([T ]|$)|"
    r"^\d{1,2}\.? [^\W\d_]{3}|^[^\W\d_]{3,10}\.? \d"
)


def could_be_dates(cells: Sequence[str]) -> bool:
    """Whether it is worth while to try: cheap, and true of every date."""
    return bool(len(cells)) and sum(bool(_LOOKS.match(str(cell))) for cell in cells) * 2 >= len(cells)


def habit(candidates: Sequence[Sequence[DateStyle]]) -> bool | None:
    """Return whether a file writes the day first, by its columns that decide for themselves, else None."""
    day_first = {
        styles[0].day_first for styles in candidates if len(styles) == 1 and styles[0].day_first is not None
    }
    return day_first.pop() if len(day_first) == 1 else None


def choose(
    name: str, styles: Sequence[DateStyle], example: str, declared: str | None, usual: bool | None
) -> DateStyle:
    """Return the one way in which a column's dates are written.

    declared: `data.dates`. usual: whether the file's other columns write the day first.

    Raises:
        InputError: day and month cannot be told apart.
    """
    first = usual if declared is None else declared == "day-first"
    alike = [style for style in styles if style.day_first in (None, first)]
    left = alike if first is not None else list(styles)
    if len(left) > 1 and any(style.day_first is not None for style in left):
        raise InputError(
            f"column '{name}': '{example}' is {' or '.join(style.words for style in left[:2])}, "
            "and nothing tells which; set data.dates to 'day-first' or 'month-first'"
        )
    return (left or list(styles))[0]
