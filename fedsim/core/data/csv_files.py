"""Text tables: where the table begins in the file, how it is cut into cells, and what cannot be one.

The cells stay text; how numbers and dates are spelled is decided later, per column (`columns`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data import contents
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

SEPARATORS = ",;\t|"
# How much of a file decides where the table begins and what separates its cells.
_HEAD_BYTES, _HEAD_RECORDS = 1 << 18, 200

_TOTALS = re.compile(
    r"^(grand )?(sub)?(total|totals|sum|summe|gesamt|insgesamt|gesamtsumme|somme|totale|suma|"
    r"итого|всего|合计|合計)"
    r"\s*[:.]?$",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"^[+-]?(\d+([.,]\d+)?|[.,]\d+)([eE][+-]?\d+)?$")


@dataclass(frozen=True)
class _Layout:
    """separator: between cells. start: index of the header's record. width: cells of a record."""

    separator: str
    start: int
    width: int


def read_csv(path: Path, settings: DataSettings) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Read a text table into (n, d) text cells, '' where nothing stands, with notices, and others that tell
    of single records.

    UTF-8, UTF-16 or UTF-32 with a mark, else Windows-1252, or `data.encoding`; separated by ``, ; tab |``
    or `data.separator`. A 'sep=' line, a preamble and lines beginning with '#' are no records.

    Raises:
        InputError: the file is empty, no table, or has no header.
    """
    text, notices = contents.decode(path, contents.content(path), settings.encoding)
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    text, declared = _separator_line(text)
    text, commented = _without_comments(text, settings.separator or declared)
    layout, offset = _layout(path, text, settings.separator or declared)
    if layout.start:
        notices.append(f"{path.name}: {layout.start} line(s) before the header were left out")
    if commented:
        notices.append(f"{path.name}: {commented} comment line(s) that begin with '#' were left out")
    frame, short = _frame(path, text[offset:], layout.separator, notices)
    return frame, notices, short


def _separator_line(text: bytes) -> tuple[bytes, str | None]:
    """Return the text without Excel's first line 'sep=;', and the separator that it names."""
    match = re.match(rb'\s*"?sep=(.|\\t)"?[;,\t ]*\r?\n?', text, re.IGNORECASE)
    if match is None:
        return text, None
    mark = match.group(1).decode()
    return text[match.end() :], "\t" if mark == "\\t" else mark


def _without_comments(text: bytes, separator: str | None) -> tuple[bytes, int]:
    """Leave out lines that begin with '#' and are no records: those with another number of cells.

    The last of them above the table is its header where it has as many cells as the first record.
    """
    if not text.lstrip().startswith(b"#") and b"\n#" not in text and b"\r#" not in text:
        return text, 0
    lines = text.splitlines(keepends=True)
    first = next((k for k, line in enumerate(lines) if line.strip() and not line.startswith(b"#")), None)
    if first is None:
        return text, 0
    body = [line for line in lines[first:] if line.strip() and not line.startswith(b"#")]
    mark = (separator or sniff([line.decode(errors="replace") for line in body[:_HEAD_RECORDS]])).encode()
    width = Counter(line.count(mark) for line in body[:_HEAD_RECORDS]).most_common(1)[0][0]
    left = [line for line in lines if not line.startswith(b"#") or (line.count(mark) == width and width)]
    removed = len(lines) - len(left)
    joined = b"".join(left)
    if joined.startswith(b"#"):  # '#id,age' is a header that is written like a comment
        joined = joined.lstrip(b"# ")
    return joined, removed


def _layout(path: Path, text: bytes, separator: str | None) -> tuple[_Layout, int]:
    """Return how the table is laid out, and the byte at which its header begins."""
    start = text[:_HEAD_BYTES].decode(errors="replace").lstrip("\ufeff")
    mark = separator or sniff(start.splitlines()[:_HEAD_RECORDS])
    if len(mark) != 1 or mark in '"\r\n':
        raise InputError(f"{path}: data.separator = '{mark}': it must be one character, such as ';'")
    records, lines_before = _records(path, start, mark)
    width = Counter(len(record) for record in records if any(record)).most_common(1)[0][0]
    # A preamble has fewer cells than the records, or the same number of which the last are empty.
    enough = min(width, max(2, width - 1))
    begin = next((k for k, record in enumerate(records) if _filled(record) >= enough), 0)
    lines = list(io.StringIO(start, newline=""))
    return _Layout(mark, begin, width), len("".join(lines[: lines_before[begin]]).encode())


def _filled(record: list[str]) -> int:
    """Return the number of cells up to the last one that is not empty."""
    return max((k + 1 for k, cell in enumerate(record) if cell), default=0)


def _records(path: Path, start: str, mark: str) -> tuple[list[list[str]], list[int]]:
    """Return the first records, and how many physical lines stand before each."""
    reader = csv.reader(io.StringIO(start, newline=""), delimiter=mark, skipinitialspace=True)
    records: list[list[str]] = []
    before: list[int] = []
    line = 0
    try:
        for record in reader:
            records.append([cell.strip() for cell in record])
            before.append(line)
            line = reader.line_num
            if len(records) > _HEAD_RECORDS:
                break
    except csv.Error as error:
        raise InputError(f"cannot read {path}: line {line + 1}: {error}") from error
    return records, before


