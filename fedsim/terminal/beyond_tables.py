"""Tables of what follows membership, as rich tables: a line per attack, a column per metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedsim.terminal.formatting import new_table, number


def results(
    table: pd.DataFrame, keys: Mapping[str, str], metrics: Mapping[str, str], title: str, caption: str = ""
) -> Table:
    """Return a table with a line per combination of ``keys`` and a column per metric, intervals below values.

    table: columns metric, value, low, high and the keys; keys, metrics: name → heading. A key that a line has
    in common with the line above is not repeated. Cells wrap, so that nothing is cut off at 80 columns.
    """
    shown = new_table(escape(title))
    for key, heading in keys.items():
        longest = max((len(str(name)) for name in table[key]), default=0)
        shown.add_column(heading, overflow="fold", min_width=min(longest, 18))
    for heading in metrics.values():
        shown.add_column(heading, justify="right", overflow="fold")
    rows = {(*(row[k] for k in keys), row["metric"]): row for row in table.to_dict("records")}
    above: Sequence[Any] = [None] * len(keys)
    for line in dict.fromkeys(key[:-1] for key in rows):
        same = next((i for i, pair in enumerate(zip(line, above, strict=True)) if pair[0] != pair[1]), 0)
        names = ["" if i < same else escape(str(name)) for i, name in enumerate(line)]
        shown.add_row(*names, *(_cell(rows.get((*line, metric))) for metric in metrics))
        above = line
    shown.caption, shown.caption_justify = caption, "left"
    return shown


def _cell(row: Mapping[Any, Any] | None) -> str:
    """Say value and interval on a line each, counts without decimals; '-' where there is none."""
    if row is None or not math.isfinite(row["value"]):
        return "-"
    digits = 0 if max(abs(row[end]) for end in ("value", "high") if math.isfinite(row[end])) > 10 else 2
    value = number(row["value"], digits and 3)
    if not math.isfinite(row["low"]):
        return value
    between = " to " if row["low"] < 0 else "–"
    return f"{value}\n[dim]{number(row['low'], digits)}{between}{number(row['high'], digits)}[/dim]"


def promises(table: pd.DataFrame) -> Table:
    """Return what each party's DP promises a person with so many records there, ε by their number."""
    shown = new_table("What DP promises a person, by the number of her records at a party: ε")
    counts = sorted(set(table["records"]))
    for heading in ("party", "unit", "δ", *(f"{k} record{'s' if k > 1 else ''}" for k in counts)):
        shown.add_column(heading, justify="left" if heading in ("party", "unit") else "right")
    for (party, unit), rows in table.groupby(["party", "unit"], sort=False):
        delta = rows["delta"].iloc[0]
        cells = ["none" if math.isnan(e) else f"{e:.3g}" for e in rows.sort_values("records")["epsilon"]]
        shown.add_row(escape(str(party)), str(unit), "-" if math.isnan(delta) else f"{delta:.0e}", *cells)
    shown.caption_justify = "left"
    shown.caption = (
        "Of the whole planned run, by Rényi DP where she has several. A party under no DP promises nothing."
    )
    return shown
