"""A sweep as a table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedsim.terminal.formatting import METRICS, new_table, number


def sweep(compact: pd.DataFrame, title: str) -> Table:
    """Return a sweep's points, a row for each of the attacks that were named in advance (`sweep.compact`)."""
    measures = {"accuracy": "accuracy", "utility_auc": "AUC", "auc": "attack's\nAUC"}
    measures |= {metric: METRICS[metric] for metric in ("tpr_at_fpr_0.01", "tpr_at_fpr_0.001")}
    labels = list(compact.columns[: compact.columns.get_loc("epsilon")])
    shown = [name for name in labels if name == "scenario" or compact[name].nunique() > 1]
    table = new_table(title)
    several = len(compact) and set(compact["observer"]) != {"participant"}
    naming = [
        *["world"] * bool(len(compact) and compact["world"].nunique() > 1),
        *["observer"] * bool(several),
        "attack",
    ]
    for name in [*shown, "ε", *naming]:
        table.add_column(escape(str(name)).replace(".", ".\n"), no_wrap=name != "scenario")
    for heading in measures.values():
        table.add_column(heading, justify="right", no_wrap=True)
    before: list[object] = []
    for row in compact.to_dict("records"):
        point = [row[name] for name in labels]
        own = [escape(_label(row[name])) for name in shown] + [_label(row["epsilon"])]
        cells = [_interval_cell(row, measure) for measure in measures]
        attack = [escape(str(row[key])) for key in naming]
        table.add_row(*(own if point != before else [""] * len(own)), *attack, *cells)
        before = point
    table.caption = "All parties and games, with 95 % intervals. ε: the largest of the parties'." + _budget(
        compact
    )
    table.caption_justify = "left"
    return table


def _budget(compact: pd.DataFrame) -> str:
    """Say how many shadows there were, and whether it was the same at all points."""
    if compact.empty:
        return ""
    ends = compact[["shadows", "early_shadows"]].agg(["min", "max"]).astype(int)
    spans = [str(low) if low == high else f"{low} to {high}" for low, high in ends.T.to_numpy()]
    return f" Shadows: {spans[0]} of all rounds, {spans[1]} of the first two."


def _label(value: object) -> str:
    return "∞" if value == math.inf else f"{value:.3g}" if isinstance(value, float) else str(value)


def _interval_cell(row: dict[Any, Any], measure: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if not math.isfinite(low):
        return number(value)
    digits = 3 if high < 0.1 else 2
    return f"{number(value)}\n[dim]{number(low, digits)}-{number(high, digits)}[/dim]"
