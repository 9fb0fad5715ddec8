"""One kind of digit, blank, apostrophe and sign, whatever script a number is written in."""

from __future__ import annotations

import re
import unicodedata

import pandas as pd

# Blanks that separate groups, the no-break and thin ones among them; apostrophes; signs; digits and marks of
# Arabic, Indian and full-width scripts.
_DIGITS = {
    chr(code): str(unicodedata.decimal(chr(code)))
    for code in range(0x80, 0x10000)
    if unicodedata.category(chr(code)) == "Nd"
}
_SPECIAL = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u202f\u2009\u2007\u2008", " "), **dict.fromkeys("’ʼ‘´", "'"),
        **_DIGITS, **dict(zip("−–－＋．，％٫٬", "---+.,%.,", strict=True)),
    }
)  # fmt: skip
_SPECIAL_ANY = "[" + "".join(map(chr, _SPECIAL)) + "]"


def normalised(cells: pd.Series) -> pd.Series:
    """Return text with one kind of blank, apostrophe and minus; '(12)' and '12-' are negative numbers."""
    if not len(cells):
        return cells
    if cells.str.contains(_SPECIAL_ANY, regex=True, na=False).any():
        cells = cells.str.translate(_SPECIAL).str.strip()
    for negative, marks in ((r"\([^()]*\d[^()]*\)", "[()]"), (r"\d[\d.,' ]*-", "-$")):
        hit = cells.str.fullmatch(negative).fillna(False).astype(bool)
        if hit.any():
            cells = cells.where(~hit, "-" + cells.str.replace(marks, "", regex=True))
    return cells


def normal(text: str) -> str:
    """Return one cell as `normalised` returns many."""
    text = text.translate(_SPECIAL).strip()
    if text.startswith("(") and text.endswith(")"):
        return "-" + text[1:-1] if any(map(str.isdigit, text)) else text
    return "-" + text[:-1] if re.fullmatch(r"\d[\d.,' ]*-", text) else text
