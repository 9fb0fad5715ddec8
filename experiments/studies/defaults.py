"""Are the shipped scenarios trained sensibly? Makes `experiments/results/defaults.md`.

    python experiments/studies/defaults.py [--data-dir data] [--only heart]

Each set's federation, as its scenario has it, without DP and at ε = 8 and 1 at every party, beside what
plain logistic regression and gradient boosting (scikit-learn's defaults) learn from all parties' training
records in one place. All are measured on the same held-out records, of the same draws of who is a member.
Runs are kept below --out, so that a second call only makes the table again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from fedsim.core.data.records import Records
from fedsim.core.data.store import read_party
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.core.training.metrics import brier
from fedsim.runs import play, prepare
from fedsim.sweeps.table import mean_over_games

EXPERIMENTS = Path(__file__).resolve().parents[1]

SETS: dict[str, tuple[str, int, Sequence[str]]] = {
    "hospitals": ("hospitals", 8, ()),
    "heart": ("heart", 8, ()),
    "breast-cancer": ("hospitals", 8, ("data.name=breast-cancer",)),
    "digits": ("digits", 4, ()),
    "location": ("location", 2, ()),
    "banks": ("banks", 2, ()),
}
"""Name → scenario, games, overrides. breast-cancer has no scenario of its own: it is the hospitals' with
other records, for which nothing was chosen."""

PRIVACY = {"off": [], "8": ["dp.all.epsilon=8"], "1": ["dp.all.epsilon=1"]}
MEASURES = ("accuracy", "loss", "brier")
Model = LogisticRegression | HistGradientBoostingClassifier


def finished(name: str, epsilon: str, games: int | None, out: Path, data_dir: Path | None) -> RunDirectory:
    scenario, usual, overrides = SETS[name]
    folder = out / f"{name}-{epsilon}"
    if not (folder / "manifest.json").exists():
        settings = [*overrides, *PRIVACY[epsilon], f"games={games or usual}", "adversary.attacks=['loss']"]
        prepare.prepare(prepare.check(load(EXPERIMENTS / f"{scenario}.toml", settings), data_dir), folder)
    run = RunDirectory.open(folder)
    if not run.manifest.get("complete"):
        play.federate(run)
    return run


def pooled(run: RunDirectory, game: int) -> tuple[Records, Records]:
    """Return all parties' training records, and all their held-out ones."""
    names = run.manifest["parties"]
    parties = [read_party(run.party_folder(game, k, name))[0] for k, name in enumerate(names)]
    return tuple(  # type: ignore[return-value]
        Records.concatenate([getattr(party, side) for party in parties]) for side in ("train", "heldout")
    )


def in_one_place(run: RunDirectory, make: Callable[[], Model]) -> pd.DataFrame:
    """Return the measures of a model of the pooled records, a row a game."""
    rows = []
    for game in range(run.scenario.games):
        train, heldout = pooled(run, game)
        model = make().fit(train.features.reshape(len(train), -1), train.labels)
        found = np.zeros((len(heldout), len(run.manifest["classes"])))
        found[:, model.classes_] = model.predict_proba(heldout.features.reshape(len(heldout), -1))
        own = np.clip(found[np.arange(len(heldout)), heldout.labels], 1e-15, None)
        rows.append(
            {
                "accuracy": float((found.argmax(1) == heldout.labels).mean()),
                "loss": float(-np.log(own).mean()),
                "brier": brier(found, heldout.labels),
            }
        )
    return pd.DataFrame(rows)


def base_rate(run: RunDirectory) -> pd.DataFrame:
    """Return the measures of who always answers with the shares of the classes, a row a game."""
    rows = []
    for game in range(run.scenario.games):
        train, heldout = pooled(run, game)
        share = np.bincount(train.labels, minlength=len(run.manifest["classes"])) / len(train)
        found = np.tile(share, (len(heldout), 1))
        loss = float(-np.log(np.clip(share[heldout.labels], 1e-15, None)).mean())
        accuracy = float((heldout.labels == share.argmax()).mean())
        rows.append({"accuracy": accuracy, "loss": loss, "brier": brier(found, heldout.labels)})
    return pd.DataFrame(rows)


