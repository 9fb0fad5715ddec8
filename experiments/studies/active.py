"""What acting buys an adversary, and what it costs and shows: makes `experiments/results/active.md`.

    python experiments/studies/active.py [--games 24] [--shadows 128] [--workers 1] [--data-dir data]

The same games (seed, members, candidates) of one scenario are run with an honest-but-curious adversary and
with active ones, where it owns every candidate's record and where half of the members are unknown to it, and
under strategies that are made to withstand such updates. Leakage is that of the few candidates it acts on;
utility is the final model's on all held-out records, as a difference to the honest run, paired by game; an
adversary's updates are compared with the other parties', over all rounds or in those in which it ascends. The
score of gradient ascent is taken of the honest run as well, at the same rounds: what the ascent adds is the
difference. Runs are kept below --out.
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
from fedsim.runs import play, prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
ATTACKS = ("loss", "lira", "round-decoding", "gradient-ascent")
SIMULATED = ("lira", "round-decoding")
"""Those that follow the federation, which robust strategies do not let them."""
WORLDS = {"all": "It owns every candidate's record", "half": "Half of the members are unknown to it"}
METRICS = {"auc": "AUC", "tpr_at_fpr_0.1": "TPR at 10 % FPR"}
STRATEGIES: dict[str, list[str]] = {
    "fedavg": [],
    "fedmedian": [],
    "fedtrimmedavg": ["federation.options.beta=0.2"],
    "multikrum": ["federation.options.num_malicious_nodes=1", "federation.options.num_nodes_to_select=3"],
}
"""Strategies, with their options; all but the first leave extreme updates out."""
ACTS = {
    "honest but curious": [],
    "gradient ascent, no longer than its update": ["active=gradient-ascent"],
    "gradient ascent, up to 4 times as long": ["active=gradient-ascent", "ascent_limit=4.0"],
    "poisoning, 1 copy": ["active=poisoning"],
    "poisoning, 2 copies": ["active=poisoning", "poison_copies=2"],
    "poisoning, 4 copies": ["active=poisoning", "poison_copies=4"],
    "separation, no longer than its update, cosine ≥ .7, .02 nats": ["active=separation"],
    "separation, up to 4 times as long, no other budget": [
        "active=separation", "ascent_limit=4.0", "least_cosine=-1.0", "most_loss=10.0",
    ],
}  # fmt: skip
TRIED = (
    "honest but curious",
    "poisoning, 4 copies",
    *(name for name in ACTS if name.startswith("separation")),
)
"""Adversaries that are tried against robust strategies."""


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


def leakage(run: RunDirectory, world: str) -> list[str]:
    """The cells of every attack in a world, empty where it was not run."""
    table = run.table("leakage")
    table = table[table["world"] == world]
    if run.scenario.adversary.active is None and world == run.scenario.adversary.ladder[0]:
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
    if settings.active == "gradient-ascent":  # the others act in every round
        shown = mine["round"].isin(list(acts))
        ratio = ratio[ratio.index.get_level_values("round").isin(list(acts))]
        mine, others = mine[shown], others[others["round"].isin(list(acts))]
    return [
        f"{ratio.median():.2f}",
        f"{mine['update_cosine'].mean():+.2f}",
        f"{others['update_cosine'].mean():+.2f}",
    ]


def tables(runs: dict[str, RunDirectory]) -> list[str]:
    """Leakage in each world, then what it costs and what it shows."""
    honest = next(iter(runs.values()))
    found = ["adversary", *(f"{attack} {name}" for attack in ATTACKS for name in METRICS.values())]
    cost = ["adversary", "accuracy lost", "AUC lost", "norm ratio", "its cosine", "others' cosine"]
    lines = []
    for world, words in WORLDS.items():
        if world in honest.scenario.adversary.ladder:
            rows = [[name, *leakage(run, world)] for name, run in runs.items()]
            lines += [f"{words}:", "", *without_empty(found, rows), ""]
    costs = [
        [name, lost(run, honest, "accuracy"), lost(run, honest, "auc"), *visibility(run)]
        for name, run in runs.items()
    ]
    return [*lines, *markdown(cost, costs), ""]


def without_empty(heads: list[str], rows: list[list[str]]) -> list[str]:
    kept = [column for column in range(len(heads)) if any(row[column] for row in rows)]
    return markdown([heads[k] for k in kept], [[row[k] for k in kept] for row in rows])


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
        "The score of gradient ascent in the first line is that of an adversary that only watches. No shadow",
        "follows a separating adversary, and neither shadows nor decoding follow a robust strategy.",
        "",
    ]

    def played(name: str, strategy: str) -> RunDirectory:
        acts = ACTS[name]
        attacks = [a for a in ATTACKS if a != "gradient-ascent" or "active=gradient-ascent" in acts]
        attacks = [a for a in attacks if a != "lira" or "active=separation" not in acts]
        attacks = [a for a in attacks if strategy == "fedavg" or a not in SIMULATED]
        settings = [f"games={games}", f"adversary.shadows={shadows}", f"adversary.attacks={attacks}"]
        settings += [f"federation.strategy={strategy}", *STRATEGIES[strategy]]
        settings += [f"adversary.candidates={candidates}", *(f"adversary.{act}" for act in acts)]
        folder = out / scenario / "-".join([strategy, *acts]).replace("=", "-")
        click.echo(f"{strategy}, {name}: {folder}")
        return finished_run(folder, scenario, settings, data_dir, workers)

    for strategy in STRATEGIES:
        names = ACTS if strategy == "fedavg" else TRIED
        parts += [f"## {strategy}", "", *tables({name: played(name, strategy) for name in names})]
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
