"""Evidence about single records as a rich table."""

from __future__ import annotations

import math

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedsim.terminal.formatting import new_table, number


def table(found: pd.DataFrame) -> Table:
    """Return a row per record of `runs.evidence.about`."""
    prior = found["prior"].iloc[0] if len(found) else math.nan
    shown = new_table("Was this record in the training set?")
    shown.add_column("record", justify="right")
    for heading in ("says", "attack"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("likelihood\nratio", "probability", "such findings\nare right"):
        shown.add_column(heading, justify="right")
    for row in found.to_dict("records"):
        known = math.isfinite(row["right"])
        interval = (
            f"\n[dim]{number(row['right_low'], 2)}-{number(row['right_high'], 2)}[/dim]" if known else ""
        )
        right = number(row["right"], 2) if known else "-"
        shown.add_row(
            str(row["record"]), row["says"], escape(str(row["attack"])), f"{row['ratio']:.3g}",
            number(row["probability"]), right + interval,
        )  # fmt: skip
    shown.caption = f"Probability, and how often such a finding is right, at a prior of {100 * prior:g} %."
    shown.caption_justify = "left"
    return shown
