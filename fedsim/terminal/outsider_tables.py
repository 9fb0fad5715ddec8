"""What an outsider found, as rich tables."""

from __future__ import annotations

import math

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedsim.terminal.formatting import new_table, number

_JUDGED = "95 % intervals. No attack was told; the best of several errs upwards."
_METRICS = {"auc": "AUC", "accused members": "members\naccused", "accused others": "others\naccused"}


def accused(summary: pd.DataFrame, alpha: float, title: str) -> Table:
    """Return whom each attack accuses, a row an attack."""
    table = new_table(escape(title))
    table.add_column("attack", no_wrap=True)
    for heading in ("queries", "asked\nabout", "accused", "at most, if\nnobody is in"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.to_dict("records"):
        known = math.isfinite(row["by_chance"])
        cells = [str(row["accused"]), f"{row['by_chance']:.1f}"] if known else ["-", "-"]
        table.add_row(row["attack"], str(row["queries"]), str(row["asked"]), *cells)
    table.caption_justify = "left"
    table.caption = (
        f"Accused: ranks among the known outsiders so high that one of them would with probability {alpha:g} "
        "at most. It holds where candidates who are not in the data are like the known outsiders."
    )
    return table


def judged(table: pd.DataFrame) -> Table:
    """Return how right each attack is, a row an attack, with 95 % intervals."""
    shown = new_table("How right it is, by the column that says who is a member")
    shown.add_column("attack", no_wrap=True)
    for heading in (*_METRICS.values(), "right of\nthe accused"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for attack, rows in table.groupby("attack", sort=False):
        cells = [_cell(rows[rows["metric"] == metric]) for metric in (*_METRICS, "right")]
        shown.add_row(escape(str(attack)), *cells)
    shown.caption, shown.caption_justify = _JUDGED, "left"
    return shown


def curve(points: pd.DataFrame) -> Table:
    """Return leakage against queries spent."""
    shown = new_table("Leakage against queries spent")
    for heading in ("attack", "queries", "AUC"):
        shown.add_column(heading, justify="left" if heading == "attack" else "right", no_wrap=True)
    for row in points.to_dict("records"):
        interval = f"{number(row['value'])} [dim]{number(row['low'])}-{number(row['high'])}[/dim]"
        shown.add_row(escape(row["attack"]), str(row["queries"]), interval)
    return shown


def _cell(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    if not math.isfinite(row["value"]):
        return "-"
    return f"{number(row['value'])}\n[dim]{number(row['low'], 2)}-{number(row['high'], 2)}[/dim]"
