"""Tables of what language models memorised."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.secrets import UNASKED
from fedsim.terminal.formatting import new_table, number

HEADINGS = (
    "round", "letters", "n", "exposure,\nbits", "AUC against\nnever there", "comes out\ngreedily",
    "likely in\n100 draws", "unasked",
)  # fmt: skip
METRICS = ("exposure", "auc", "extracted", "discoverable in 100 draws")

SHOWN = 5
"""Secrets that are shown as they came out."""


def show(run: RunDirectory, console: Console, show_secrets: bool = False) -> None:
    """Print exposure and extraction by round and number of letters, and some of what came out."""
    table, measured = run.table("memorisation"), run.table("memorised")
    bits = float(measured["bits"].iloc[0])
    for observer, rows in table.groupby("observer"):
        console.print(memorisation(rows, bits, str(observer)))
    measured = measured[measured["observer"] == "participant"]
    last = measured[(measured["round"] == measured["round"].max()) & measured["inserted"]]
    for line in sentences(last, show_secrets):
        console.print(line, markup=False, highlight=False)


def memorisation(table: pd.DataFrame, bits: float, observer: str) -> Table:
    """Return one row a round and number of letters; table: see `fedsim.evaluation.secrets.summary`."""
    models = {"server": "each party's own last answer"}.get(observer, "the global models")
    shown = new_table(f"Secrets of the other parties, asked of {models} behind their prefix")
    for heading in HEADINGS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for (t, letters), rows in table.groupby(["round", "letters"]):
        by_metric = {row["metric"]: row for row in rows.to_dict("records")}
        unasked = max(by_metric[metric]["value"] for metric in UNASKED)
        cells = [_cell(by_metric.get(metric), 1 if metric == "exposure" else 2) for metric in METRICS]
        count = str(letters) if letters else "never"
        shown.add_row(str(t), count, str(rows["n"].iloc[0]), *cells, number(unasked))
    shown.caption = (
        f"At {bits:.1f} bits of exposure the model names the number first. The adversary is assumed to know "
        "what stands before the number, the patient's name among it; 'unasked' it knows nothing of her. "
        "Round 0 and 'never' are what is guessed without memory."
    )
    shown.caption_justify = "left"
    return shown


def _cell(row: dict[Hashable, Any] | None, digits: int = 2) -> str:
    if row is None:
        return "-"
    value, low, high = (number(row[key], digits) for key in ("value", "low", "high"))
    return f"{value}\n[dim]{low}-{high}[/dim]"


def sentences(last: pd.DataFrame, show_secrets: bool) -> list[str]:
    """Return what came out of the last model; but two digits of a number are masked unless asked for."""
    came = last[last["extracted"]].sort_values("letters")
    lines = (
        [f"{len(came)} of {len(last)} secrets came out verbatim; the most memorable ones:"]
        if len(came)
        else []
    )
    for _, row in came.tail(SHOWN).iterrows():
        secret = row["secret"] if show_secrets else row["secret"][:2] + "•" * (len(row["secret"]) - 2)
        lines.append(f"  “{row['prefix']}»{secret}«”  ({row['party']}, in {row['letters']} letters)")
    if len(came) and not show_secrets:
        lines.append("  --show-secrets prints the numbers.")
    return lines
