"""How the numbers of a column are written, decided once for all of its cells and never per cell.

'1,234' is 1234 or 1.234: which one is decided by the other cells of the column, by the other columns of the
file, or by the settings; where nothing tells, it is refused with both readings shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from fedsim.core.data.characters import normal, normalised
from fedsim.core.errors import InputError

_CURRENCY = (
    r"(?:[$€£¥₹₽₩₺₪₫฿]|(?:US|A|C|R)\$|Rs\.?|(?:EUR|USD|GBP|CHF|JPY|CNY|SEK|NOK|DKK|PLN|CZK|HUF|INR|BRL|Fr\.))"
)
_UNIT = r"(?:%|‰|[^\W\d_]|[µμ°€$£¥₹₽²³])[^\s,;<>=]{0,11}(?: [^\W\d_]{1,6})?"
_CELL = re.compile(
    rf"^(?P<sign>[+-]?)\s?(?P<prefix>{_CURRENCY})?\s?(?P<inner>[+-]?)"
    rf"(?P<core>\d[\d.,' ]*?(?:[.,](?=\D|$))?|[.,]\d+)(?P<exponent>[eE][+-]?\d+)?"
    rf"\s?(?P<suffix>{_UNIT})?$"
)
_ODD = re.compile(
    r"^(?:[.\-–—_*?x]+|#.*|[<>≤≥~≈]=?\s?.*|n\.?\s?/?\s?[abdmv]\.?|k\.?\s?a\.?|"
    r"[+-]?inf(?:inity)?|nan|null|nil|none|unk(?:nown|\.)?|unbekannt|missing|fehlt|"
    r"not (?:done|measured|available|known|applicable)|nd|tbd|pending|error|err|trace|neg\.?|"
    r"h[aä]mol.*|inconnu|desconocido|нет данных|缺失)$",
    re.IGNORECASE,
)
# Share of a column's cells that must be numbers, or numbers and well-known words for 'there is none'.
MOSTLY, AT_LEAST = 0.9, 0.2
# So many different numbers make a column of numbers even among many words.
MANY_NUMBERS = 10
# A reading that fits this share of the cells better than another one is no slip of the pen.
DECISIVE = 0.05


@dataclass(frozen=True)
class Spelling:
    """decimal: the decimal mark. thousands: the mark between groups, '' for none. unit: what follows or
    precedes the number in the cell, '' for nothing."""

    decimal: str = "."
    thousands: str = ""
    unit: str = ""

    @property
    def words(self) -> str:
        """The spelling as a person would say it, '' for plain numbers."""
        parts = []
        if self.decimal == ",":
            parts.append("decimal comma")
        if self.unit:
            parts.append(f"in {self.unit}")
        return ", ".join(parts)


PLAIN = Spelling()
STYLES = (
    *(Spelling(decimal, thousands) for decimal, thousands in (
        (".", ""), (",", ""), (".", ","), (",", "."), (".", "'"), (",", "'"), (".", " "), (",", " "),
    )),
)  # fmt: skip


def pattern(style: Spelling) -> str:
    """Return the regular expression of a number in this style: a group never starts with 0."""
    mark, decimal = re.escape(style.thousands), re.escape(style.decimal)
    grouped = rf"[1-9]\d{{0,2}}(?:{mark}\d{{3}})+" if style.thousands else r"\d+"
    lakh = rf"|[1-9]\d?(?:{mark}\d{{2}})+{mark}\d{{3}}" if style.thousands == "," else ""
    plain = rf"(?:\d+(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][+-]?\d+)?"
    return rf"[+-]?(?:{plain}|(?:{grouped}{lakh})(?:{decimal}\d*)?)"  # nobody groups a mantissa


def alike_for(style: Spelling, text: str) -> Spelling:
    """Return the simplest style that reads the numbers in ``text`` alike: without marks that none has."""
    thousands = style.thousands if style.thousands in text else ""
    decimal = style.decimal if thousands or style.decimal in text or "." in text else "."
    return replace(style, decimal=decimal, thousands=thousands)


_PATTERNS = {style: re.compile(rf"^{pattern(style)}$") for style in STYLES}


@dataclass(frozen=True)
class Profile:
    """What the cells of one column can be read as.

    cores: different numbers without their units, as text. counts: (k,) how often each occurs.
    fits: style → (k,) bool. cells, odd: how many cells there are, and which are no number (with counts).
    two_scales: a percentage and a share, where the column seems to hold both; else empty.
    """

    cores: tuple[str, ...]
    counts: np.ndarray
    fits: Mapping[Spelling, np.ndarray]
    units: Mapping[str, int]
    cells: int
    odd: Mapping[str, int]
    two_scales: tuple[str, ...] = ()
    _read: dict[Spelling, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def share(self) -> float:
        """Share of the cells that are numbers in some style."""
        return float(self.counts.sum() / self.cells) if self.cells else 0.0

    @property
    def is_number(self) -> bool:
        """Whether the column is one of numbers, odd spellings among them."""
        if self.share >= MOSTLY:
            return True
        known = all(_ODD.match(text) for text in self.odd)
        return (known and self.share >= AT_LEAST) or (self.share >= 0.5 and len(self.cores) > MANY_NUMBERS)

    @property
    def has_marks(self) -> bool:
        """Whether any number has a mark, of decimals or of groups."""
        return any(not core.lstrip("+-").isdigit() for core in self.cores)

    def reading(self, style: Spelling) -> bytes:
        """Return what the style makes of the numbers: equal for styles that read them alike."""
        alike = alike_for(style, "".join(self.cores))
        if alike not in self._read:
            self._read[alike] = np.nan_to_num(values(self.cores, alike), nan=np.inf).tobytes()
        return self._read[alike]

    @property
    def marks(self) -> set[str]:
        """The decimal marks, or group marks like them, that the numbers have."""
        return {mark for mark in ".," if any(mark in core for core in self.cores)}

    @property
    def looks_grouped(self) -> bool:
        """Whether all marks stand before three digits, and numbers below 1000 have none.

        Decimals, were they that, would have been written for all numbers, or be shorter now and then.
        """
        marked = [core for core in self.cores if not core.lstrip("+-").isdigit()]
        plain = [core for core in self.cores if core.lstrip("+-").isdigit()]
        groups = all(re.fullmatch(r"[+-]?[1-9]\d{0,2}(?:[.,]\d{3})+", core) for core in marked)
        return len(marked) >= 5 and bool(plain) and groups and all(len(c.lstrip("+-")) <= 3 for c in plain)

    def coverage(self, style: Spelling) -> float:
        """Share of the numbers that fit the style."""
        return float(self.counts[self.fits[style]].sum() / max(1, self.counts.sum()))

    def best(self, styles: Iterable[Spelling]) -> list[Spelling]:
        """Return the styles that fit most numbers."""
        ranked = {style: self.coverage(style) for style in styles}
        most = max(ranked.values(), default=0.0)
        return [style for style, share in ranked.items() if share >= most - 1e-12]

    def decimals(self, styles: Iterable[Spelling]) -> set[str]:
        """Return the decimal marks of the best styles: one of them only where the column decides."""
        return {style.decimal for style in self.best(styles)}


def profile(cells: Sequence[str]) -> Profile:
    """Return what non-missing cells can be read as; numbers, too, are read as they are written."""
    counted = Counter(map(str, cells))
    texts = [normal(text) for text in counted]
    matches = [_CELL.match(text) for text in texts]
    unit = _common_unit(matches, list(counted.values()))
    cores: dict[str, int] = {}
    odd: dict[str, int] = {}
    units: dict[str, int] = {}
    by_unit: dict[str, list[str]] = {}
    for (text, count), match in zip(counted.items(), matches, strict=True):
        own = "" if match is None else _unit_of(match)
        if match is None or own not in ("", unit):
            odd[text] = odd.get(text, 0) + int(count)
            continue
        units[own] = units.get(own, 0) + int(count)
        core = match["sign"] + match["inner"] + match["core"].strip() + (match["exponent"] or "")
        if any(fits.match(core) for fits in _PATTERNS.values()):
            cores[core] = cores.get(core, 0) + int(count)
            by_unit.setdefault(own, []).append(core)
        else:
            odd[text] = odd.get(text, 0) + int(count)
    counts = np.array(list(cores.values()), dtype=np.int64)
    return Profile(tuple(cores), counts, _fits(cores), units, len(cells), odd, _two_scales(by_unit))


def _two_scales(by_unit: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return a percentage and a share where numbers with '%' and ones below 1 without it are mixed."""
    signed, plain = by_unit.get("%", []), by_unit.get("", [])
    if min(len(signed), len(plain)) <= DECISIVE * (len(signed) + len(plain)):
        return ()
    percentages, shares = (
        np.abs(
            [float(re.sub(r"[ ',]", ".", core)) for core in part if re.fullmatch(r"[-+]?\d+[.,]?\d*", core)]
        )
        for part in (signed, plain)
    )
    both = len(percentages) and len(shares) and shares.max() <= 1 < np.median(percentages)
    return (f"{signed[0]}%", plain[0]) if both else ()


