"""The operational combination: DP-SGD × regularisation × output policy × query budget, against each observer.

    python experiments/studies/operational.py [--workers 2] [--out runs/operational] [--quick]

Runs the sweep `operational` (9 cells, about 5 CPU minutes; stopped, it goes on), asks every model through
each policy within each budget as an outsider, and makes `experiments/results/operational.md`. Utility is the
model's AUC on held-out records; two trainings are matched where theirs differ by at most .02. --quick: to see
that it works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console

from attacks import execution, registry
from attacks.execution import Task
from attacks.signals import outputs
from attacks.views.outsider import ReleasedModel
from fedsim.core import files
from fedsim.core.models import released
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.evaluation.estimates import Estimate, mean
from fedsim.evaluation.outsider import ranked
from fedsim.evaluation.truth import read_truth
from fedsim.sweeps.file import load
from fedsim.sweeps.points import plan, run
from fedsim.sweeps.table import compact, write
from fedsim.terminal import live

EXPERIMENTS = Path(__file__).resolve().parents[1]
SWEEP = EXPERIMENTS / "sweeps" / "operational.toml"
QUICK = (
    "adversary.shadows=16", "federation.rounds=4", "data.max_records=150", "adversary.candidates=60",
    "training.epochs=1",
)  # fmt: skip
EPSILON = "dp.all.epsilon"
ATTACKS = ["outsider:loss", "outsider:noise-robustness"]
POLICIES = {
    "full": OutputPolicy(),
    "rounded to 1 decimal": OutputPolicy(policy="rounded", digits=1),
    "label": OutputPolicy(policy="label"),
    "Laplace, ε = 1 an answer": OutputPolicy(policy="laplace", epsilon=1.0),
}
BUDGETS = (None, 100)
TOLERANCE = 0.02
OBSERVERS = ("participant", "server")


def with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if math.isfinite(low) else f"{value:.3f}"


def training(row: pd.Series) -> str:
    """How a cell's federation was trained, in words."""
    epsilon = float(str(row[EPSILON]))
    parts = [] if math.isinf(epsilon) else [f"ε = {epsilon:g}"]
    parts += [] if row["variant"] == "none" else [str(row["variant"])]
    return " and ".join(parts) or "nothing"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]


# ------------------------------------------------------------------------------------------- figures
def by_training(found: pd.DataFrame) -> pd.DataFrame:
    """A row per training: utility, and the strongest attack of participant and server; these err upwards."""
    rows = []
    for name, cells in found.groupby("training", sort=False):
        first = cells.iloc[0]
        utility = [first[f"utility_auc{end}"] for end in ("", "_low", "_high")]
        row = {"training": name, "utility": utility[0], "utility words": with_interval(*utility)}
        for observer in OBSERVERS:
            theirs = cells[cells["observer"] == observer]
            best = theirs.loc[theirs["auc"].idxmax()]
            row[observer], row[f"{observer} low"] = best["auc"], best["auc_low"]
            said = with_interval(*(best[f"auc{end}"] for end in ("", "_low", "_high")))
            row[f"{observer} words"] = f"{said} {best['attack']}"
        rows.append(row)
    return pd.DataFrame(rows)


def asked(cell: RunDirectory, policy: OutputPolicy) -> tuple[str, Estimate]:
    """The outsider's strongest attack through a policy, over the run's games, and its AUC."""
    attacks = registry.select(ATTACKS, "outsider")
    truth = read_truth(cell.path)
    games: dict[str, list[Estimate]] = {attack.name: [] for attack in attacks}
    for game in range(cell.scenario.games):
        module = released.load(cell, game).module(policy)
        classes = len(cell.manifest["classes"])
        sight = ReleasedModel(lambda x, module=module: outputs.logits(module, x), classes, policy)
        candidates = cell.read_candidates(game).records
        results = execution.run("outsider", sight, attacks, Task(candidates, cell.scenario.seed, game))
        member = truth[truth["game"] == game]["member"].to_numpy(bool)
        for name, finding in results.findings.items():
            games[name].append(ranked(finding.scores, member))
    best = {name: mean(estimates) for name, estimates in games.items() if estimates}
    strongest = max(best, key=lambda name: best[name].value)
    return strongest, best[strongest]


