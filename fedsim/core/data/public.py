"""Which records are public: a table of them, or a share of the records that is set aside for good.

They are drawn without looking at any column but the persons', before any record is dropped, so that what one
record holds does not decide which others are public.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data.schema import Schema
from fedsim.core.data.table import read_frame, sha256, texts
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import DataSettings

# How many records are set aside as public: at least AT_LEAST, at most one in ONE_IN.
AT_LEAST, ONE_IN, TOO_FEW = 20, 5, 5


@dataclass(frozen=True)
class Public:
    """records: public ones, their index the row in their file; None where there are none.

    rest: the records that stay in the game. total: how many records the public ones were drawn from.
    origin: 'set aside', 'public table', or ''. notices: one sentence each.
    """

    records: pd.DataFrame | None
    rest: pd.DataFrame
    total: int
    origin: str
    notices: tuple[str, ...] = ()


def choose(
    frame: pd.DataFrame,
    schema: Schema,
    settings: DataSettings,
    generator: np.random.Generator,
    source: str,
) -> Public:
    """Return the public records, and those that stay in the game.

    generator: draws the records that are set aside, only where a column is undeclared.

    Raises:
        InputError: there are too few records to set some aside, or the public table lacks a column.
    """
    names = schema.undeclared
    if settings.public is not None:
        records = _table(settings, names)
        notices: tuple[str, ...] = ()
        if names:
            where = f"{len(records)} public records in {Path(settings.public).name}"
            notices = (f"{_undeclared(names)}: taken from {where}",)
        return Public(records, frame, len(records), "public table", notices)
    if not names:
        return Public(None, frame, len(frame), "")
    aside = _set_aside(frame, schema, settings.public_share, generator)
    if aside.sum() < TOO_FEW:
        raise InputError(
            f"{source}: {len(frame)} records are too few to set public ones aside for {some(names)}; "
            "declare data.bounds and data.categories, or name a table in data.public"
        )
    notices = (
        f"{_undeclared(names)}: {aside.sum()} of {len(frame)} records were set aside as public to encode "
        "them; declare [data.bounds] and [data.categories] to keep them",
    )
    rest = frame[~aside].reset_index(drop=True)
    return Public(frame[aside], rest, len(frame), "set aside", notices)


def _undeclared(names: tuple[str, ...]) -> str:
    return f"{len(names)} column(s) have no declared bounds or categories ({some(names)})"


def some(names: tuple[str, ...], limit: int = 6) -> str:
    """Return the first names, separated by commas."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _table(settings: DataSettings, names: tuple[str, ...]) -> pd.DataFrame:
    path = Path(settings.public or "")
    public, _ = read_frame(path, settings)
    for name in names:
        if name not in public:
            raise InputError(
                f"data.public: {path} has no column '{name}'{suggestion(name, map(str, public))}"
            )
    return public


def check_overlap(frame: pd.DataFrame, public: pd.DataFrame, settings: DataSettings) -> list[str]:
    """Compare a public table with the private one, and say how many records are in both.

    Raises:
        InputError: it is the same file, or most of its records are private ones.
    """
    path = Path(settings.public or "")
    own = [settings.path] if isinstance(settings.path, str) else list((settings.path or {}).values())
    if any(Path(file).is_file() and path.is_file() and sha256(Path(file)) == sha256(path) for file in own):
        raise InputError(f"data.public: {path} is the private table itself; name public records")
    shared = [name for name in frame.columns if name in public]
    if len(shared) < 2:
        return []
    hashes = [
        pd.util.hash_pandas_object(pd.DataFrame({n: _comparable(part[n]) for n in shared}), index=False)
        for part in (frame, public)
    ]
    both = int(hashes[1].isin(hashes[0]).sum())
    if both * 2 > len(public) and len(public) >= TOO_FEW:
        raise InputError(
            f"data.public: {both} of {len(public)} records of {path} are in the private table as well; "
            "name records that are nobody's secret"
        )
    return [f"{both} record(s) of {path.name} equal private ones in {len(shared)} column(s)"] * bool(both)


def _comparable(cells: pd.Series) -> pd.Series:
    return pd.Series(texts(cells), dtype="str").fillna("")


def _set_aside(
    frame: pd.DataFrame, schema: Schema, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Return a (n,) mask of the public records: whole persons, drawn without looking at any other column."""
    most = len(frame) // ONE_IN
    wanted = min(max(AT_LEAST, round(share * len(frame))), most)
    return draw_whole(units(frame, schema), wanted, most, generator)


def units(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return a (n,) int64 number of each record's person; each record for itself where there is none."""
    if schema.person is None:
        return np.arange(len(frame))
    return pd.factorize(persons(frame[schema.person]))[0]


def persons(cells: pd.Series) -> np.ndarray:
    """Return (n,) person names; a record without one is a person of its own."""
    names = texts(cells)
    for index in np.flatnonzero(pd.isna(names)):
        names[index] = f"(unnamed {index})"
    return names


def draw_whole(units: np.ndarray, wanted: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return a (n,) mask of about ``wanted`` and never more than ``most`` records, made of whole units.

    units: (n,) integers 0 … k-1, the unit (person) of each record.
    """
    sizes = np.bincount(units)
    chosen = np.zeros(len(sizes), dtype=bool)
    total = 0
    for unit in generator.permutation(len(sizes)):
        if total >= wanted:
            break
        if total + sizes[unit] <= most:
            chosen[unit] = True
            total += sizes[unit]
    return chosen[units]


def subset(
    frame: pd.DataFrame, schema: Schema, most: int | None, generator: np.random.Generator
) -> tuple[pd.DataFrame, list[str]]:
    """Return at most ``most`` records, whole persons drawn at random, and a notice if some are left out."""
    if most is None or most >= len(frame):
        return frame, []
    left = frame[draw_whole(units(frame, schema), most, most, generator)]
    return left.reset_index(drop=True), [f"{len(left)} of {len(frame)} records were drawn (data.max_records)"]
