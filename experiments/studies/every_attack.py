"""The strong attacks in every world, on four data sets: makes `experiments/results/attacks.md`.

    python experiments/studies/every_attack.py --workers 2 [--data-dir data] [--only hospitals] [--suite]

Each federation is trained once a game and attacked in four worlds: the adversary owns all, half or a tenth of
the others' records, or none but the one it asks about. The tables give AUC and TPR at 1 % FPR with 95 %
intervals from a participant's view, and each attack's paired difference to federated LiRA of the same world,
shadows and games. Runs are kept below --out, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import pandas as pd

from fedsim.core import rng
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import OWNS
from fedsim.core.scenario.reading import load
from fedsim.evaluation import comparison, estimates
from fedsim.evaluation.comparison import Comparison
from fedsim.evaluation.results import in_world, judged
from fedsim.runs import play, prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
GAMES = {"hospitals": 6, "heart": 4, "digits": 2, "location": 1}
WORLDS = ("all", "half", "few", "none")
STRONG = (
    "loss", "update-regression", "round-decoding", "lira", "lira-offline", "lira-rounds", "rmia",
    "rmia-offline", "combined", "joint",
)  # fmt: skip
BASELINES = ("lira", "lira-offline")
"""The first of them that runs in a world is what others are compared with."""
RATE = 0.01


def finished_run(
    name: str, out: Path, data_dir: Path | None, workers: int, overrides: list[str]
) -> RunDirectory:
    folder = out / name
    if (folder / "manifest.json").exists():
        run = RunDirectory.open(folder)
    else:
        prepared = prepare.check(load(EXPERIMENTS / f"{name}.toml", overrides), data_dir)
        run = prepare.prepare(prepared, folder)
    if not run.manifest.get("complete"):
        play.federate(run, workers=workers)
    return run


def interval(row: pd.Series, scale: float = 1.0, digits: int = 3) -> str:
    if not np.isfinite(row["value"]):
        return "n too small"
    value, low, high = (scale * row[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def signed(result: Comparison, scale: float, digits: int) -> str:
    numbers = (f"{scale * value:+.{digits}f}" for value in (result.value, result.low, result.high))
    return "{} ({} to {})".format(*numbers)


def differences(found: pd.DataFrame, attack: str, baseline: str) -> list[str]:
    """The paired differences of AUC and TPR to the baseline; nothing where n is too small for one.

    found: one world's scores, joined with the truth
    """
    if attack == baseline:
        return ["", ""]
    keys = [("participant", attack), ("participant", baseline)]
    games = comparison.scored(comparison.of_attacks(found, keys), keys)
    texts = [signed(comparison.compare_auc(games), 1, 3)]
    if not estimates.bounded_below(sum(int((~game.member).sum()) for game in games), RATE):
        return [*texts, ""]
    rate = comparison.compare_tpr(games, RATE, rng.generator(0, "study", party=attack), draws=1000)
    return [*texts, signed(rate, 100, 1)]


def table(run: RunDirectory, world: str) -> list[str]:
    leakage = in_world(run, run.table("leakage"), world)
    overall = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")]
    overall = overall[overall["observer"] == "participant"]
    found = judged(run, world)
    names = list(dict.fromkeys(overall["attack"]))
    baseline = next((name for name in BASELINES if name in names), names[0])
    sizes = overall.iloc[0]
    lines = [
        f"### {run.scenario.name}, world '{world}'",
        "",
        f"The adversary owns {OWNS[world]}. {sizes['n_members']:.0f} members and "
        f"{sizes['n_nonmembers']:.0f} held-out candidates in all games; {seconds(run, world)}",
        "",
        f"| attack | AUC | TPR at 1 % FPR, in % | AUC above {baseline} | points above {baseline} at 1 % |",
        "|---|---|---|---|---|",
    ]
    for attack in names:
        by_metric = overall[overall["attack"] == attack].set_index("metric")
        cells = [interval(by_metric.loc["auc"]), interval(by_metric.loc["tpr_at_fpr_0.01"], 100, 1)]
        lines.append(f"| {attack} | {' | '.join([*cells, *differences(found, attack, baseline)])} |")
    return [*lines, ""]


def seconds(run: RunDirectory, world: str) -> str:
    took = [by_world[world] for by_world in run.manifest["world_seconds"].values() if world in by_world]
    return f"all attacks of this world took {np.mean(took):.0f} s a game."


def section(run: RunDirectory) -> list[str]:
    scenario = run.scenario
    lines = [
        f"## {scenario.name}",
        "",
        f"{scenario.games} games, {scenario.federation.rounds} rounds, {scenario.adversary.shadows} shadows.",
        "",
    ]
    for world in scenario.adversary.ladder:
        lines += table(run, world)
    return lines


TITLE = [
    "# What a participant finds, world by world and attack by attack",
    "",
    "From a participant's view. Each federation is trained once and attacked by adversaries that own less",
    "and less. All of them know the parties' sizes, w_0 and the training's settings, and assume that half of",
    "those they ask about are members; what each of these is worth stands in `ladder.md`. Intervals are",
    "95 %, differences paired; of few games they say little about how games differ. Made by",
    "`python experiments/studies/every_attack.py`.",
    "",
]


@click.command()
@click.option("--out", default="runs/attacks", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=2, show_default=True)
@click.option("--games", type=int, help="Instead of each scenario's own number.")
@click.option("--shadows", default=256, show_default=True)
@click.option("--suite", is_flag=True, help="All attacks, not the strong ones alone.")
@click.option("--only", multiple=True, type=click.Choice(list(GAMES)), help="Only these scenarios.")
@click.option(
    "--table", "page", default=EXPERIMENTS / "results" / "attacks.md", type=click.Path(path_type=Path)
)
def main(
    out: Path,
    data_dir: Path | None,
    workers: int,
    games: int | None,
    shadows: int,
    suite: bool,
    only: tuple[str, ...],
    page: Path,
) -> None:
    sections: list[str] = []
    for name in only or GAMES:
        started = time.monotonic()
        attacks = ["all"] if suite else list(STRONG)
        told = {"worlds": list(WORLDS), "attacks": attacks, "shadows": shadows}
        overrides = [
            f"games={games or GAMES[name]}",
            *(f"adversary.{key}={value}" for key, value in told.items()),
        ]
        run = finished_run(name, out, data_dir, workers, overrides)
        sections += section(run)
        click.echo(f"{name}: {time.monotonic() - started:.0f} s")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join([*TITLE, *sections][:-1]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
