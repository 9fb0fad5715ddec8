"""Tables of what follows membership, as rich tables."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedsim.terminal.formatting import new_table, number


def results(table: pd.DataFrame, keys: Sequence[str], title: str, caption: str = "") -> Table:
    """Return a table with a line per row of ``table``: its keys, then value and interval.

    keys: columns shown as they are; a value without an interval stands alone
    """
    shown = new_table(escape(title))
    for key in keys:
        shown.add_column(key, no_wrap=True)
    shown.add_column("value", justify="right")
    shown.add_column("95 % interval", justify="right", no_wrap=True)
    for _, row in table.iterrows():
        interval = "" if pd.isna(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"
        shown.add_row(*(escape(str(row[key])) for key in keys), number(row["value"]), interval)
    shown.caption, shown.caption_justify = caption, "left"
    return shown
