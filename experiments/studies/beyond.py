"""What follows membership: hidden values, records, counts, persons, poison; with and without DP.

    python experiments/studies/beyond.py --data-dir DATA            # makes experiments/results/beyond.md
    python experiments/studies/beyond.py --only heart

Each scenario is run without DP, with ε = 8 and with ε = 1 at every party; the attacks read the finished runs.
What a run's folder already has is not made again, so that a study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pandas as pd

from attacks.reconstruction.gradient import Effort
from attacks.reconstruction.model import Descent
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.runs import beyond, persons, play, poison, prepare
from fedsim.runs.sent import PROTECTIONS, Setting

EXPERIMENTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Scenario:
    """What is asked of one scenario; file: below experiments/, with ``changes``.

    minutes: of one core that a game takes at all levels of privacy, batches aside (measured)
    columns: inferred; unknown: of a range; gradients: batches; typical, counted, poisoned: whether
    """

    file: str
    minutes: float
    changes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    bins: int = 3
    unknown: tuple[str, ...] = ()
    asks_persons: bool = True
    gradients: bool = False
    typical: bool = False
    counted: bool = True
    poisoned: bool = False
    by_person: bool = False


SHORT = ("federation.rounds=15", "training.epochs=2")
SCENARIOS = {
    "hospitals": Scenario(
        "hospitals", 0.7, columns=("sex", "bmi"), unknown=("bmi",), gradients=True, typical=True,
        poisoned=True,
    ),
    "heart": Scenario(
        "heart", 1.3, columns=("thal", "sex"), unknown=("thal", "ca"), gradients=True, poisoned=True
    ),
    "breast-cancer": Scenario(
        "hospitals", 0.3, ('data.name="breast-cancer"',), ("mean radius",), 2, asks_persons=False
    ),
    "diabetes-130": Scenario(
        "hospitals", 0.4, ('data.name="diabetes-130"', "data.max_records=1500", *SHORT), counted=False,
        by_person=True,
    ),
    "adult": Scenario(
        "banks", 0.6, ('data.name="adult"', "data.max_records=2000", *SHORT), columns=("sex",),
        unknown=("education",),
    ),
    "digits": Scenario("digits", 0.5, asks_persons=False, gradients=True, typical=True),
}  # fmt: skip
PRIVACY = {"no DP": (), "ε = 8": ("all=8",), "ε = 1": ("all=1",)}
PERSONS = "ε = 8 a person"
ATTACKS = ("imputation", "yeom", "csmia", "lomia", "update-cosine", "update-regression", "white-box")
SETTINGS = (
    Setting(1), Setting(4), Setting(16), Setting(1, 4), Setting(4, 4),
    *(Setting(4, 1, name) for name in PROTECTIONS[2:]),
    Setting(1, 1, "ε = 8"), Setting(1, 1, "participant"),
    Setting(2, 1, minibatches=2), Setting(2, 2, minibatches=2),
    *(Setting(batch, epochs, optimizer=name)
      for name in ("momentum", "adam") for batch, epochs in ((1, 1), (4, 1), (4, 4))),
    *(Setting(2, 1, minibatches=2, optimizer=name) for name in ("momentum", "adam")),
)  # fmt: skip
DESCENT = Descent(iterations=300, patience=50)
EFFORT = Effort(starts=2, dlg_iterations=60, geiping_iterations=120)
BUDGET = poison.Budget(targets=20)
BATCH_MINUTES = 0.02
"""Of one batch's gradient inversion by all methods (measured)."""


def finished(name: str, privacy: str, folder: Path, data_dir: Path | None, games: int) -> RunDirectory:
    """Return the run of a scenario at one level of privacy, made where it is not there yet."""
    path = folder / f"{name}-{privacy.replace(' ', '').replace('=', '')}"
    if path.exists():
        run = RunDirectory.open(path)
    else:
        asked = SCENARIOS[name]
        overrides = (*asked.changes, f"games={games}", 'adversary.attacks=["loss"]', f'name="{name}"')
        if privacy == PERSONS:
            overrides += ("dp.all.epsilon=8", 'dp.all.unit="person"')
        scenario = load(EXPERIMENTS / f"{asked.file}.toml", overrides, PRIVACY.get(privacy, ()))
        run = prepare.prepare(prepare.check(scenario, data_dir), path)
    if not run.manifest.get("complete"):
        play.federate(run)
    return run


