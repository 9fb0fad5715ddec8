"""A finished sweep's page of results: makes `experiments/results/NAME.md` of a sweep of that name.

    fedsim sweep experiments/sweeps/rounds.toml
    python experiments/studies/sweep_page.py experiments/sweeps/rounds.toml [--out runs/sweeps/rounds]

The page has the question as the sweep's file asks it, the budgets, and a row per point and headline attack.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import pandas as pd

from fedsim.core.files import read_table
from fedsim.sweeps import table
from fedsim.sweeps.file import load

RESULTS = Path(__file__).resolve().parents[1] / "results"
MEASURES = {"auc": "attack's AUC", "tpr_at_fpr_0.01": "TPR at 1 % FPR"}


def question(file: Path) -> str:
    """Return the comment at the head of a sweep's file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in head)


def figure(row: dict[Any, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if not math.isfinite(value):
        return "n too small"
    return f"{value:.3f}" if not math.isfinite(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def page(file: Path, sweep: pd.DataFrame) -> str:
    settings = load(file)
    compact = table.compact(sweep, settings.headline)
    labels = list(compact.columns[: compact.columns.get_loc("epsilon")])
    shown = [name for name in labels if compact[name].nunique() > 1]
    heads = [*shown, "ε", "accuracy", "world", "attack", *MEASURES.values(), "shadows", "of the first rounds"]
    lines = [
        f"# Sweep: {settings.name}",
        "",
        question(file),
        "",
        f"Made by `fedsim sweep experiments/sweeps/{file.name}` and",
        f"`python experiments/studies/sweep_page.py experiments/sweeps/{file.name}`. Means over",
        f"{sweep.loc[sweep['game'] != 'all', 'game'].nunique()} games, over all parties, with 95 % "
        "intervals; ε is the largest of the parties'.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    lines[-2:-2] = [f"**{sentence}.**\n" for sentence in table.left_out(sweep)]
    for row in compact.to_dict("records"):
        epsilon = "∞" if math.isinf(row["epsilon"]) else f"{row['epsilon']:.3g}"
        cells = [
            *(str(row[name]) for name in shown),
            epsilon,
            figure(row, "accuracy"),
            row["world"],
            row["attack"],
        ]
        cells += [figure(row, name) for name in MEASURES]
        lines.append(
            "| " + " | ".join([*cells, f"{row['shadows']:.0f}", f"{row['early_shadows']:.0f}"]) + " |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The sweep's folder. [default: runs/sweeps/NAME]"
)
def main(file: Path, out: Path | None) -> None:
    name = load(file).name
    sweep = read_table((out or Path("runs") / "sweeps" / name) / "sweep.parquet")
    (RESULTS / f"{name}.md").write_text(page(file, sweep), encoding="utf-8")


if __name__ == "__main__":
    main()