def federated(run: RunDirectory) -> tuple[pd.DataFrame, str]:
    """Return the measures of the final model, a row a game, and its best round beside the last, in words."""
    final = run.final_rounds()
    rounds = run.table("rounds")
    trained = rounds[(rounds["party"] == "all") & (rounds["round"] > 0)]
    best = trained.loc[trained.groupby("game")["loss"].idxmin()]
    words = f"{best['loss'].mean():.3f} after {best['round'].mean():.0f} of {trained['round'].max()}"
    return final[final["party"] == "all"][list(MEASURES)].reset_index(drop=True), words


def cells(found: pd.DataFrame) -> str:
    return " | ".join(
        _mean(found[name], {"accuracy": 1.0, "brier": 2.0}.get(name, np.inf)) for name in MEASURES
    )


def _mean(values: pd.Series, most: float) -> str:
    value, low, high = mean_over_games(values.tolist(), most)
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def behind(found: pd.DataFrame, reference: pd.DataFrame) -> str:
    points = 100 * (reference["accuracy"] - found["accuracy"]).mean()
    return f"{points:+.1f} | {(found['loss'] - reference['loss']).mean():+.3f}"


def section(name: str, games: int | None, out: Path, data_dir: Path | None) -> list[str]:
    started = time.process_time()
    runs = {epsilon: finished(name, epsilon, games, out, data_dir) for epsilon in PRIVACY}
    plain = runs["off"]
    logistic = in_one_place(plain, lambda: LogisticRegression(max_iter=5000))
    boosted = in_one_place(plain, HistGradientBoostingClassifier)
    lines = [
        f"| {name} | the classes' shares | {cells(base_rate(plain))} | | | |",
        f"| | logistic regression, pooled | {cells(logistic)} | | | |",
        f"| | gradient boosting, pooled | {cells(boosted)} | | | |",
    ]
    for epsilon, run in runs.items():
        found, best = federated(run)
        who = "federation, no DP" if epsilon == "off" else f"federation, ε = {epsilon}"
        lines.append(f"| | {who} | {cells(found)} | {behind(found, logistic)} | {best} |")
    click.echo(f"{name}: {time.process_time() - started:.0f} s of CPU")
    return lines


TITLE = """# Defaults: a federation as a careful practitioner would run it

Made by `python experiments/studies/defaults.py`. Each federation is trained as its scenario says,
`breast-cancer` as the hospitals' scenario says (nothing was chosen for it); games: {games}; means with
Student's 95 % intervals. The scenarios' settings were chosen on other draws of members of the same records.

Loss is the mean cross-entropy (nats), Brier's score Σ_c (p_c − 1[y = c])²: both are low only where a model
is right *and* its probabilities are. 'Behind': points of accuracy, and loss, that the federation is behind
logistic regression on all parties' training records in one place, without DP. The aim without DP is at most
1 point and .02. 'Best round': the lowest held-out loss of any round, which nobody knows beforehand. ε is of
every party, δ = 10⁻⁵.

| set | model | accuracy | loss | Brier | behind, points | behind, loss | best round |
|---|---|---|---|---|---|---|---|"""


@click.command()
@click.option("--out", default="runs/defaults", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--games", type=int, help="Instead of each set's own number.")
@click.option("--only", multiple=True, type=click.Choice(list(SETS)), help="Only these sets.")
@click.option("--table", default=EXPERIMENTS / "results" / "defaults.md", type=click.Path(path_type=Path))
def main(out: Path, data_dir: Path | None, games: int | None, only: tuple[str, ...], table: Path) -> None:
    names = only or tuple(SETS)
    lines: list[str] = []
    for name in names:
        lines += section(name, games, out, data_dir)
        counts = ", ".join(f"{games or SETS[each][1]} ({each})" for each in names)
        table.write_text("\n".join([TITLE.format(games=counts), *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