def several_units(cells: Sequence[str]) -> str:
    """Return the units of cells that are numbers in two to four of them, as "'$' and '€'"; '' of others."""
    matches = [_CELL.match(normal(text)) for text in cells]
    units = Counter(_unit_of(match) for match in matches if match is not None)
    units.pop("", None)
    if not 2 <= len(units) <= 4 or units.total() < MOSTLY * len(cells):
        return ""
    return " and ".join(f"'{unit}'" for unit, _ in units.most_common())


def _fits(cores: Mapping[str, int]) -> dict[Spelling, np.ndarray]:
    """Return style → (k,) bool, whether each number fits it; tried once for styles that read them alike."""
    text = "".join(cores)
    alike = {style: alike_for(style, text) for style in STYLES}
    tried = {
        style: np.array([bool(_PATTERNS[style].match(core)) for core in cores], dtype=bool)
        for style in set(alike.values())
    }
    return {style: tried[alike[style]] for style in STYLES}


def _unit_of(match: re.Match[str]) -> str:
    return " ".join(filter(None, (match["prefix"], match["suffix"])))


def _common_unit(matches: Sequence[re.Match[str] | None], counts: Sequence[int]) -> str:
    """Return the unit that nearly all cells with a number carry, '' where there is none such."""
    units: dict[str, int] = {}
    for match, count in zip(matches, counts, strict=True):
        if match is not None:
            units[_unit_of(match)] = units.get(_unit_of(match), 0) + int(count)
    named = {unit: count for unit, count in units.items() if unit}
    if not named:
        return ""
    unit, count = max(named.items(), key=lambda item: item[1])
    return unit if count >= 0.8 * sum(named.values()) else ""


