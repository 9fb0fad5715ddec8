"""What acting buys an adversary, and what it costs and shows: makes `experiments/results/active.md`.

    python experiments/studies/active.py [--games 24] [--shadows 128] [--workers 1] [--data-dir data]

The same games (seed, members, candidates) of one scenario are run with an honest-but-curious adversary and
with active ones. Leakage is that of the few candidates it acts on; utility is the final model's on all
held-out records, as a difference to the honest run, paired by game; an adversary's updates are compared with
the other parties', over all rounds or in those in which it ascends. The score of gradient ascent is taken of
the honest run as well, at the same rounds: what the ascent adds is the difference. Runs are kept below
--out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import numpy as np
import pandas as pd

from attacks import deviation
from attacks.deviation import FEW
from attacks.membership import active
from attacks.views import observations
from fedsim.core import rng
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.evaluation import truth
from fedsim.evaluation.leakage import evaluate
from fedsim.evaluation.results import in_world
from fedsim.runs import play, prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
ATTACKS = ("loss", "lira", "lira-rounds", "gradient-ascent")
METRICS = {"auc": "AUC", "tpr_at_fpr_0.1": "TPR at 10 % FPR", "tpr_at_fpr_0.01": "TPR at 1 % FPR"}
ACTS = {
    "honest but curious": [],
    "gradient ascent, no longer than its update": ["active=gradient-ascent"],
    "gradient ascent, up to 4 times as long": ["active=gradient-ascent", "ascent_limit=4.0"],
    "poisoning, 1 copy": ["active=poisoning"],
    "poisoning, 2 copies": ["active=poisoning", "poison_copies=2"],
    "poisoning, 4 copies": ["active=poisoning", "poison_copies=4"],
}


def finished_run(
    folder: Path, scenario: str, settings: list[str], data_dir: Path | None, workers: int
) -> RunDirectory:
    if (folder / "manifest.json").exists():
        run = RunDirectory.open(folder)
    else:
        run = prepare.prepare(
            prepare.check(load(EXPERIMENTS / f"{scenario}.toml", settings), data_dir), folder
        )
    if not run.manifest.get("complete"):
        play.federate(run, workers=workers)
    return run


def watched(run: RunDirectory) -> pd.DataFrame:
    """What the score of gradient ascent finds in a run in which nobody ascended."""
    settings, parts = run.scenario.adversary, []
    for game in range(run.scenario.games):
        view = observations.load_view(run.observations(game))
        candidates = observations.load_candidates(run.observations(game))
        nothing = {t: view.models[t] for t in deviation.ascent_rounds(settings, view.final_round)}
        stream = rng.generator(run.scenario.seed, "study", game=game)
        score = active.recovery(dataclasses.replace(view, ascents=nothing), candidates, stream)
        row = {"game": game, "observer": "participant", "attack": "gradient-ascent"}
        parts.append(pd.DataFrame({**row, "candidate": np.arange(len(score)), "score": score}))
    scores = pd.concat(parts, ignore_index=True)
    thresholds = scores[["game", "observer", "attack"]].drop_duplicates().assign(threshold=0.0)
    found = evaluate(scores, thresholds, truth.read_truth(run.path))
    return found.assign(world=run.scenario.adversary.ladder[0])  # of all candidates, as the headline


def leakage(run: RunDirectory) -> list[str]:
    """The cells of every attack, empty where it was not run."""
    table = in_world(run, run.table("leakage"))
    if run.scenario.adversary.active is None:
        table = pd.concat([table, watched(run)], ignore_index=True)
    table = table[(table["party"] == "all") & (table["game"] == "all")]
    table = table[table["observer"] == "participant"].set_index(["attack", "metric"])
    return [interval(table, (attack, metric)) for attack in ATTACKS for metric in METRICS]


def interval(table: pd.DataFrame, key: tuple[str, str]) -> str:
    if key not in table.index:
        return ""
    value, low, high = table.loc[key, ["value", "low", "high"]].astype(float)
    return f"{value:.3f} ({low:.3f} to {high:.3f})" if np.isfinite(value) else "n too small"


def utility(run: RunDirectory, metric: str) -> pd.Series:
    """The final model's, by game."""
    rounds = run.table("rounds")
    last = rounds[(rounds["party"] == "all") & (rounds["round"] == rounds["round"].max())]
    return last.set_index("game")[metric]


