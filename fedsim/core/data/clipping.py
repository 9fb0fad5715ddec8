"""What clipping to the bounds cuts off: reported for each column, and refused where nothing would be left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedsim.core.data.schema import Bounds, Column, key
from fedsim.core.data.table import numeric
from fedsim.core.errors import InputError

# From this share of clipped values on a column is named; learnt bounds clip 2 % by their making.
WORTH_SAYING = 0.1
# From this share on another unit is suspected: of less, learnt from few public records, chance is the reason.
ANOTHER_UNIT = 0.5
# Factors between units in use, with what they usually mean.
_FACTORS: dict[float, str] = {
    88.42: "creatinine in µmol/L and mg/dL",
    18.016: "glucose in mg/dL and mmol/L",
    38.67: "cholesterol in mg/dL and mmol/L",
    88.57: "triglycerides in mg/dL and mmol/L",
    17.1: "bilirubin in µmol/L and mg/dL",
    7.5006: "mmHg and kPa",
    2.2046: "pounds and kilograms",
    2.54: "centimetres and inches",
    10.0: "tenfold units such as g/L and g/dL",
    12.0: "months and years",
    30.48: "centimetres and feet",
    52.18: "weeks and years",
    60.0: "minutes and hours",
    100.0: "per cent and shares, or centimetres and metres",
    365.25: "days and years",
    1000.0: "thousandfold units such as g and kg",
    1e6: "millionfold units",
}


def share_outside(values: np.ndarray, bounds: Bounds) -> float:
    """Return the share of the finite values that lie outside the bounds, 0 where there are none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0
    return float(((known < bounds[0]) | (known > bounds[1])).mean())


def factor(values: np.ndarray, bounds: Bounds) -> str:
    """Return what unit could explain that values lie outside their bounds, '' where none does."""
    known = values[np.isfinite(values)]
    for size, words in _FACTORS.items():
        for scale, how in ((1 / size, f"divided by {size:g}"), (size, f"times {size:g}")):
            inside = 1 - share_outside(known * scale, bounds)
            if len(known) and inside >= 0.9 and _fills(known * scale, bounds):
                return f"{how}, {inside:.0%} would lie inside: {words}?"
    return ""


def _fills(values: np.ndarray, bounds: Bounds) -> bool:
    """Whether nine tenths of the values spread over a fair part of the bounds, as they would in its unit."""
    low, high = np.percentile(values, [5, 95])
    return bool(high - low > 0.1 * (bounds[1] - bounds[0]))


def check(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    origins: Mapping[str, str],
    confirmed: Sequence[str],
    source: str,
) -> tuple[dict[str, float], list[str]]:
    """Return the clipped share of each column of numbers, and notices.

    Raises:
        InputError: all of a column's values lie outside its bounds, and ``confirmed`` does not name it.
    """
    shares: dict[str, float] = {}
    notices = []
    for column in columns:
        name, (low, high) = column.name, column.bounds or (-np.inf, np.inf)
        numbers = numeric(frame[name])
        share = shares[name] = share_outside(numbers, (low, high))
        if share < WORTH_SAYING:
            continue
        hint = factor(numbers, (low, high)) if share >= ANOTHER_UNIT else ""
        known = numbers[np.isfinite(numbers)]
        text = (
            f"{share:.0%} of '{name}' lie outside its bounds [{low:g}, {high:g}] ({origins.get(name, '')}): "
            f"they run from {known.min():g} to {known.max():g}" + (f"; {hint}" if hint else "")
        )
        if share == 1 and name not in confirmed:
            raise InputError(
                f"{source}: {text}; set {key('bounds', name)}, or data.clipped = ['{name}'] if that is meant"
            )
        notices.append(f"{text}; set {key('bounds', name)} to keep more")
    return shares, notices


def check_collapse(
    raw: pd.DataFrame,
    features: np.ndarray,
    shares: Mapping[str, float],
    confirmed: Sequence[str],
    source: str,
) -> None:
    """Refuse records that differ as written and are one record for the most part once they are clipped.

    Raises:
        InputError: less than half of the different records are left, and the worst column is not confirmed.
    """
    worst = max(shares, key=lambda name: shares[name], default=None)
    if worst is None or shares[worst] < 0.5 or worst in confirmed:
        return
    before = len(np.unique(pd.util.hash_pandas_object(raw, index=False).to_numpy()))
    after = len(np.unique(row_hashes(features)))
    if after * 2 < before:
        raise InputError(
            f"{source}: {before} different records are {after} once clipped, most of all in '{worst}' "
            f"({shares[worst]:.0%} outside its bounds); set {key('bounds', worst)}, "
            f"or data.clipped = ['{worst}']"
        )


def row_hashes(features: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 hashes of the rows of an array, equal for equal rows; -0.0 is 0.0."""
    rows = features.reshape(len(features), -1)
    result = np.zeros(len(rows), dtype=np.uint64)
    mix = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for start in range(0, len(rows), 1 << 16):  # a few megabytes at a time
            block = (rows[start : start + (1 << 16)].astype(np.float32) + np.float32(0)).view(np.uint32)
            hashed = np.zeros(len(block), dtype=np.uint64)
            for column in block.T:
                hashed = (hashed ^ column) * mix
                hashed ^= hashed >> np.uint64(29)
            result[start : start + (1 << 16)] = hashed
    return result