def allowed(decimal: str | None, thousands: str | None) -> tuple[Spelling, ...]:
    """Return the styles that the settings leave."""
    styles = [style for style in STYLES if decimal in (None, style.decimal)]
    if thousands is not None:
        exact = [style for style in styles if style.thousands == thousands]
        return tuple(exact) or (Spelling(decimal or "., ".replace(thousands, "", 1)[0], thousands),)
    return tuple(styles)


def habit(profiles: Iterable[Profile], styles: Sequence[Spelling]) -> str | None:
    """Return the decimal mark of a file: that of all columns which decide for themselves, else None."""
    deciding = [column.decimals(styles) for column in profiles if column.is_number and len(column.cores)]
    marks = {next(iter(marks)) for marks in deciding if len(marks) == 1}
    return marks.pop() if len(marks) == 1 else None


def choose(
    name: str,
    column: Profile,
    styles: Sequence[Spelling],
    usual: str | None,
    bounds: tuple[float, float] | None = None,
) -> Spelling:
    """Return how the numbers of a column are written.

    usual: the file's decimal mark by its other columns. bounds: what is declared of the column.

    Raises:
        InputError: two readings fit and differ, or two ways of writing are mixed.
    """
    if column.two_scales:
        percentage, share = column.two_scales
        raise InputError(
            f"column '{name}' mixes '{percentage}' and '{share}', which is {share} % or a share of 1; "
            "write them alike"
        )
    best = column.best(styles)
    if len(styles) > 1 and column.counts.sum() and column.coverage(best[0]) < 1 - DECISIVE:
        raise InputError(_mixed(name, column, best[0]))
    best = _by_habit(name, column, best, styles, usual)
    readings = {column.reading(style): style for style in reversed(best)}
    if len(readings) > 1 and bounds is not None:
        inside = {key: style for key, style in readings.items() if _inside(column, style, bounds) >= 0.9}
        readings = inside if len(inside) == 1 else readings
    if len(readings) > 1:
        raise InputError(_ambiguous(name, column, list(readings.values())))
    equal = [style for style in best if column.reading(style) in readings]
    unit = max(column.units, key=lambda text: (text != "", column.units[text]), default="")
    return replace(_simplest(equal, usual), unit=unit)


def _by_habit(
    name: str, column: Profile, best: list[Spelling], styles: Sequence[Spelling], usual: str | None
) -> list[Spelling]:
    """Narrow the best styles to the file's decimal mark; refuse where a few cells alone contradict it."""
    if usual is None or (column.looks_grouped and usual in column.marks):
        return best
    alike = [style for style in best if style.decimal == usual]
    if alike:
        return alike
    rival = column.best([style for style in styles if style.decimal == usual])
    few = rival and column.coverage(best[0]) - column.coverage(rival[0]) < DECISIVE
    if few and not np.array_equal(
        values(column.cores, best[0]), values(column.cores, rival[0]), equal_nan=True
    ):
        raise InputError(_ambiguous(name, column, [best[0], rival[0]]))
    return best


