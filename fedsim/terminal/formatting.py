"""How the tables' cells and numbers are written."""

from __future__ import annotations

import math

import pandas as pd
from rich import box
from rich.table import Table

from fedsim.evaluation.estimates import speaks_of

# Headings of two lines, so that a table of intervals fits into 80 columns.
METRICS = {
    "auc": "AUC\n",
    "balanced_accuracy": "balanced\naccuracy",
    "fpr": "realised\nFPR",
    "tpr_at_fpr_0.1": "TPR at\n10 % FPR",
    "tpr_at_fpr_0.01": "TPR at\n1 % FPR",
    "tpr_at_fpr_0.001": "TPR at\n.1 % FPR",
}


def new_table(title: str) -> Table:
    """Return an empty table in the style of all tables."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    return table


def cell(rows: pd.DataFrame) -> str:
    """Say the value and interval of the first of ``rows``; '-' where there is none."""
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    if not math.isfinite(row["value"]):
        return "[dim]n too\nsmall[/dim]" if "resolvable" in str(row["note"]) else "-"
    digits = 3 if row["high"] < 0.1 else 2
    interval = f"{number(row['low'], digits)}-{number(row['high'], digits)}"
    return f"{number(row['value'])}\n[dim]{interval}[/dim]"


def number(value: float, digits: int = 3) -> str:
    """Say 0.5861 as '.586': shares are read by the column, and their zeros only take room."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def intervals(leakage: pd.DataFrame) -> str:
    """Say what a leakage table's intervals are of: one game's speak of the one federation that was run."""
    games = leakage.loc[leakage["game"] != "all", "game"].nunique()
    return "with 95 % intervals" + (f" for {speaks_of(1)}" if games <= 1 else "")