def lost(run: RunDirectory, honest: RunDirectory, metric: str) -> str:
    difference = utility(honest, metric) - utility(run, metric)
    if run.path == honest.path:
        return f"({utility(run, metric).mean():.3f})"
    error = difference.std() / np.sqrt(len(difference))
    return f"{difference.mean():+.3f} ± {1.96 * error:.3f}"


def visibility(run: RunDirectory) -> list[str]:
    """Its update's norm over the others' median, and the cosines of its and of the others' updates."""
    rounds = run.table("rounds")
    trained = rounds[(rounds["round"] > 0) & (rounds["party"] != "all")]
    adversary = trained["party"] == run.manifest["adversary"]
    mine, others = trained[adversary], trained[~adversary]
    usual = others.groupby(["game", "round"])["update_norm"].median()
    ratio = mine.set_index(["game", "round"])["update_norm"] / usual
    settings = run.scenario.adversary
    acts = deviation.ascent_rounds(settings, run.scenario.federation.rounds)
    if settings.active == "gradient-ascent":
        shown = mine["round"].isin(list(acts))
        ratio = ratio[ratio.index.get_level_values("round").isin(list(acts))]
        mine, others = mine[shown], others[others["round"].isin(list(acts))]
    return [
        f"{ratio.median():.2f}",
        f"{mine['update_cosine'].mean():+.2f}",
        f"{others['update_cosine'].mean():+.2f}",
    ]


def tables(runs: dict[str, RunDirectory]) -> list[str]:
    honest = next(iter(runs.values()))
    found = ["adversary", *(f"{attack} {name}" for attack in ATTACKS for name in METRICS.values())]
    cost = ["adversary", "accuracy lost", "AUC lost", "norm ratio", "its cosine", "others' cosine"]
    leaks = [[name, *leakage(run)] for name, run in runs.items()]
    costs = [
        [name, lost(run, honest, "accuracy"), lost(run, honest, "auc"), *visibility(run)]
        for name, run in runs.items()
    ]
    return [*markdown(found, leaks), "", *markdown(cost, costs)]


def markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows]]


@click.command()
@click.option("--out", default="runs/active", show_default=True, type=click.Path(path_type=Path))
@click.option("--scenario", default="hospitals", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=1, show_default=True)
@click.option("--games", default=24, show_default=True)
@click.option("--shadows", default=128, show_default=True)
@click.option("--candidates", default=FEW, show_default=True)
@click.option("--table", default=EXPERIMENTS / "results" / "active.md", type=click.Path(path_type=Path))
def main(
    out: Path,
    scenario: str,
    data_dir: Path | None,
    workers: int,
    games: int,
    shadows: int,
    candidates: int,
    table: Path,
) -> None:
    parts = [
        "# What acting buys an adversary, what it costs and what it shows",
        "",
        f"`{scenario}.toml`, {games} games of {candidates} candidates, the same members in every line, "
        f"{shadows} shadows; 95 % intervals. In brackets the honest run's own. Made by",
        f"`python experiments/studies/active.py --scenario {scenario} --games {games} --shadows {shadows}`.",
        "Norm ratio: of its updates to the other parties' median; cosine: with the mean of all others'",
        "updates; both in the rounds in which it ascends, where it ascends, else in all.",
        "The score of gradient ascent in the first line is that of an adversary that only watches.",
        "",
    ]
    runs: dict[str, RunDirectory] = {}
    for name, acts in ACTS.items():
        attacks = [a for a in ATTACKS if a != "gradient-ascent" or "active=gradient-ascent" in acts]
        settings = [f"games={games}", f"adversary.shadows={shadows}", f"adversary.attacks={attacks}"]
        settings += [f"adversary.candidates={candidates}", *(f"adversary.{act}" for act in acts)]
        folder = out / scenario / "-".join(["run", *acts]).replace("=", "-")
        runs[name] = finished_run(folder, scenario, settings, data_dir, workers)
        click.echo(f"{name}: {folder}")
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join([*parts, *tables(runs)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
