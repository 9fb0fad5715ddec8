"""The list of runs, and several of them side by side."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsim.core.errors import InputError, suggestion
from fedsim.core.run_directory import FORMAT, RunDirectory
from fedsim.report import verdicts
from fedsim.terminal.formatting import new_table, number

COLUMNS = [
    "run", "scenario", "state", "attack", "auc", "auc_low", "auc_high", "accuracy", "epsilon", "tags",
    "games", "rounds", "engine", "created",
]  # fmt: skip

SORTS = ("created", "run", "scenario", "auc", "accuracy", "epsilon")


def listed(
    runs: Sequence[RunDirectory], sort: str = "created", tag: str = "", where: str = ""
) -> pd.DataFrame:
    """Return a row per run (`COLUMNS`); of one that this fedsim does not read, its name and why.

    sort: a column of `SORTS`; figures the largest first. tag, where: only runs with this tag, or with this
    text in name, scenario or tags

    Raises:
        InputError: there is no such column to sort by.
    """
    if sort not in SORTS:
        raise InputError(f"--sort {sort}: no such column{suggestion(sort, SORTS)}")
    rows = [row for run in runs if _wanted(row := _row(run), tag, where)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    if sort == "created":
        return table
    return table.sort_values(sort, ascending=sort in ("run", "scenario"), kind="stable", ignore_index=True)


def _wanted(row: dict[str, object], tag: str, where: str) -> bool:
    text = " ".join(str(row[name]) for name in ("run", "scenario", "tags"))
    return (not tag or tag in str(row["tags"]).split(", ")) and where.lower() in text.lower()


def _row(run: RunDirectory) -> dict[str, object]:
    row: dict[str, object] = {**dict.fromkeys(COLUMNS, ""), "run": run.path.name}
    row |= dict.fromkeys(("auc", "auc_low", "auc_high", "accuracy", "epsilon"), math.nan)
    try:
        manifest = run.manifest
        row["created"] = str(manifest.get("created", ""))
        if run.format != FORMAT:
            return row | {"state": f"format {run.format}; this fedsim reads {FORMAT}"}
        scenario = run.scenario
        done = len(manifest.get("games", {}))
        state = "complete" if manifest.get("complete") else f"{done} of {scenario.games} games"
        row |= {"scenario": scenario.name, "games": str(scenario.games), "state": state,
                "rounds": str(scenario.federation.rounds), "engine": str(manifest.get("engine", "")),
                "tags": ", ".join(manifest.get("tags", []))}  # fmt: skip
        return row | _figures(run)
    except (InputError, KeyError):
        return row | {"state": "unreadable"}


def _figures(run: RunDirectory) -> dict[str, object]:
    """Return what was found, as far as it is there."""
    found: dict[str, object] = {}
    if run.has("rounds"):
        last = run.final_rounds()
        found["accuracy"] = float(last[last["party"] == "all"]["accuracy"].mean())
        found["epsilon"] = float(last[last["party"] != "all"]["epsilon"].max())
    if run.has("strongest"):
        leak = verdicts.leaks_in(run.table("strongest"))["all"]
        found |= {"attack": leak.attack, "auc": leak.value, "auc_low": leak.low, "auc_high": leak.high}
    return found


def runs(rows: pd.DataFrame) -> Table:
    """Return the list of runs."""
    table = new_table("Runs")
    for heading in ("run", "scenario", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("AUC", "accuracy", "ε"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("tags", "created"):
        table.add_column(heading)
    for row in rows.to_dict("records"):
        auc = number(row["auc"], 2)
        if math.isfinite(row["auc"]):
            auc += f"\n[dim]{number(row['auc_low'], 2)}-{number(row['auc_high'], 2)}[/dim]"
        table.add_row(*(escape(str(row[name])) for name in ("run", "scenario", "state")), auc,
                      number(row["accuracy"], 2), _epsilon(row["epsilon"]), escape(str(row["tags"])),
                      escape(str(row["created"])[:10]))  # fmt: skip
    table.caption, table.caption_justify = (
        "AUC: the strongest attack's. ε: the largest of the parties'.",
        "left",
    )
    return table


def _epsilon(value: float) -> str:
    return "-" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.3g}"


def compare(
    settings: pd.DataFrame, summary: pd.DataFrame, differences: pd.DataFrame, console: Console
) -> None:
    """Print several runs side by side, from the tables of `fedsim.report.compared`."""
    if settings.empty:
        console.print("The scenarios are the same.")
    else:
        table = new_table("In what the scenarios differ")
        for name in settings.columns:
            table.add_column(escape(str(name)), overflow="fold")
        for values in settings.itertuples(index=False):
            table.add_row(*(escape(str(value)) for value in values))
        console.print(table)
    table = new_table("Runs")
    for heading in ("run", "DP-SGD", "attack", "AUC", "accuracy", "loss", "intervals of"):
        figure = heading in ("AUC", "accuracy", "loss")
        table.add_column(heading, justify="right" if figure else "left")
    for row in summary.to_dict("records"):
        auc, accuracy = (
            _with_interval(row, (name, f"{name}_low", f"{name}_high")) for name in ("auc", "accuracy")
        )
        table.add_row(*(escape(str(row[name])) for name in ("run", "DP-SGD", "attack")), auc, accuracy,
                      number(row["loss"]), row["intervals of"])  # fmt: skip
    console.print(table)
    table = new_table(f"Differences from {escape(str(summary['run'].iloc[0]))}, with 95 % intervals")
    for heading in ("run", "of", "difference", "how", "intervals of"):
        table.add_column(heading, justify="right" if heading == "difference" else "left")
    for row in differences.to_dict("records"):
        table.add_row(
            escape(str(row["run"])), row["of"], _with_interval(row, ("value", "low", "high"), "+"),
            row["how"], row["intervals of"],
        )  # fmt: skip
    console.print(table)


def _with_interval(row: Mapping[Hashable, Any], names: tuple[str, str, str], sign: str = "") -> str:
    value, low, high = (row[name] for name in names)
    shown = f"{value:{sign}.3f}"
    return shown if not math.isfinite(low) else f"{shown}\n[dim]{low:{sign}.3f} to {high:{sign}.3f}[/dim]"
