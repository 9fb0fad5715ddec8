"""Leakage round by round beside the model's utility, as a table."""

from __future__ import annotations

import pandas as pd
from rich.markup import escape
from rich.table import Table

from fedsim.core.run_directory import RunDirectory
from fedsim.terminal.formatting import cell, new_table, number

_ROWS = 6
"""Rounds that are shown beside the best and the last, about."""


def by_round(run: RunDirectory) -> Table | None:
    """Return a row for some rounds, the best and the last among them; None where nothing was measured."""
    if not run.has("leakage_by_round"):
        return None
    leakage = run.table("leakage_by_round")
    leakage = leakage[(leakage["game"] == "all") & (leakage["metric"] == "auc")]
    rounds = run.table("rounds")
    trained = rounds[(rounds["party"] == "all") & (rounds["round"] > 0)]
    utility = trained.groupby("round")[["loss", "accuracy"]].mean()
    if leakage.empty or utility.empty:
        return None
    best, last = int(str(utility["loss"].idxmin())), int(utility.index.max())
    table = new_table(
        "Round by round: the model on held-out records, and AUC of attacks on that round's model"
    )
    for heading in ("round", "loss", "accuracy", *dict.fromkeys(leakage["attack"])):
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for t in _shown(leakage, best, last):
        name = f"{t} [dim]({'best' if t == best else 'last'})[/dim]" if t in (best, last) else str(t)
        of_round = leakage[leakage["round"] == t]
        cells = [cell(of_round[of_round["attack"] == attack]) for attack in dict.fromkeys(leakage["attack"])]
        table.add_row(name, number(utility["loss"][t]), number(utility["accuracy"][t]), *cells)
    table.caption = "Best: the lowest loss on held-out records, of the mean over games."
    table.caption_justify = "left"
    return table


def _shown(leakage: pd.DataFrame, best: int, last: int) -> list[int]:
    """Return the rounds to show: those that most attacks were asked of, thinned out; best and last."""
    counts = leakage.groupby("round")["attack"].nunique()
    common = [int(t) for t in counts.index[counts == counts.max()]]
    step = max(1, len(common) // _ROWS)
    return sorted({*common[::-1][::step], best, last} & set(map(int, counts.index)))
