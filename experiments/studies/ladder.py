"""What each thing that the adversary owns and knows is worth to it: makes `experiments/results/ladder.md`.

    python experiments/studies/ladder.py --workers 2 [--data-dir data] [--games 3]

One federation a game, without DP and at ε = 8 at every party, attacked again and again: by adversaries to
whom 0 to 100 % of the members are unknown; and, where half are, by such as do not know the parties' sizes,
the share of members, the learning rate, or see fewer rounds. Runs and scores are kept below --out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import pandas as pd
from every_attack import EXPERIMENTS, finished_run, interval

from attacks import execution, registry
from attacks.execution import Task
from attacks.shadows.cache import cache_folder
from attacks.shadows.suite import Laboratory
from attacks.views import observations
from attacks.views.worlds import in_world, load_worlds
from fedsim.core import files, rng
from fedsim.core.data.worlds import World
from fedsim.core.run_directory import RunDirectory, scores_table
from fedsim.evaluation.leakage import evaluate, ppv_table
from fedsim.evaluation.truth import read_truth

UNKNOWN = (0, 10, 25, 50, 75, 90)
"""Shares of the others' records, members and not, that the adversary does not own, in %."""
ATTACKS = ("round-decoding", "lira")
ALONE = ("round-decoding", "lira-offline")
"""Where no candidate is owned but the one asked about."""
PRIOR = 0.01

Row = tuple[str, World, str, dict[str, Any]]
"""What it is called, what is owned, as which world, and what is assumed differently."""


def share_known(run: RunDirectory, game: int, unknown: int) -> World:
    """Return a world in which this share of the others' records is unknown, of both sides and all parties."""
    truth = read_truth(run.path)
    rows = truth[truth["game"] == game].sort_values("candidate").reset_index(drop=True)
    stream, asked = rng.generator(run.scenario.seed, "study/ladder", game=game), []
    for _, side in sorted(rows.groupby(["party", "member"]).indices.items()):
        order = stream.permutation(side)
        asked.append(order[: round(len(order) * (100 - unknown) / 100)])
    nothing = np.empty(0, np.int64)
    return World(np.sort(np.concatenate(asked)), nothing, nothing)


def by_share(run: RunDirectory, game: int) -> list[Row]:
    rows: list[Row] = [
        (f"{u} % unknown", share_known(run, game, u), "half" if u else "all", {}) for u in UNKNOWN
    ]
    none = load_worlds(run.observations(game))["none"]
    return [*rows, ("100 % unknown: none but the one asked about", none, "none", {})]


def by_knowledge(run: RunDirectory, game: int) -> list[Row]:
    world, lr, last = share_known(run, game, 50), run.scenario.training.lr, run.last_round(game)
    less: dict[str, dict[str, Any]] = {
        "the parties' sizes not known": {"knows_sizes": False},
        "20 % assumed to be members": {"prior": 0.2},
        "80 % assumed to be members": {"prior": 0.8},
        "half the learning rate assumed": {"assumed_lr": lr / 2},
        "twice the learning rate assumed": {"assumed_lr": 2 * lr},
        "only the first round seen": {"rounds": [0, 1]},
        "the first round missed": {"rounds": [0, *range(2, last + 1)]},
        "only the final model seen": {"rounds": [0, last]},
    }
    return [(what, world, "half", assumed) for what, assumed in less.items()]


def scores_of(run: RunDirectory, game: int, row: Row, workers: int) -> pd.DataFrame:
    """Scores of one row's attacks in one game; kept on disk."""
    what, world, name, assumed = row
    file = run.path / "ladder" / f"{game:03d}-{files.slug(what)}.parquet"
    if not file.exists():
        folder = run.observations(game)
        candidates = observations.load_candidate_pool(folder)
        view = in_world(observations.load_view(folder), candidates, name, world)
        view = replace(view, assumptions=view.assumptions.model_copy(update=assumed))
        task = Task(
            candidates.records.take(world.asked), run.scenario.seed, game, Laboratory(workers, cache_folder())
        )
        named = registry.attacks_of(run.scenario, names=list(ALONE if name == "none" else ATTACKS))
        found = execution.run("participant", view, named, task).findings
        scores = {attack: finding.scores for attack, finding in found.items()}
        thresholds = {attack: finding.threshold for attack, finding in found.items()}
        file.parent.mkdir(exist_ok=True)
        files.write_table(file, scores_table("participant", what, world.asked, scores, thresholds))
    return files.read_table(file).assign(game=game)


def table(run: RunDirectory, rows_of: Any, workers: int) -> list[str]:
    tables = [
        scores_of(run, game, row, workers) for game in range(run.scenario.games) for row in rows_of(run, game)
    ]
    scores = pd.concat(tables, ignore_index=True)
    thresholds = scores[["game", "observer", "attack", "world", "threshold"]].drop_duplicates()
    leakage = evaluate(scores.drop(columns="threshold"), thresholds, read_truth(run.path))
    leakage = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")]
    right = ppv_table(leakage, [PRIOR])
    lines = [
        "| | attack | AUC | TPR at 1 % FPR, in % | PPV there where 1 % are members, in % "
        "| members + others |",
        "|---|---|---|---|---|---|",
    ]
    for (what, attack), found in leakage.groupby(["world", "attack"], sort=False):
        by_metric: Mapping[str, Any] = {str(row["metric"]): row for _, row in found.iterrows()}
        mine = right[(right["world"] == what) & (right["attack"] == attack) & (right["at"] == "fpr_0.01")]
        cells = [
            interval(by_metric["auc"]),
            interval(by_metric["tpr_at_fpr_0.01"], 100, 1),
            interval(mine.iloc[0], 100, 0),
        ]
        sizes = f"{by_metric['auc']['n_members']} + {by_metric['auc']['n_nonmembers']}"
        lines.append(f"| {what} | {attack} | {' | '.join(cells)} | {sizes} |")
    return [*lines, ""]


TITLE = [
    "# What each thing that the adversary owns and knows is worth to it",
    "",
    "From a participant's view, on the five hospitals of `experiments/hospitals.toml`. LiRA simulates",
    "256 federations, round decoding rounds of single parties. Intervals are 95 %. All parties are of one",
    "size here: an adversary that does not know sizes takes them to be like its own, and is right. Made by",
    "`python experiments/studies/ladder.py`.",
    "",
]


@click.command()
@click.option("--out", default="runs/ladder", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=2, show_default=True)
@click.option("--games", default=3, show_default=True)
@click.option(
    "--table", "page", default=EXPERIMENTS / "results" / "ladder.md", type=click.Path(path_type=Path)
)
def main(out: Path, data_dir: Path | None, workers: int, games: int, page: Path) -> None:
    lines = list(TITLE)
    told = [f"games={games}", "adversary.worlds=['all', 'none']", "adversary.attacks=['loss']"]
    for name, dp in (("without DP", []), ("ε = 8 at every party", ["dp.all={epsilon = 8}"])):
        run = finished_run("hospitals", out / ("private" if dp else "open"), data_dir, workers, [*told, *dp])
        sections = {"by what is owned": by_share}
        if not dp:
            sections["half unknown, by what is known besides"] = by_knowledge
        for heading, rows_of in sections.items():
            lines += [f"## {name}, {heading}", "", f"{games} games.", "", *table(run, rows_of, workers)]
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
            click.echo(f"{name}, {heading}: done")


if __name__ == "__main__":
    main()
