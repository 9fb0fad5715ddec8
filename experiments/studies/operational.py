"""The operational combination: DP-SGD × regularisation × output policy × query budget, against each observer.

    python experiments/studies/operational.py [--workers 2] [--out runs/operational] [--quick]

Runs the sweep `operational` (54 cells, about 12 CPU minutes; stopped, it goes on) and makes
`experiments/results/operational.md`. Utility is the model's AUC on held-out records; two cells are matched
where theirs differ by at most .02. --quick: a few cells' worth of minutes, to see that it works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click
import pandas as pd
from rich.console import Console

from fedsim.core import files
from fedsim.sweeps.file import load
from fedsim.sweeps.points import plan, run
from fedsim.sweeps.table import compact, write
from fedsim.terminal import live

EXPERIMENTS = Path(__file__).resolve().parents[1]
SWEEP = EXPERIMENTS / "sweeps" / "operational.toml"
QUICK = (
    "games=2", "adversary.shadows=16", "federation.rounds=4", "data.max_records=150",
    "adversary.candidates=60", "training.epochs=1",
)  # fmt: skip
EPSILON, POLICY, QUERIES = "dp.all.epsilon", "adversary.output.policy", "adversary.output.queries"
TOLERANCE = 0.02
OBSERVERS = ("participant", "server", "outsider")


def with_interval(row: pd.Series, metric: str) -> str:
    value, low, high = (row[f"{metric}{end}"] for end in ("", "_low", "_high"))
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if not math.isfinite(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def training(row: pd.Series) -> str:
    """How a cell's federation was trained, in words."""
    epsilon = float(str(row[EPSILON]))
    parts = [] if math.isinf(epsilon) else [f"ε = {epsilon:g}"]
    parts += [] if row["variant"] == "none" else [str(row["variant"])]
    return " and ".join(parts) or "nothing"


def answers(row: pd.Series, limit: int) -> str:
    """What a cell's outsider is told, in words."""
    budget = "" if int(row[QUERIES]) >= limit else f", {int(row[QUERIES])} queries"
    return f"{row[POLICY]}{budget}"


def strongest(rows: pd.DataFrame, observer: str) -> pd.Series:
    """The row of an observer's attack with the largest AUC: its figures err upwards."""
    theirs = rows[rows["observer"] == observer]
    return theirs.loc[theirs["auc"].idxmax()]


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]


def by_training(found: pd.DataFrame) -> pd.DataFrame:
    """A row per federation: utility and the strongest of participant, server and the unlimited outsider."""
    limit = int(found[QUERIES].max())
    rows = []
    for name, cells in found.groupby("training", sort=False):
        open_cells = cells[(cells[POLICY] == "full") & (cells[QUERIES] == limit)]
        row = {"training": name, "utility": open_cells.iloc[0]["utility_auc"]}
        row["utility words"] = with_interval(open_cells.iloc[0], "utility_auc")
        for observer in OBSERVERS:
            best = strongest(open_cells, observer)
            row[observer] = best["auc"]
            row[f"{observer} words"] = f"{with_interval(best, 'auc')} {best['attack']}"
        rows.append(row)
    return pd.DataFrame(rows)


def by_answers(found: pd.DataFrame) -> pd.DataFrame:
    """A row per federation, a column per policy and budget: the outsider's strongest AUC."""
    limit = int(found[QUERIES].max())
    outsider = found[found["observer"] == "outsider"]
    cells = outsider.assign(told=[answers(row, limit) for _, row in outsider.iterrows()])
    best = cells.groupby(["training", "told"], sort=False)["auc"].max()
    return best.unstack("told")[list(dict.fromkeys(cells["told"]))]


