"""What a language model memorises of clinics' letters: by repeats, round, ε, and model.

    python experiments/studies/letters.py                # makes experiments/results/letters.md
    python experiments/studies/letters.py --seeds 1 --only plain,ε=8

Every run is `experiments/letters.toml` with the changes of its row. What a run's folder already has is not
made again, so that a study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd

from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.evaluation import secrets as judge
from fedsim.runs import letters, persons, play, prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
ATTACKS = '["loss", "zlib", "reference", "min-k", "min-k++"]'
METRICS = ("exposure", "auc", "extracted", "discoverable in 100 draws")


@dataclass(frozen=True)
class Case:
    """One row of the study. changes: of the scenario; dp: as --dp; seeds: how many of the study's."""

    changes: tuple[str, ...] = ()
    dp: tuple[str, ...] = ()
    seeds: int = 1
    rounds: tuple[int, ...] | None = field(default=None)


CASES = {
    "plain": Case(seeds=3),
    "ε = 8": Case(dp=("all=8",), seeds=3),
    "ε = 16": Case(dp=("all=16",)),
    "ε = 2": Case(dp=("all=2",)),
    "clipping alone": Case(changes=("dp.all.noise_multiplier=0.01",)),
    "ε = 8 for a patient": Case(changes=('dp.all.unit="person"',), dp=("all=8",)),
    "half the width": Case(changes=("model.hidden=[48,48]",)),
    "one epoch a round": Case(changes=("training.epochs=1",)),
}

MATCHED = ("plain", "one epoch a round", "half the width")
"""Cases that are stopped where they predict as well as ε = 8 does at its end."""