def figure(value: float, low: float, high: float, digits: int = 3) -> str:
    if pd.isna(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def attributes(run: RunDirectory, asked: Scenario, privacy: str) -> Iterator[str]:
    for column in asked.columns:
        if not run.has("attributes") or column not in set(run.table("attributes")["column"]):
            beyond.attribute(run, column, asked.bins)
        table = run.table("attributes")
        table = table[table["column"] == column].set_index(["attack", "records", "metric"])
        for attack in ATTACKS:
            wanted = [
                ("members", "accuracy"), ("held out", "accuracy"), ("called members", "accuracy"),
                ("members", "above imputation"), ("difference", "leak"),
            ]  # fmt: skip
            rows = [table.loc[(attack, *key)] for key in wanted]
            cells = [f"{row['value']:.3f}" for row in rows[:3]]
            cells += [figure(row["value"], row["low"], row["high"]) for row in rows[3:]]
            for side in ("members", "held out"):
                key = (attack, side, "auc")
                row = table.loc[key] if key in table.index else None
                cells.append("" if row is None else figure(row["value"], row["low"], row["high"], 2))
            yield f"| {column} | {attack} | {privacy} | {int(rows[0]['n'])} | " + " | ".join(cells) + " |"


def who(run: RunDirectory, asked: Scenario, privacy: str) -> Iterator[str]:
    """Yield the lines on persons: of each way of asking the score of the largest AUC."""
    table = run.table("persons") if run.has("persons") else persons.persons(run, asked.unknown, points=4)
    auc = table[table["metric"] == "auc"]
    for (what, knows), rows in auc.groupby(["asked", "knows"], sort=False):
        cells = [figure(row["value"], row["low"], row["high"]) for _, row in rows.iterrows()]
        named = ", ".join(f"{name} {cell}" for name, cell in zip(rows["score"], cells, strict=True))
        sizes = f"{int(rows['n_members'].iloc[0])} + {int(rows['n_others'].iloc[0])}"
        yield f"| {what} | {knows} | {privacy} | {sizes} | {named} |"


def promised(run: RunDirectory, privacy: str) -> Iterator[str]:
    table = persons.promises(run)
    for unit, rows in table.groupby("unit", sort=False):
        largest = rows.groupby("records")["epsilon"].max()
        cells = ", ".join(f"{k}: {epsilon:.3g}" for k, epsilon in largest.items())
        yield f"| {privacy} | {unit} | {cells} |"


def harm(run: RunDirectory, privacy: str) -> Iterator[str]:
    table = (
        run.table("poisoning")
        if run.has("poisoning")
        else poison.poison(run, BUDGET, ("fedavg", "fedmedian", "krum"))
    )
    cells = table.set_index(["defence", "kind", "update", "aim", "metric"])
    for defence, kind, update in dict.fromkeys(key[:3] for key in cells.index):
        shown = []
        for aim, metric in (
            ("called members", "damage"), ("random", "damage"), ("called members", "gain"),
            ("called members", "members"), ("called members", "accuracy"), ("called members", "norm"),
        ):  # fmt: skip
            row = cells.loc[(defence, kind, update, aim, metric)]
            shown.append(figure(row["value"], row["low"], row["high"], 2))
        yield f"| {defence} | {kind} | {update} | {privacy} | " + " | ".join(shown) + " |"


def inversion(run: RunDirectory, privacy: str) -> Iterator[str]:
    table = run.table("inversion") if run.has("inversion") else beyond.invert(run, DESCENT)
    table = table[table["party"] == "all"].set_index(["source", "metric"])
    for source in dict.fromkeys(table.index.get_level_values(0)):
        nearer = table.loc[(source, "nearer")]
        others = [table.loc[(source, m), "value"] for m in ("to_member", "to_heldout", "to_mean")]
        cells = [figure(nearer["value"], nearer["low"], nearer["high"]), *(f"{x:.3f}" for x in others)]
        yield f"| {source} | {privacy} | " + " | ".join(cells) + " |"


def gradients(run: RunDirectory, repeats: int) -> Iterator[str]:
    if not run.has("gradient"):
        beyond.gradient(run, SETTINGS, repeats, effort=EFFORT)
    table = run.table("gradient")
    keys = ["protection", "optimizer", "batch", "minibatches", "epochs"]
    for key, rows in table.groupby(keys, sort=False):
        cells = rows.set_index(["method", "metric"])
        shown = [*map(str, key), str(int(rows["n"].iloc[0]))]
        for name in ("nearest own record", "analytic", "dlg", "geiping"):
            row = cells.loc[(name, "rows")]
            shown.append(figure(row["value"], row["low"], row["high"], 2))
            shown.append(f"{cells.loc[(name, 'cells'), 'value']:.2f}")
        labels = cells.loc[("dlg", "labels"), "value"]
        yield f"| {' | '.join(shown)} | {labels:.2f} |"


def counts(run: RunDirectory, privacy: str) -> Iterator[str]:
    table = run.table("counts") if run.has("counts") else beyond.count(run)
    table = table[table["what"] == "lists"].set_index(["score", "estimator", "metric"])
    for score, estimator in dict.fromkeys((s, e) for s, e, _ in table.index):
        cells = []
        for metric in ("error", "gain over prior", "covered"):
            row = table.loc[(score, estimator, metric)]
            cells.append(figure(row["value"], row["low"], row["high"]))
        yield f"| {score} | {estimator} | {privacy} | " + " | ".join(cells) + " |"


ATTRIBUTE_HEADS = (
    "column", "attack", "privacy", "members", "accuracy, members", "held out", "called members",
    "above imputation, members", "leak", "AUC, members", "AUC, held out",
)  # fmt: skip
GRADIENT_HEADS = (
    "protection", "optimizer", "batch", "minibatches", "passes", "records", "nearest own record: rows",
    "cells", "analytic: rows", "cells", "DLG: rows", "cells", "Geiping: rows", "cells", "labels",
)  # fmt: skip
TYPICAL_HEADS = (
    "typical record", "privacy", "nearer to members", "nearest member", "nearest held out", "members' mean",
)  # fmt: skip
HARM_HEADS = (
    "strategy", "poison", "update", "privacy", "damage, called members", "damage, random", "gain",
    "of those called, members", "lost accuracy", "norm",
)  # fmt: skip


def headed(heads: tuple[str, ...], lines: Iterator[str]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    yield from lines
    yield ""


def section(name: str, options: argparse.Namespace) -> Iterator[str]:
    asked = SCENARIOS[name]
    levels = [*PRIVACY, PERSONS] if asked.by_person else list(PRIVACY)
    runs = {level: finished(name, level, options.runs, options.data_dir, options.games) for level in levels}
    yield from (f"## {name}", "", f"{runs['no DP'].scenario.games} game(s) at each level of privacy.", "")
    if asked.columns:
        yield from headed(
            ATTRIBUTE_HEADS, (line for level, run in runs.items() for line in attributes(run, asked, level))
        )
    if asked.counted:
        heads = ("lists counted by", "estimator", "privacy", "error", "gain over prior", "covered")
        yield from headed(heads, (line for level, run in runs.items() for line in counts(run, level)))
    if asked.asks_persons:
        heads = ("asked", "knows", "privacy", "persons in + out", "AUC")
        yield from headed(heads, (line for level, run in runs.items() for line in who(run, asked, level)))
    if asked.by_person:
        heads = ("privacy", "unit", "ε promised, by the number of a person's records")
        private = {level: run for level, run in runs.items() if level != "no DP"}
        yield from headed(heads, (line for level, run in private.items() for line in promised(run, level)))
    if asked.poisoned:
        yield from headed(HARM_HEADS, (line for level, run in runs.items() for line in harm(run, level)))
    if asked.gradients:
        yield from headed(GRADIENT_HEADS, gradients(runs["no DP"], options.repeats))
    if asked.typical:
        yield from headed(
            TYPICAL_HEADS, (line for level, run in runs.items() for line in inversion(run, level))
        )


HEAD = """# Beyond membership

Attacks of one participant (gradient inversion: of the server, and of a participant who sees a sum) on
finished runs; members and held-out records are the other parties'. Intervals are 95 %. Made by
`python experiments/studies/beyond.py`.

- **Attributes**: the adversary knows a record but for one column. *Above imputation*: accuracy minus that of
  a model of its own records, which never touches the model under attack, on the same records. *Leak*: that
  of members minus that of held-out records. *Called members*: accuracy for those whom it calls members first.
- **Counts**: lists of 40 candidates, 0 to 100 % of them members. *Error*: mean distance of the count from
  the truth, as a share of the list; the prior, one half, is .3 off. *Covered*: intervals that hold the
  truth. The lists of a game share records, which these intervals do not count in.
- **Typical records**: *nearer to members*: how often a member lies nearer to the record than a held-out one
  of its class; .5 says that it tells nothing of who is in the data. Distances are root mean squares over
  columns, of a number as a share of its range.
- **Gradients**: batches of a victim's training records, from the update of round 1. A row is recovered where
  every category is right and its numbers are off by 5 % of their range at most. *Own*: the scenario's
  optimizer, plain SGD; *momentum* of .9; *adam* with a rate of .01. The server unrolls the steps, and does
  not know which records a minibatch holds. *participant*: the sum of all others' updates; *secure sum*: of
  everybody's.
- **Persons**: is she in the data? *person*: by all of her records (their scores' mean, largest, sum), or by
  one of them; *range*: her record known to within 5 % of each number's range, some columns not at all; *one
  guess* is the middle of that, *exact* the record itself. AUC of each score; .5 is guessing.
- **Promises**: ε at δ = 1e-5 of the whole run for all of a person's k records, `k: ε`, the largest of the
  parties'. Where the unit is a person it does not depend on k.
- **Poison**: the last five rounds again, with two poisoned records for each of 20 targets. *Damage*: how much
  less the model believes the targets' labels than in the same rounds without poison, under the same strategy.
  *Gain*: that of people called members minus that of people at random. *Norm*: of the adversary's update over
  the others' median, more than its honest one.
- **breast-cancer**: a published attribute inference has an AUC of .93 (arXiv 2512.15143, second-hand: we have
  not read it, and do not know its attribute, its model, what its adversary knows, or what imputation alone
  finds there). Here five hospitals train together; a participant knows the label and every column but one;
  that is the mean radius, above or below its median, which other columns (perimeter, area) all but
  determine: compare the AUC of *imputation*, which touches no model, before calling any AUC a leak.
"""


def minutes(options: argparse.Namespace) -> float:
    """Return about how long the study takes from its start, on one core."""
    asked = [SCENARIOS[name] for name in options.only]
    batches = sum(each.gradients for each in asked) * len(SETTINGS) * options.repeats
    return sum(each.minutes for each in asked) * options.games + batches * BATCH_MINUTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "beyond")
    parser.add_argument("--games", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="batches of each setting")
    parser.add_argument("--table", type=Path, default=EXPERIMENTS / "results" / "beyond.md")
    options = parser.parse_args()
    print(f"About {minutes(options):.0f} minutes of one core; what is there already is not made again.")
    lines = [HEAD]
    for name in options.only:
        for line in section(name, options):
            print(line, flush=True)
            lines.append(line)
        options.table.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