def _simplest(styles: list[Spelling], usual: str | None) -> Spelling:
    """Return the style to read all cells with: its group mark is the one beside its decimal mark."""
    decimals = [style.decimal for style in styles]
    decimal = usual if usual in decimals else decimals[0]
    alike = [style for style in styles if style.decimal == decimal]
    beside = "." if decimal == "," else ","
    return next((style for style in alike if style.thousands == beside), alike[0])


def _inside(column: Profile, style: Spelling, bounds: tuple[float, float]) -> float:
    numbers = values(column.cores, style)
    return float(column.counts[(numbers >= bounds[0]) & (numbers <= bounds[1])].sum() / column.counts.sum())


def _ambiguous(name: str, column: Profile, styles: list[Spelling]) -> str:
    one, two = styles[0], styles[1]
    first, second = values(column.cores, one), values(column.cores, two)
    example = int(np.flatnonzero(~((first == second) | (np.isnan(first) & np.isnan(second))))[0])
    return (
        f"column '{name}': '{column.cores[example]}' is {_shown(first[example])} "
        f"(data.decimal = '{one.decimal}') or {_shown(second[example])} (data.decimal = '{two.decimal}'), "
        "and nothing tells which; set data.decimal"
    )


def _shown(number: float) -> str:
    return "no number" if np.isnan(number) else f"{number:g}" if abs(number) < 1e5 else f"{number:.0f}"


def _mixed(name: str, column: Profile, style: Spelling) -> str:
    fits = column.fits[style]
    one, other = column.cores[int(np.argmax(fits))], column.cores[int(np.argmin(fits))]
    return (
        f"column '{name}' mixes ways of writing numbers, '{one}' and '{other}'; write them alike, "
        "or set data.decimal and data.thousands: what does not fit is then missing"
    )


def is_odd(text: str) -> bool:
    """Whether a cell is one of the usual ways to say that there is no number, or none that is known."""
    return _ODD.match(text.strip()) is not None


def doubtful(cells: pd.Series) -> str:
    """Return why numbers that no other cell explains have two readings, '' where they have one.

    cells: of a column whose evidence shows whole numbers only.
    """
    text = cells.dropna().astype("str").str.strip()
    for decimal, thousands in ((".", ","), (",", ".")):
        marked = text[text.str.contains(decimal, regex=False)]
        grouped = rf"[+-]?[1-9]\d{{0,2}}(?:{re.escape(decimal)}\d{{3}})+"
        if len(marked) >= 2 and marked.str.fullmatch(grouped).all():
            whole, fraction = marked.iloc[0].replace(decimal, ""), marked.iloc[0].replace(decimal, ".")
            return (
                f"'{marked.iloc[0]}' is {fraction} (data.decimal = '{decimal}') or {whole} "
                f"(data.decimal = '{thousands}'), and nothing tells which; set data.decimal"
            )
    return ""


def values(texts: Sequence[str] | pd.Series, style: Spelling) -> np.ndarray:
    """Return (n,) float64 numbers of texts without units; NaN where one does not fit the style."""
    text = pd.Series(texts, dtype="str") if not isinstance(texts, pd.Series) else texts
    if not len(text):
        return np.empty(0)
    fits = text.str.fullmatch(pattern(style)).fillna(False).astype(bool)
    text = text.where(fits, None)
    if style.thousands:
        text = text.str.replace(style.thousands, "", regex=False)
    if style.decimal != ".":
        text = text.str.replace(style.decimal, ".", regex=False)
    return np.asarray(pd.to_numeric(text, errors="coerce"), dtype=np.float64)


def read(cells: pd.Series, spelling: Spelling) -> np.ndarray:
    """Return (n,) float64 numbers of a column of text; NaN where a cell is missing or does not fit.

    A cell may carry the column's unit or none; every other unit makes it no number.
    """
    result = np.full(len(cells), np.nan)
    present = np.flatnonzero(cells.notna())
    text = cells.iloc[present].astype("str")
    if spelling.decimal == "." and not spelling.unit:
        plain = np.asarray(pd.to_numeric(text, errors="coerce"), dtype=np.float64)
        result[present] = plain
        present = present[np.isnan(plain)]
        text = cells.iloc[present].astype("str")
    if len(present):
        result[present] = values(_without_unit(normalised(text), spelling.unit), replace(spelling, unit=""))
    return np.where(np.isfinite(result), result, np.nan)


def _without_unit(text: pd.Series, unit: str) -> pd.Series:
    if not unit:
        return text.str.strip()
    for part in unit.split(" ") if re.match(_CURRENCY, unit) else [unit]:
        text = text.str.replace(part, "", n=1, regex=False)
    return text.str.replace(r"^([+-])\s+", r"\1", regex=True).str.strip()
