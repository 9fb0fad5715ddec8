"""What follows membership: hidden values, typical records, rows of a batch, counts; with and without DP.

    python experiments/studies/beyond.py --data-dir DATA            # makes experiments/results/beyond.md
    python experiments/studies/beyond.py --only heart

Each scenario is run without DP, with ε = 8 and with ε = 1 at every party; the attacks read the finished runs.
What a run's folder already has is not made again, so that a study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pandas as pd

from attacks.reconstruction.gradient import Effort
from attacks.reconstruction.model import Descent
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.runs import beyond, play, prepare
from fedsim.runs.sent import PROTECTIONS, Setting

EXPERIMENTS = Path(__file__).resolve().parents[1]
NAMES = ("hospitals", "heart", "digits")
PRIVACY = {"no DP": (), "ε = 8": ("all=8",), "ε = 1": ("all=1",)}
COLUMNS = {"hospitals": ("sex", "bmi"), "heart": ("thal", "sex"), "digits": ()}
ATTACKS = ("imputation", "yeom", "csmia", "lomia", "update-cosine", "update-regression", "white-box")
SETTINGS = (
    Setting(1), Setting(4), Setting(16), Setting(1, 4), Setting(4, 4),
    *(Setting(4, 1, name) for name in PROTECTIONS[1:]),
    Setting(1, 1, "ε = 8"), Setting(1, 1, "participant"),
)  # fmt: skip
DESCENT = Descent(iterations=300, patience=50)
EFFORT = Effort(starts=2, dlg_iterations=60, geiping_iterations=120)


def finished(name: str, privacy: str, folder: Path, data_dir: Path | None, games: int) -> RunDirectory:
    """Return the run of a scenario at one level of privacy, made where it is not there yet."""
    path = folder / f"{name}-{privacy.replace(' ', '').replace('=', '')}"
    if path.exists():
        run = RunDirectory.open(path)
    else:
        overrides = (f"games={games}", 'adversary.attacks=["loss"]')
        scenario = load(EXPERIMENTS / f"{name}.toml", overrides, PRIVACY[privacy])
        run = prepare.prepare(prepare.check(scenario, data_dir), path)
    if not run.manifest.get("complete"):
        play.federate(run)
    return run


def figure(value: float, low: float, high: float, digits: int = 3) -> str:
    if pd.isna(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def attributes(run: RunDirectory, columns: tuple[str, ...], privacy: str) -> Iterator[str]:
    for column in columns:
        if not run.has("attributes") or column not in set(run.table("attributes")["column"]):
            beyond.attribute(run, column)
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
            yield f"| {column} | {attack} | {privacy} | {int(rows[0]['n'])} | " + " | ".join(cells) + " |"


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
    keys = ["protection", "batch", "epochs"]
    for (protection, batch, epochs), rows in table.groupby(keys, sort=False):
        cells = rows.set_index(["method", "metric"])
        shown = [str(protection), str(batch), str(epochs), str(int(rows["n"].iloc[0]))]
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


def section(name: str, options: argparse.Namespace) -> Iterator[str]:
    runs = {
        privacy: finished(name, privacy, options.runs, options.data_dir, options.games) for privacy in PRIVACY
    }
    games = runs["no DP"].scenario.games
    yield from (f"## {name}", "", f"{games} game(s) at each level of privacy.", "")
    if COLUMNS[name]:
        yield (
            "| column | attack | privacy | members | accuracy, members | held out | called members | "
            "above imputation, members | leak |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for privacy, run in runs.items():
            yield from attributes(run, COLUMNS[name], privacy)
        yield ""
    yield from ("| lists counted by | estimator | privacy | error | gain over prior | covered |",
                "|---|---|---|---|---|---|")  # fmt: skip
    for privacy, run in runs.items():
        yield from counts(run, privacy)
    yield from ("", "| protection | batch | steps | rows | nearest own record: rows | cells | analytic: rows "
                "| cells | DLG: rows | cells | Geiping: rows | cells | labels |",
                "|" + "---|" * 13)  # fmt: skip
    yield from gradients(runs["no DP"], options.repeats)
    yield from ("", "| typical record | privacy | nearer to members | nearest member | nearest held out | "
                "members' mean |", "|---|---|---|---|---|---|")  # fmt: skip
    for privacy, run in runs.items():
        yield from inversion(run, privacy)
    yield ""


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
  every category is right and its numbers are off by 5 % of their range at most; *steps* of plain SGD on the
  whole batch. *participant*: the sum of all others' updates; *secure sum*: of everybody's.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "beyond")
    parser.add_argument("--games", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="batches of each setting")
    parser.add_argument("--table", type=Path, default=EXPERIMENTS / "results" / "beyond.md")
    options = parser.parse_args()
    lines = [HEAD]
    for name in options.only:
        for line in section(name, options):
            print(line, flush=True)
            lines.append(line)
    options.table.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