def by_answers(cells: dict[str, RunDirectory]) -> dict[str, dict[str, Estimate]]:
    """Training → policy and budget → the outsider's strongest AUC."""
    told: dict[str, dict[str, Estimate]] = {}
    for training, cell in cells.items():
        told[training] = {}
        for name, policy in POLICIES.items():
            for budget in BUDGETS:
                limited = policy.model_copy(update={"queries": budget})
                words = name if budget is None else f"{name}, {budget} queries"
                told[training][words] = asked(cell, limited)[1]
    return told


# ---------------------------------------------------------------------------------------------- words
def sentences(trained: pd.DataFrame, told: dict[str, dict[str, Estimate]], games: int) -> list[str]:
    """Answer which combination to take and against whom none of it helps, in five sentences."""
    none = trained[trained["training"] == "nothing"].iloc[0]
    matched = trained[trained["utility"] >= none["utility"] - TOLERANCE]
    quiet = matched[matched["participant low"] <= 0.5]
    # Where guessing is not ruled out, a smaller AUC is chance: the model's utility decides.
    best = (
        quiet.loc[quiet["utility"].idxmax()] if len(quiet) else matched.loc[matched["participant"].idxmin()]
    )
    why = "guessing is not ruled out" if len(quiet) else "it finds least"
    regular = trained[~trained["training"].str.contains("ε") & (trained["training"] != "nothing")]
    calm = regular.loc[regular["participant"].idxmin()]
    bare, covered = told["nothing"], told[best["training"]]
    least, on_top = (min(cells, key=lambda name: cells[name].value) for cells in (bare, covered))
    told_bare, told_least = (said(bare[name]) for name in ("full", least))
    return [
        f"1. Undefended, the AUC of the participant is {none['participant words']}, of the server "
        f"{none['server words']}, of the outsider {told_bare}; utility {none['utility words']}.",
        f"2. Take **{best['training']}**: it costs at most {TOLERANCE:g} of utility, leaves the participant "
        f"where {why}, and is of these the most useful: participant {best['participant words']}, server "
        f"{best['server words']}, outsider {said(covered['full'])}; utility {best['utility words']}.",
        f"3. Of regularisation alone, {calm['training']} leaves the participant least: "
        f"{calm['participant words']}; the server {calm['server words']}; utility {calm['utility words']}.",
        f"4. The output side acts on the outsider alone: without DP '{least}' takes it from {told_bare} to "
        f"{told_least}; on top of {best['training']} the least is '{on_top}' with {said(covered[on_top])}.",
        "5. Against whoever was sent the models no answer policy and no budget helps: participant and server "
        "are where their training leaves them whatever is answered; the least of any training here is "
        f"{trained['server'].min():.2f} of the server and {trained['participant'].min():.2f} of the "
        "participant.",
        "",
        f"Each figure is the best of an observer's attacks, which errs upwards; means over {games} games.",
        "Where an interval holds .5, guessing is not ruled out.",
    ]


def said(estimate: Estimate) -> str:
    return with_interval(estimate.value, estimate.low, estimate.high)


def page(trained: pd.DataFrame, told: dict[str, dict[str, Estimate]], games: int, how: str) -> str:
    columns = ["training", "utility words", *(f"{observer} words" for observer in OBSERVERS)]
    policies = list(told["nothing"])
    answers = [
        [name, *(with_interval(e.value, e.low, e.high) for e in cells.values())]
        for name, cells in told.items()
    ]
    lines = [
        "# The operational combination",
        "",
        f"`python experiments/studies/operational.py{how}`: the five hospitals of `overfitted.toml`, trained",
        "too far. Participant and server own every candidate record (closed world, 16 shadows); the outsider",
        "owns the candidates' records alone. AUC with 95 % intervals; utility: the model's AUC on held-out",
        "records. Attacks were named before anything was run.",
        "",
        *sentences(trained, told, games),
        "",
        "## What the training does",
        "",
        *table(["training", "utility", *OBSERVERS], trained[columns].to_numpy().tolist()),
        "",
        "## What the answers do, to the outsider alone (AUC of its strongest attack)",
        "",
        *table(["training", *policies], answers),
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--out", default="runs/operational", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=2, show_default=True)
@click.option("--quick", is_flag=True, help="Few records and rounds, to see that it works.")
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
    cells = {training(pd.Series(point.labels)): RunDirectory.open(point.cell.path) for point in points}
    told = by_answers(cells)
    games = int(np.unique(whole[whole["game"] != "all"]["game"]).size)
    files.write_text(results / "operational.md", page(by_training(found), told, games, " --quick" * quick))
    click.echo(f"{results / 'operational.md'}")


if __name__ == "__main__":
    main()