def finished(name: str, seed: int, folder: Path) -> RunDirectory:
    """Return the run of a case, made where it is not there yet, its models asked for every secret."""
    case = CASES[name]
    path = folder / f"{name.replace(' ', '')}-{seed}"
    if path.exists():
        run = RunDirectory.open(path)
    else:
        overrides = (f"seed={seed}", f"adversary.attacks={ATTACKS}", *case.changes)
        scenario = load(EXPERIMENTS / "letters.toml", overrides, case.dp)
        run = prepare.prepare(prepare.check(scenario, None), path)
    if not run.manifest.get("complete"):
        play.federate(run)
    if not run.has("memorised"):
        last = run.last_round(0)
        early = {1, 2} if name in MATCHED else set()
        letters.memorise(run, sorted({0, last // 4, last // 2, 3 * last // 4, last} | early))
    return run


def figure(row: pd.Series, digits: int = 2) -> str:
    return f"{row['value']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def secrets_of(runs: list[RunDirectory], rounds: str) -> Iterator[str]:
    """Yield the rows of a case; secrets of several seeds count as of several games."""
    measured = pd.concat([run.table("memorised") for run in runs], ignore_index=True)
    table = judge.summary(measured.assign(observer="participant"))
    shown = sorted(set(table["round"])) if rounds == "all" else [table["round"].max()]
    for t in shown:
        for count, rows in table[table["round"] == t].groupby("letters"):
            by_metric = rows.set_index("metric")
            cells = [
                figure(by_metric.loc[m], 1 if m == "exposure" else 2) if m in by_metric.index else "–"
                for m in METRICS
            ]
            unasked = max(by_metric.loc[m, "value"] for m in ("from own letters", "by repetition"))
            yield (
                f"| {t} | {count or 'never'} | {int(rows['n'].iloc[0])} | "
                + " | ".join(cells)
                + f" | {unasked:.2f} |"
            )


def utility(runs: list[RunDirectory]) -> str:
    """Return perplexity on fresh patients' letters: before training, at its best round, at the last one."""
    means = perplexity(runs)
    return f"{means[0]:.2f} | {means.min():.2f} (round {means.argmin()}) | {means[-1]:.2f}"


def perplexity(runs: list[RunDirectory]) -> np.ndarray:
    """Return perplexity on fresh patients' letters by round, its geometric mean over seeds, (R + 1,)."""
    losses = []
    for run in runs:
        rounds = run.table("rounds")
        losses.append(rounds[rounds["party"] == "all"].sort_values("round")["loss"].to_numpy())
    return np.asarray(np.exp(np.mean(losses, axis=0)))


def at_equal_utility(runs: dict[str, list[RunDirectory]]) -> Iterator[str]:
    """Yield exposure of secrets in 8 letters where each case predicts about as well as ε = 8 at its end."""
    aim = perplexity(runs["ε = 8"])[-1]
    for name in ("ε = 8", *(name for name in MATCHED if name in runs)):
        curve = perplexity(runs[name])
        measured = pd.concat([run.table("memorised") for run in runs[name]], ignore_index=True)
        asked = [t for t in sorted(set(measured["round"])) if t > 0]
        t = asked[-1] if name == "ε = 8" else min(asked, key=lambda t: abs(np.log(curve[t] / aim)))
        table = judge.summary(measured[measured["round"] == t].assign(observer="participant"))
        rows = table[table["letters"] == table["letters"].max()].set_index("metric")
        cells = [figure(rows.loc[m], 1 if m == "exposure" else 2) for m in METRICS if m in rows.index]
        yield f"| {name} | {t} | {curve[t]:.1f} | " + " | ".join(cells) + " |"


def membership(runs: list[RunDirectory]) -> Iterator[str]:
    tables = []
    for run in runs:
        table = run.table("leakage")
        whole = (table["party"] == "all") & (table["game"].astype(str) == "all")
        chosen = table[whole & (table["metric"] == "auc") & (table["observer"] == "participant")]
        tables.append(chosen.drop_duplicates("attack").set_index("attack"))
    for attack in tables[0].index:
        cells = [figure(table.loc[attack], 3) for table in tables if attack in table.index]
        yield f"| `{attack}` | " + ", ".join(cells) + " |"


def patients(runs: list[RunDirectory]) -> Iterator[str]:
    """Yield how well patients are told by all of their letters, beside what needs no model."""
    tables = []
    for run in runs:
        table = run.table("persons") if run.has("persons") else persons.persons(run)
        tables.append(table[table["metric"] == "auc"].set_index(["score", "knows"]))
    for key in tables[0].index:
        cells = [figure(table.loc[key], 3) for table in tables]
        yield f"| {key[1]} | `{key[0]}` | " + ", ".join(cells) + " |"


def page(names: list[str], folder: Path, seeds: int) -> Iterator[str]:
    runs = {name: [finished(name, s, folder) for s in range(min(seeds, CASES[name].seeds))] for name in names}
    yield from (
        "# Letters: what a small language model memorises",
        "",
        "    python experiments/studies/letters.py",
        "",
    )
    yield (
        "Four clinics, made in code; canary patients of the three victims, whose letters repeat a ten-digit "
        "number 1, 2, 4 or 8 times, and others of whom nothing was trained on. The adversary is a clinic "
        "that knows what stands before the number. Exposure: median bits, at most 29.9. Intervals are 95 %; "
        "secrets of several seeds are taken together."
    )
    yield from (
        "",
        "## Utility beside it",
        "",
        "Perplexity a token, on letters of patients nobody trained on.",
        "",
    )
    yield from ("| run | seeds | round 0 | best | last |", "|---|---|---|---|---|")
    for name, these in runs.items():
        yield f"| {name} | {len(these)} | {utility(these)} |"
    if "ε = 8" in runs:
        yield from (
            "",
            "## Stopped where it predicts as well as ε = 8",
            "",
            "The round, of those asked, whose perplexity is nearest; secrets in the most letters. "
            "No promise comes with stopping early: what it leaves is what was measured, by these attacks.",
            "",
            "| run | round | perplexity | exposure | AUC against never there | extracted greedily | "
            "likely in 100 draws |",
            "|---|---|---|---|---|---|---|",
        )
        yield from at_equal_utility(runs)
    head = (
        "| round | letters | n | exposure | AUC against never there | extracted greedily | likely in 100 "
        "draws | unasked |"
    )
    for name, these in runs.items():
        yield from ("", f"## {name}", "", head, "|" + "---|" * 8)
        yield from secrets_of(these, "all" if name == "plain" else "last")
        yield from (
            "",
            "Membership of ordinary letters (AUC, a seed each):",
            "",
            "| attack | AUC |",
            "|---|---|",
        )
        yield from membership(these)
        yield from (
            "",
            "Membership of patients, by all of their letters or by one (AUC, a seed each; how many letters "
            "they have is a guess that touches no model):",
            "",
            "| what it has | score | AUC |",
            "|---|---|---|",
        )
        yield from patients(these)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/letters-study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas")
    parser.add_argument("--out", type=Path, default=EXPERIMENTS / "results" / "letters.md")
    options = parser.parse_args()
    text = "\n".join(page(options.only.split(","), options.runs, options.seeds)) + "\n"
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