def sniff(lines: list[str]) -> str:
    """Return the separator that cuts the most lines into one and the same number of cells."""

    def rank(mark: str) -> tuple[float, int]:
        widths = Counter(len(record) for record in csv.reader(lines, delimiter=mark) if record)
        several = {width: count for width, count in widths.items() if width > 1}
        if not several:
            return 0.0, 1
        width, count = max(several.items(), key=lambda item: (item[1], item[0]))
        return round(count / widths.total(), 2), width

    try:
        return max(SEPARATORS, key=rank)
    except csv.Error:
        return ","


def _frame(path: Path, text: bytes, separator: str, notices: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Cut the text into cells and name the columns by the first record; say which lines are short."""
    cells = pd.read_csv(
        io.BytesIO(text),
        sep=separator,
        header=None,
        dtype=str,
        na_filter=False,
        skipinitialspace=True,
        encoding="utf-8",
        encoding_errors="replace",
    )
    header = [" ".join(str(cell).split()) for cell in cells.iloc[0].fillna("")]
    frame = cells.iloc[1:].reset_index(drop=True)
    frame.columns = pd.Index(header, dtype=object)
    check_header(path, header, frame)
    short = _short_lines(path, text, separator, frame)
    unnamed = header.count("")
    if unnamed:
        frame = frame.loc[:, [name != "" for name in header]]
        notices.append(f"{path.name}: {unnamed} column(s) without a name were ignored")
    return frame, short


def _short_lines(path: Path, text: bytes, separator: str, frame: pd.DataFrame) -> list[str]:
    """Return a notice where lines end before the last column: what is missing reads like empty cells."""
    if not len(frame) or not (frame.iloc[:, -1] == "").any():
        return []
    lines = csv.reader(
        io.StringIO(text.decode("utf-8", "replace"), newline=""), delimiter=separator, skipinitialspace=True
    )
    fields = [len(cells) for cells in lines if cells]  # a blank line is no record
    short = [number for number, n in enumerate(fields[1:], start=1) if n < frame.shape[1]]
    if not short:
        return []
    return [
        f"{path.name}: {len(short)} of {len(frame)} records have fewer fields than the header has names, the "
        f"first of them record {short[0]}; what is missing at their ends counts as empty"
    ]


def check_header(path: Path, header: list[str], frame: pd.DataFrame) -> None:
    """Refuse a file whose first record is plainly a record and no header.

    A name is suspicious where it is a number over numbers, or a value of its own column. Names that are
    whole numbers in rising order (pixels, years) are names.

    Raises:
        InputError: at least half of the names are suspicious.
    """
    named = [(k, name) for k, name in enumerate(header) if name]
    numbers = [name for _, name in named if _PLAIN_NUMBER.match(name)]
    whole = all(re.fullmatch(r"\d+", name) for name in numbers)
    steps = np.diff([int(name) for name in numbers]) if whole else np.array([-1])
    rising = len(steps) > 0 and bool((steps > 0).all()) and (len(steps) > 2 or len(set(steps.tolist())) == 1)
    start = frame.iloc[:200].to_numpy(dtype=object)
    suspicious = [
        name
        for k, name in named
        if (_PLAIN_NUMBER.match(name) and not rising and _mostly_numbers(start[:, k]))
        or (len(start) > 2 and sum(str(cell).strip() == name for cell in start[:, k]) >= 2)
    ]
    if named and len(suspicious) * 2 >= len(named) and len(named) > 1:
        shown = ", ".join(f"'{name}'" for name in header[:4])
        raise InputError(
            f"{path}: the first line is a record and no header ({shown}, …); add a line with names"
        )


def _mostly_numbers(cells: np.ndarray) -> bool:
    present = [text for text in (str(cell).strip() for cell in cells) if text]
    return not present or sum(bool(_PLAIN_NUMBER.match(text)) for text in present) * 2 > len(present)


def check_totals(path: Path | str, frame: pd.DataFrame) -> None:
    """Refuse a table whose last record is plainly the total of the others.

    Raises:
        InputError: it says so, or at least two of its numbers are the sums of their columns.
    """
    if len(frame) < 4:
        return
    last = frame.iloc[-1]
    word = next((str(cell) for cell in last if isinstance(cell, str) and _TOTALS.match(cell.strip())), None)
    others = frame.iloc[:-1]
    if word is not None and not _occurs_earlier(others, word):
        raise InputError(f"{path}: the last record is a total ('{word.strip()}') and no record; remove it")
    sums = [name for name in frame.columns[:200] if _is_sum(others[name], last[name])]
    if len(sums) >= 2:
        shown = ", ".join(f"'{name}'" for name in sums[:3])
        raise InputError(f"{path}: the last record holds the sums of {shown} and is no record; remove it")


def _occurs_earlier(frame: pd.DataFrame, word: str) -> bool:
    tail = frame.iloc[-2000:]
    return any(bool((tail[name].astype(str) == word).any()) for name in tail)


def _is_sum(others: pd.Series, last: object) -> bool:
    """Whether ``last`` is the sum of the column, which it exceeds by far; cheap to rule out."""
    value = _float(last)
    if not np.isfinite(value) or value == 0:
        return False
    few = [number for number in map(_float, others.iloc[:20].tolist()) if np.isfinite(number)]
    if not few or abs(value) <= max(map(abs, few)) * 2:
        return False
    total = pd.to_numeric(others.astype(object), errors="coerce").sum()
    return bool(np.isclose(total, value, rtol=1e-6))


def _float(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
