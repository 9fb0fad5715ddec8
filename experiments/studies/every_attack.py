"""Every attack on four data sets: makes `experiments/results/attacks.md`.

    python experiments/studies/every_attack.py --workers 4 [--data-dir data] [--games 8] [--only hospitals]

Each scenario is run with several games; the table gives AUC and TPR at 1 % and 0.1 % FPR with 95 % intervals
from a participant's view, and each attack's paired difference to federated LiRA on the same shadows
and games. Runs are kept below --out, so that a second call only makes the table again.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

from attacks import comparison, evaluation
from fedsim import rng, runner
from fedsim.data import membership
from fedsim.results import RunDirectory
from fedsim.scenario import load

EXPERIMENTS = Path(__file__).resolve().parents[1]
NAMES = ("hospitals", "heart", "location", "digits")
BASELINE = "lira"
SHADOWED = ("loss", "lira", "lira-rounds", "rmia", "joint")


def finished_run(
    name: str, world: str, out: Path, data_dir: Path | None, workers: int, overrides: list[str]
) -> RunDirectory:
    folder = out / f"{name}-{world}"
    if (folder / "manifest.json").exists():
        run = RunDirectory.open(folder)
    else:
        prepared = runner.check(load(EXPERIMENTS / f"{name}.toml", overrides), data_dir)
        if world == "open":
            prepared = with_half_of_the_records_unknown(prepared)
        run = runner.prepare(prepared, folder)
    if not run.manifest.get("complete"):
        runner.federate(run, workers=workers)
    return run


def with_half_of_the_records_unknown(prepared: runner.Prepared) -> runner.Prepared:
    """Open world: the adversary owns half of the other parties' records, the candidates, and no more."""
    others = sum(len(rows) for name, rows in prepared.rows.items() if name != prepared.adversary)
    told = {"candidates": others // 2, "auxiliary_size": 0, "attacks": list(SHADOWED)}
    adversary = prepared.scenario.adversary.model_copy(update=told)
    scenario = prepared.scenario.model_copy(update={"adversary": adversary})
    return dataclasses.replace(prepared, scenario=scenario)


def interval(row: pd.Series) -> str:
    if not np.isfinite(row["value"]):
        return "n too small"
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def against_baseline(run: RunDirectory, attack: str) -> str:
    """The paired difference to the baseline's TPR at 1 % FPR."""
    if attack == BASELINE:
        return ""
    scores = run.table("scores")
    thresholds = scores[["game", "attack", "threshold"]].drop_duplicates(ignore_index=True)
    truth = membership.read_truth(run.path)
    found = evaluation.joined(scores[["game", "attack", "candidate", "score"]], thresholds, truth)
    games = comparison.scored(found, [attack, BASELINE])
    result = comparison.compare_tpr(games, 0.01, rng.generator(0, "study", party=attack), draws=1000)
    return f"{100 * result.value:+.1f} ({100 * result.low:+.1f} to {100 * result.high:+.1f})"


def section(run: RunDirectory, world: str) -> str:
    leakage = run.table("leakage")
    overall = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")]
    sizes = overall[overall["metric"] == "auc"].iloc[0]
    scenario = run.scenario
    seconds = sum(game["seconds"] for game in run.manifest["games"].values())
    lines = [
        f"## {scenario.name}, {world} world",
        "",
        f"{scenario.games} games of {scenario.adversary.shadows} shadows; {sizes['n_members']:.0f} members "
        f"and {sizes['n_nonmembers']:.0f} held-out candidates in all games; auxiliary records "
        f"'{scenario.adversary.auxiliary}'; {seconds:.0f} s in all with {run.manifest['workers']} workers.",
        "",
        "| attack | AUC | TPR at 1 % FPR | TPR at 0.1 % FPR | TPR at 1 %, points above LiRA |",
        "|---|---|---|---|---|",
    ]
    for attack, rows in overall.groupby("attack", sort=False):
        by_metric = rows.set_index("metric")
        cells = [interval(by_metric.loc[m]) for m in ("auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")]
        lines.append(f"| {attack} | {' | '.join(cells)} | {against_baseline(run, str(attack))} |")
    return "\n".join(lines)


@click.command()
@click.option("--out", default="runs/attacks", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=4, show_default=True)
@click.option("--games", default=8, show_default=True)
@click.option("--shadows", default=256, show_default=True)
@click.option("--only", multiple=True, help="Only these scenarios.")
@click.option("--table", default=EXPERIMENTS / "results" / "attacks.md", type=click.Path(path_type=Path))
def main(
    out: Path,
    data_dir: Path | None,
    workers: int,
    games: int,
    shadows: int,
    only: tuple[str, ...],
    table: Path,
) -> None:
    parts = [
        "# What a participant finds, attack by attack",
        "",
        "From a participant's view. Closed world: every member is among the records that the adversary owns.",
        "Open world: half of them are not. Intervals are 95 %. Made by",
        f"`python experiments/studies/every_attack.py --games {games} --shadows {shadows}`.",
    ]
    for name in only or NAMES:
        overrides = [f"games={games}", f"adversary.shadows={shadows}", "adversary.attacks=['all']"]
        for world in ("closed", "open"):
            started = time.monotonic()
            run = finished_run(name, world, out, data_dir, workers, overrides)
            parts += ["", section(run, world)]
            click.echo(f"{name}, {world} world: {time.monotonic() - started:.0f} s")
            table.parent.mkdir(parents=True, exist_ok=True)
            table.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
