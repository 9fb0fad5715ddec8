"""A run's results as files for papers: CSV of whole tables, LaTeX of those that are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.core import files
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.estimates import speaks_of
from fedsim.report.findings import entries

METRICS = ("auc", "balanced_accuracy", "tpr_at_fpr_0.1", "tpr_at_fpr_0.01")
"""Columns of the LaTeX table of attacks."""


def csv(run: RunDirectory, folder: Path) -> list[Path]:
    """Write the tables of results as CSV, as in the run's folder; beside each interval, of what it is.

    Raises:
        InputError: a table is corrupt, or the folder cannot be written to.
    """
    names = [name for name in ("leakage", "strongest", "ladder", "rounds", "confidence_rounds", "sources",
                               "leakage_by_round", "not_run", "attacks") if run.has(name)]  # fmt: skip
    tables = {name: _said(run.table(name), run.scenario.games) for name in names}
    return [_write(folder / f"{name}.csv", table.to_csv(index=False)) for name, table in tables.items()]


def _said(table: pd.DataFrame, games: int) -> pd.DataFrame:
    """Return a table with intervals with a column that says of which federations they speak."""
    if not {"low", "high"} <= set(table):
        return table
    one = games == 1 if "game" not in table else (table["game"].astype(str) != "all") | (games == 1)
    return table.assign(intervals_of=np.where(one, speaks_of(1), speaks_of(games)))


def latex(run: RunDirectory, folder: Path) -> list[Path]:
    """Write leakage by attack and results by party as LaTeX tables (booktabs).

    Raises:
        InputError: the run has no leakage, or the folder cannot be written to.
    """
    if not run.has("leakage"):
        raise InputError(f"{run.path} has no leakage yet; finish it with `fedsim run {run.path} --resume`")
    tables = {"attacks": attacks(run), "parties": parties(run)}
    caption = f"95\\,\\% intervals, for {speaks_of(run.scenario.games)}."
    return [_write(folder / f"{name}.tex", _booktabs(table, caption)) for name, table in tables.items()]


def attacks(run: RunDirectory) -> pd.DataFrame:
    """Return a row per attack over all parties and games, the strongest first; cells 'value (low–high)'."""
    rows = run.table("leakage")
    rows = rows[(rows["party"] == "all") & (rows["game"] == "all")]
    order = rows[rows["metric"] == "auc"].sort_values("value", ascending=False, kind="stable")
    shown = []
    keys = [name for name in ("world", "observer", "attack") if name in rows]
    for _, one in order.iterrows():
        same = rows[(rows[keys] == one[keys]).all(axis=1)].drop_duplicates("metric")
        cells = {row["metric"]: _cell(row) for row in entries(same) if row["metric"] in METRICS}
        shown.append({**{key: one[key] for key in keys}, **cells})
    table = pd.DataFrame(shown)
    return table.drop(columns=[key for key in keys[:-1] if table[key].nunique() == 1])


def parties(run: RunDirectory) -> pd.DataFrame:
    """Return a row per party: the strongest attack's AUC, ε, and the final model's utility."""
    last, table = run.final_rounds(), run.table("strongest")
    leaks = {row["party"]: row for row in entries(table[table["observer"] == "participant"])}
    rows = []
    for party in [*run.manifest["parties"], "all"]:
        of_party = last[last["party"] == party]
        leak = _cell(leaks[party]) if party in leaks else ""
        rows.append({
            "party": party, "auc": leak, "epsilon": "" if party == "all" else
            f"{of_party['epsilon'].max():.3g}", "accuracy": f"{of_party['accuracy'].mean():.3f}", "loss":
            f"{of_party['loss'].mean():.3f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _cell(row: Mapping[str, Any]) -> str:
    if pd.isna(row["value"]):
        return "n/a"
    return f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def _booktabs(table: pd.DataFrame, caption: str) -> str:
    plain = table.replace(r"([&%#_{}$])", r"\\\1", regex=True).replace("inf", r"$\infty$")
    plain.columns = [str(name).replace("_", r"\_") for name in plain.columns]
    return str(plain.to_latex(index=False, escape=False, caption=caption))


def _write(path: Path, text: str) -> Path:
    files.write_text(path, text)
    return path
