"""Every attack on four data sets: makes `experiments/results/attacks.md`.

    python experiments/studies/every_attack.py --workers 4 [--data-dir data] [--only hospitals]

Each scenario is run with several games; the tables give AUC and TPR at 1 % and 0.1 % FPR with 95 % intervals
from a participant's view, and each attack's paired difference to federated LiRA on the same shadows
and games. In front, the closed and the open world side by side, with what the strongest attacks cost. Runs
and costs are kept below --out, so that a second call only makes the tables again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import pandas as pd

from attacks import execution, registry
from attacks.execution import Task
from attacks.shadows.suite import Laboratory
from attacks.views import observations
from fedsim.core import rng
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.evaluation import comparison, estimates
from fedsim.evaluation.results import judged
from fedsim.runs import observers, play, prepare
from fedsim.runs.prepare import Prepared

EXPERIMENTS = Path(__file__).resolve().parents[1]
GAMES = {"hospitals": (12, 12), "heart": (8, 8), "digits": (8, 8), "location": (8, 8)}
"""Games of each scenario in the closed and in the open world, each of 1000 held-out candidates and more."""
BASELINE = "lira"
STRONGEST = ("lira", "first-update", "joint")
"""The attacks that are set side by side, and timed."""
OPEN = ("loss", "update-regression", "lira", "lira-rounds", "rmia", "combined", "joint", "first-update")
"""The attacks in the open world, where most say what they say in the closed one."""
RATES = (0.01, 0.001)


def finished_run(
    name: str, world: str, out: Path, data_dir: Path | None, workers: int, overrides: list[str]
) -> RunDirectory:
    folder = out / f"{name}-{world}"
    if (folder / "manifest.json").exists():
        run = RunDirectory.open(folder)
    else:
        prepared = prepare.check(load(EXPERIMENTS / f"{name}.toml", overrides), data_dir)
        if world == "open":
            prepared = with_half_of_the_records_unknown(prepared)
        run = prepare.prepare(prepared, folder)
    if not run.manifest.get("complete"):
        play.federate(run, workers=workers)
    return run


def with_half_of_the_records_unknown(prepared: Prepared) -> Prepared:
    """Open world: the adversary owns half of the other parties' records, the candidates, and no more."""
    others = sum(len(rows) for name, rows in prepared.rows.items() if name != prepared.adversary)
    told = {"candidates": others // 2, "auxiliary_size": 0, "attacks": list(OPEN)}
    adversary = prepared.scenario.adversary.model_copy(update=told)
    scenario = prepared.scenario.model_copy(update={"adversary": adversary})
    return dataclasses.replace(prepared, scenario=scenario)


def interval(row: pd.Series) -> str:
    if not np.isfinite(row["value"]):
        return "n too small"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def against_baseline(found: pd.DataFrame, attack: str, fpr: float) -> str:
    """The paired difference to the baseline's TPR at this FPR; nothing where n is too small for it.

    found: the scores of all attacks, joined with the truth
    """
    if attack == BASELINE:
        return ""
    games = comparison.scored(found, [("participant", attack), ("participant", BASELINE)])
    if not estimates.bounded_below(sum(int((~game.member).sum()) for game in games), fpr):
        return ""
    result = comparison.compare_tpr(games, fpr, rng.generator(0, "study", party=attack), draws=1000)
    return f"{100 * result.value:+.1f} ({100 * result.low:+.1f} to {100 * result.high:+.1f})"


def seconds_a_game(run: RunDirectory, workers: int) -> dict[str, float]:
    """Seconds that each of the strongest attacks takes alone on the first game, its shadows included."""
    file = run.path / "seconds.json"
    if not file.exists():
        view = observers.sight(run, 0, "participant")
        candidates = observations.load_candidates(run.observations(0))
        seconds = {}
        for name in STRONGEST:
            started = time.monotonic()
            task = Task(candidates, run.scenario.seed, 0, Laboratory(workers))
            execution.run("participant", view, registry.attacks_of(run.scenario, names=[name]), task)
            seconds[name] = time.monotonic() - started
        file.write_text(json.dumps(seconds), encoding="utf-8")
    return {name: float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}


HEADER = (
    "AUC | TPR at 1 % FPR | TPR at 0.1 % FPR | points above LiRA at 1 % | at 0.1 % |",
    "---|---|---|---|---|",
)


def rows(run: RunDirectory) -> dict[str, str]:
    """Attack → the cells of its row, in the order of the suite."""
    leakage = run.table("leakage")
    overall = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")]
    overall = overall[overall["observer"] == "participant"]
    joined, found = judged(run), {}
    for attack, metrics in overall.groupby("attack", sort=False):
        by_metric = metrics.set_index("metric")
        cells = [interval(by_metric.loc[m]) for m in ("auc", *(f"tpr_at_fpr_{rate:g}" for rate in RATES))]
        cells += [against_baseline(joined, str(attack), rate) for rate in RATES]
        found[str(attack)] = " | ".join(cells) + " |"
    return found


def section(run: RunDirectory, world: str, cells: dict[str, str]) -> list[str]:
    leakage = run.table("leakage")
    sizes = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")].iloc[0]
    scenario = run.scenario
    return [
        f"## {scenario.name}, {world} world",
        "",
        f"{scenario.games} games of {scenario.adversary.shadows} shadows; {sizes['n_members']:.0f} members "
        f"and {sizes['n_nonmembers']:.0f} held-out candidates in all games; auxiliary records "
        f"'{scenario.adversary.auxiliary}'.",
        "",
        f"| attack | {HEADER[0]}",
        f"|---|{HEADER[1]}",
        *(f"| {attack} | {row}" for attack, row in cells.items()),
        "",
    ]


def side_by_side(found: list[tuple[RunDirectory, str, dict[str, str]]], workers: int) -> list[str]:
    lines = [
        "## The strongest, closed and open world side by side",
        "",
        f"Seconds: of the attack alone on one game, its shadows included, with {workers} workers;",
        "in the open world it takes about as long.",
        "",
        f"| scenario | world | attack | {HEADER[0]} seconds |",
        f"|---|---|---|{HEADER[1]}---|",
    ]
    for run, world, cells in found:
        seconds = seconds_a_game(run, workers) if world == "closed" else {}
        for attack in STRONGEST:
            where = f"{run.scenario.name} | {world} | {attack}"
            cost = f"{seconds[attack]:.0f}" if seconds else ""
            lines.append(f"| {where} | {cells[attack]} {cost} |")
    return [*lines, ""]


TITLE = [
    "# What a participant finds, attack by attack",
    "",
    "From a participant's view. Closed world: every member is among the records that the adversary owns.",
    "Open world: half of them are not. Intervals are 95 %. Made by",
    "`python experiments/studies/every_attack.py`.",
    "",
]


@click.command()
@click.option("--out", default="runs/attacks", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=4, show_default=True)
@click.option("--games", type=int, help="Instead of each scenario's own number.")
@click.option("--shadows", default=256, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(GAMES)), help="Only these scenarios.")
@click.option("--table", default=EXPERIMENTS / "results" / "attacks.md", type=click.Path(path_type=Path))
def main(
    out: Path,
    data_dir: Path | None,
    workers: int,
    games: int | None,
    shadows: int,
    only: tuple[str, ...],
    table: Path,
) -> None:
    found: list[tuple[RunDirectory, str, dict[str, str]]] = []
    for name in only or GAMES:
        for world, repeats in zip(("closed", "open"), GAMES[name], strict=True):
            started = time.monotonic()
            sizes = [f"games={games or repeats}", f"adversary.shadows={shadows}"]
            run = finished_run(name, world, out, data_dir, workers, [*sizes, "adversary.attacks=['all']"])
            found.append((run, world, rows(run)))
            click.echo(f"{name}, {world} world: {time.monotonic() - started:.0f} s")
            table.parent.mkdir(parents=True, exist_ok=True)
            sections = [line for each in found for line in section(*each)]
            lines = [*TITLE, *side_by_side(found, workers), *sections]
            table.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
