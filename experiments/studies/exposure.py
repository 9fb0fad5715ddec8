"""How well exposure that is predicted before joining ranks what round decoding then finds of each record.

    python experiments/studies/exposure.py [--scenario hospitals] [--games 24] [--data-dir data]

Makes `experiments/results/exposure.md`. The scenario's federation is run in as many games, each with members
and a w_0 of its own; `round-decoding` attacks in the world in which half of the members are unknown. A
record's measured exposure is by how much its score's rank in a game rises where it is a member
(`comparison.vulnerability`), and the prediction is that of `fedsim exposure` for its party, of game 0's w_0.
Spearman's rank correlation over a party's records, with a 95 % interval by Fisher's z (Fieller, Hartley &
Pearson 1957). Measured exposures are noisy, the noisier the fewer the games, which pulls it towards 0: beside
it stands the correlation of the measured exposures of even and odd games, which a perfect prediction could
not much exceed the square root of.
"""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np
import pandas as pd

from fedsim.core import files
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario import reading
from fedsim.evaluation import truth
from fedsim.evaluation.comparison import vulnerability
from fedsim.evaluation.leakage import joined
from fedsim.evaluation.results import in_world
from fedsim.runs import play, prepare
from fedsim.runs.exposure import expose

EXPERIMENTS = Path(__file__).resolve().parents[1]
ATTACK, WORLD = "round-decoding", "half"


def judged(run: RunDirectory) -> pd.DataFrame:
    """The attack's scores beside the truth."""
    scores = in_world(run, run.table("scores"), WORLD)
    scores = scores[(scores["attack"] == ATTACK) & (scores["observer"] == "participant")]
    keys = ["game", "observer", "attack", "world"]
    thresholds = scores[[*keys, "threshold"]].drop_duplicates()
    return joined(scores.drop(columns="threshold"), thresholds, truth.read_truth(run.path))


def spearman(a: pd.Series, b: pd.Series) -> str:
    """The rank correlation of what both know, with its interval."""
    from scipy.stats import spearmanr

    both = pd.concat([a, b], axis=1).dropna().to_numpy()
    if len(both) < 5:
        return f"too few (n = {len(both)})"
    rank = float(spearmanr(both[:, 0], both[:, 1]).statistic)
    reach = 1.96 * math.sqrt(1.06 / (len(both) - 3))
    low, high = np.tanh([np.arctanh(rank) - reach, np.arctanh(rank) + reach])
    return f"{rank:+.2f} ({low:+.2f} to {high:+.2f}), n = {len(both)}"


def measured(rows: pd.DataFrame, party: str) -> pd.Series:
    table = vulnerability(rows[rows["party"] == party])
    return table.set_index("record")["value"]


@click.command()
@click.option("--scenario", default="hospitals", show_default=True)
@click.option("--games", default=24, show_default=True, type=click.IntRange(4))
@click.option("--rounds", default=2, show_default=True, type=click.IntRange(1))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--out", default="runs/exposure", show_default=True, type=click.Path(path_type=Path))
@click.option("--table", default=EXPERIMENTS / "results" / "exposure.md", type=click.Path(path_type=Path))
def main(scenario: str, games: int, rounds: int, data_dir: Path | None, out: Path, table: Path) -> None:
    settings = [f"games={games}", f"federation.rounds={rounds}", f'adversary.attacks=["{ATTACK}"]']
    settings += [f'adversary.worlds=["{WORLD}"]', "adversary.candidates=100000"]
    prepared = prepare.check(reading.load(EXPERIMENTS / f"{scenario}.toml", settings), data_dir)
    run = prepare.prepare(prepared, out / scenario)
    play.federate(run)
    rows = judged(run)
    even = rows["game"].astype(int) % 2 == 0
    lines = [
        "# Exposure predicted before joining, and what round decoding found",
        "",
        f"`{scenario}.toml`, {games} games of {rounds} rounds, world `{WORLD}`. Made by",
        f"`python experiments/studies/exposure.py --scenario {scenario} --games {games} --rounds {rounds}`,",
        "whose first lines say what is compared. Rank correlations with 95 % intervals.",
        "",
        "| party | predicted with measured | measured, even with odd games | mean AUC predicted |",
        "|---|---|---|---|",
    ]
    for party in [name for name in prepared.rows if name != prepared.adversary]:
        predicted = expose(prepared, party).records.set_index("record")
        halves = [measured(rows[side], party) for side in (even, ~even)]
        cells = [spearman(predicted["separation"], measured(rows, party)), spearman(*halves)]
        lines.append(f"| {party} | {' | '.join(cells)} | {predicted['auc'].mean():.3f} |")
    files.write_text(table, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
