"""A run's results as rich tables: what a person reads in the terminal."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.table import Table

from attacks import suite
from clients.sectors import SECTORS
from fedsim.results import RunDirectory

_METRICS = {
    "auc": "AUC",
    "balanced_accuracy": "balanced acc.",
    "fpr": "FPR there",
    "tpr_at_fpr_0.1": "TPR @ 10 %",
    "tpr_at_fpr_0.01": "TPR @ 1 %",
    "tpr_at_fpr_0.001": "TPR @ 0.1 %",
}


def show(run: RunDirectory, console: Console) -> None:
    """Print utility and guarantee per party, leakage per attack, and leakage per attack and party."""
    console.print()
    console.print(_utility(run))
    if run.has("leakage"):
        leakage = run.table("leakage")
        console.print(_leakage(leakage))
        console.print(_exposure(leakage))
        console.print(f"[dim]{_assumptions(run)}[/dim]", highlight=False)
    else:
        console.print("No leakage yet: the run is not finished (go on with --resume).")
    console.print(f"\nRun folder: [bold]{run.path}[/bold]", highlight=False, soft_wrap=True)


def _utility(run: RunDirectory) -> Table:
    rounds = run.table("rounds")
    last = rounds.sort_values("round", kind="stable").groupby(["game", "party"], as_index=False).last()
    record = SECTORS[run.scenario.parties.sector].record
    table = Table(title=f"{run.scenario.name}: the model on held-out {record}s", title_justify="left")
    for heading in ("party", "DP-SGD", "accuracy", "AUC", "loss", "held out"):
        table.add_column(heading, justify="left" if heading in ("party", "DP-SGD") else "right")
    names = [*run.manifest.get("parties", {}), "all"]
    for name in [name for name in names if name in set(last["party"])]:
        rows = last[last["party"] == name]
        shown = f"{name} [red](adversary)[/red]" if name == run.manifest.get("adversary") else name
        table.add_row(
            shown,
            "" if name == "all" else guarantee(run, name, rows),
            *(_number(rows[column].mean()) for column in ("accuracy", "auc", "loss")),
            f"{rows['n_heldout'].mean():.0f}",
            end_section=name == names[-2],
        )
    return table


def guarantee(run: RunDirectory, party: str, rows: pd.DataFrame) -> str:
    """Say what a party has spent: 'off', or 'ε = 7.99, δ = 1e-05'."""
    settings = run.scenario.dp_of(party)
    if settings is None:
        return "off"
    refused = " (budget spent)" if (rows["status"] == "refused").any() else ""
    return f"ε = {rows['epsilon'].max():.3g}, δ = {settings.delta:.0e}{refused}"


def _leakage(leakage: pd.DataFrame) -> Table:
    overall = _over_games(leakage)
    overall = overall[overall["party"] == "all"]
    sizes = overall[overall["metric"] == "auc"].iloc[0]
    title = (
        f"Leakage to the adversary: {sizes['n_members']:.0f} members and "
        f"{sizes['n_nonmembers']:.0f} held-out records, 95 % intervals"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("attack")
    for heading in _METRICS.values():
        table.add_column(heading, justify="right")
    for attack, rows in overall.groupby("attack", sort=False):
        cells = [_cell(rows[rows["metric"] == metric]) for metric in _METRICS]
        table.add_row(str(attack), *cells)
    table.caption = (
        "Balanced accuracy is at the adversary's own threshold, set on its own records; "
        "TPR @ x % is the true positive rate at a false positive rate of x %."
    )
    return table


def _exposure(leakage: pd.DataFrame) -> Table:
    auc = _over_games(leakage)
    auc = auc[(auc["metric"] == "auc") & (auc["party"] != "all")]
    victims = list(dict.fromkeys(auc["party"]))
    table = Table(title="AUC per attack and victim party, 95 % intervals", title_justify="left")
    table.add_column("attack")
    for victim in victims:
        n = auc[auc["party"] == victim].iloc[0]
        table.add_column(f"{victim}\nn = {n['n_members']:.0f} + {n['n_nonmembers']:.0f}", justify="right")
    for attack, rows in auc.groupby("attack", sort=False):
        table.add_row(str(attack), *(_cell(rows[rows["party"] == victim]) for victim in victims))
    return table


def _over_games(leakage: pd.DataFrame) -> pd.DataFrame:
    return leakage[leakage["game"] == "all"]


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    if not math.isfinite(row["value"]):
        return "[dim]n too small[/dim]" if "resolvable" in str(row["note"]) else "-"
    return f"{_number(row['value'])} [dim]{_number(row['low'])}-{_number(row['high'])}[/dim]"


def _number(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if math.isfinite(value) else "-"


def _assumptions(run: RunDirectory) -> str:
    scenario = run.scenario
    attacks = suite.select(scenario.adversary.attacks)
    needs = "; ".join(dict.fromkeys(attack.assumes for attack in attacks if attack.assumes))
    return (
        f"Adversary: {run.manifest.get('adversary')}, a participant. It sees every global model it is sent, "
        f"its own records and updates, and the public settings. It is assumed to hold the candidate "
        f"records themselves, without knowing which were trained on. {needs}"
    )


def runs(found: list[RunDirectory]) -> Table:
    """Return the list of runs."""
    table = Table()
    for heading in ("run", "scenario", "games", "rounds", "engine", "state", "created"):
        table.add_column(heading)
    for run in found:
        manifest, scenario = run.manifest, run.scenario
        done = len(manifest.get("games", {}))
        state = "complete" if manifest.get("complete") else f"{done} of {scenario.games} games"
        table.add_row(
            str(run.path.name),
            scenario.name,
            str(scenario.games),
            str(scenario.federation.rounds),
            str(manifest.get("engine", "")),
            state,
            str(manifest.get("created", "")),
        )
    return table