def sentences(trained: pd.DataFrame, told: pd.DataFrame, games: int) -> list[str]:
    """Answer which combination to take and against whom none of it helps, in five sentences."""
    none = trained[trained["training"] == "nothing"].iloc[0]
    matched = trained[trained["utility"] >= none["utility"] - TOLERANCE]
    best = matched.loc[matched["participant"].idxmin()]
    quiet = told.loc[best["training"]].idxmin()
    alone = told.loc["nothing"].drop("full")
    weakest = alone.idxmin()
    regular = trained[~trained["training"].str.contains("ε") & (trained["training"] != "nothing")]
    calm = regular.loc[regular["participant"].idxmin()]
    return [
        f"1. Undefended, the strongest attack of the participant has an AUC of {none['participant']:.2f}, of "
        f"the server {none['server']:.2f} and of the outsider {none['outsider']:.2f}, at a utility of "
        f"{none['utility']:.3f}.",
        f"2. Of what costs at most {TOLERANCE:g} of utility, **{best['training']}** leaves the participant "
        f"least: {best['participant']:.2f} (server {best['server']:.2f}, outsider {best['outsider']:.2f}), "
        f"at a utility of {best['utility']:.3f}.",
        f"3. Regularisation alone leaves the participant {calm['participant']:.2f} at best "
        f"({calm['training']}, utility {calm['utility']:.3f}) and the server {calm['server']:.2f}.",
        f"4. The output side acts on the outsider alone: without DP '{weakest}' takes it from "
        f"{told.loc['nothing', 'full']:.2f} to {alone.min():.2f}; on top of {best['training']} the least "
        f"is '{quiet}' with {told.loc[best['training']].min():.2f}.",
        "5. Against whoever was sent the models no answer policy and no budget helps; no training here takes "
        f"the server below {trained['server'].min():.2f}, or the participant below "
        f"{trained['participant'].min():.2f}.",
        "",
        f"Each figure is the best of an observer's attacks, which errs upwards; means over {games} games.",
    ]


@click.command()
@click.option("--out", default="runs/operational", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=2, show_default=True)
@click.option("--quick", is_flag=True, help="Few games, records and rounds, to see that it works.")
@click.option("--results", default=EXPERIMENTS / "results", type=click.Path(path_type=Path))
def main(out: Path, data_dir: Path | None, workers: int, quick: bool, results: Path) -> None:
    console, results = Console(stderr=True), out / "results" if quick else results
    with live.bar("checking", console) as progress:
        points = plan(SWEEP, out.resolve() / "cells", data_dir, QUICK if quick else (), progress)
    with live.sweep(points, workers, console) as watch:
        failed = run(points, workers, watch=watch)
    if failed:
        raise click.ClickException(f"{len(failed)} points failed; the same command tries them again")
    whole = write(points, out, failed)
    found = compact(whole, load(SWEEP).headline)
    found = found.assign(training=[training(row) for _, row in found.iterrows()])
    trained, told = by_training(found), by_answers(found)
    games = whole[whole["game"] != "all"]["game"].nunique()
    columns = ["training", "utility words", *(f"{observer} words" for observer in OBSERVERS)]
    lines = [
        "# The operational combination",
        "",
        f"`python experiments/studies/operational.py{' --quick' if quick else ''}`: the five hospitals of",
        "`overfitted.toml`, trained too far. Participant and server own every candidate record (closed",
        "world, 16 shadows); the outsider owns the candidates' records alone. AUC with 95 % intervals;",
        "utility: the model's AUC on held-out records. Attacks were named before anything was run.",
        "",
        *sentences(trained, told, games),
        "",
        "## What the training does",
        "",
        *table(["training", "utility", *OBSERVERS], trained[columns].to_numpy().tolist()),
        "",
        "## What the answers do, to the outsider alone (AUC of its strongest attack)",
        "",
        *table(
            ["training", *told.columns],
            [
                [name, *(f"{value:.3f}" for value in row)]
                for name, row in zip(told.index, told.to_numpy(), strict=True)
            ],
        ),
    ]
    files.write_text(results / "operational.md", "\n".join(lines) + "\n")
    click.echo(f"{results / 'operational.md'}")


if __name__ == "__main__":
    main()
