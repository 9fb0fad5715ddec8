"""`fedsim attribute`, `invert`, `reconstruct` and `count`: more of a finished run than membership."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli.common import busy, err, json_option, line, out, print_json

if TYPE_CHECKING:
    import pandas as pd

_run = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))


@click.command()
@_run
@click.option("--column", required=True, help="The column that the adversary does not know.")
@click.option("--bins", default=3, show_default=True, type=click.IntRange(2), help="Bins of a number.")
@json_option
def attribute(folder: Path, column: str, bins: int, as_json: bool) -> None:
    """Infer a hidden column of RUN's candidates: the leak is what members lose and held-out records do not.

    \b
    Examples:
      fedsim attribute runs/heart --column thal
      fedsim attribute runs/hospitals --column bmi --bins 2
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond
    from fedsim.terminal.beyond_tables import results

    with busy("Trying every value…"):
        table = beyond.attribute(RunDirectory.open(folder), column, bins)
    if as_json:
        print_json(table)
        return
    caption = (
        "Accuracy of members, of held-out records, and of those whom the adversary calls members first. "
        "Above imputation: members' accuracy minus that of a model of the adversary's own records, which "
        "never touches the model under attack. Leak: that of members minus that of held-out records; only "
        f"this is what the federation gives away. n = {_n(table, 'members')} members, "
        f"{_n(table, 'held out')} held out; intervals 95 %."
    )
    shown = table.assign(metric=table["records"] + "/" + table["metric"])
    metrics = {
        "members/accuracy": "members",
        "held out/accuracy": "held out",
        "called members/accuracy": "called\nmembers",
        "members/above imputation": "above\nimputation",
        "difference/leak": "leak\n",
    }
    if "auc" in set(table["metric"]):
        metrics = {"members/auc": "AUC,\nmembers", "held out/auc": "AUC,\nheld out"} | metrics
        del metrics["called members/accuracy"]
    out().print(results(shown, {"attack": "attack"}, metrics, f"Attribute inference: {column}", caption))
    _on_the_page(folder)


def _n(table: pd.DataFrame, records: str) -> int:
    return int(table.loc[table["records"] == records, "n"].max())


def _on_the_page(folder: Path) -> None:
    line(f"fedsim report {folder}  puts this on the run's page.", err())


@click.command()
@_run
@json_option
def invert(folder: Path, as_json: bool) -> None:
    """Reconstruct the typical record of each class from RUN's models, beside the mean of the adversary's own.

    \b
    Example:
      fedsim invert runs/digits
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond
    from fedsim.terminal.beyond_tables import results

    run = RunDirectory.open(folder)
    with busy("Descending…"):
        table = beyond.invert(run)
    if as_json:
        print_json(table)
        return
    caption = (
        "Nearer: P(a member is nearer to it than a held-out record of its class); .5 tells nothing of who is "
        "in the data. Distances: root mean squares over columns."
    )
    metrics = {
        "nearer": "nearer to\nmembers",
        "to_member": "nearest\nmember",
        "to_heldout": "nearest\nheld out",
        "to_mean": "members'\nmean",
    }
    keys = {"party": "party", "source": "from"}
    out().print(results(table.sort_values("party", kind="stable"), keys, metrics, "Model inversion", caption))
    line(f"Records: {run.path / 'inverted.safetensors'}")
    _on_the_page(folder)


@click.command()
@_run
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1), help="Records. [default: 1, 4, 16]"
)
@click.option(
    "--steps", multiple=True, type=click.IntRange(1), help="Passes over the records. [default: 1, 4]"
)
@click.option(
    "--minibatches", multiple=True, type=click.IntRange(1), help="Steps of one pass, on --batch records each."
)
@click.option(
    "--optimizer",
    "optimizers",
    multiple=True,
    help="own (as in RUN), sgd, momentum (of .9) or adam (rate .01). [default: own]",
)
@click.option(
    "--protection",
    "protections",
    multiple=True,
    help="none, own (as the party does in RUN), clipped, sparsified, 'ε = 8', 'ε = 1', 'secure sum', "
    "participant (what a party sees of all others). [default: all]",
)
@click.option("--repeats", default=4, show_default=True, type=click.IntRange(1), help="Batches of each.")
@click.option("--round", default=1, show_default=True, type=click.IntRange(1), help="Whose update.")
@json_option
def reconstruct(
    folder: Path,
    batches: tuple[int, ...],
    steps: tuple[int, ...],
    protections: tuple[str, ...],
    minibatches: tuple[int, ...],
    optimizers: tuple[str, ...],
    repeats: int,
    round: int,
    as_json: bool,
) -> None:
    """Reconstruct batches of training records from the updates that RUN's parties would send (the server's
    attack, and a participant's on a sum).

    \b
    Examples:
      fedsim reconstruct runs/hospitals
      fedsim reconstruct runs/hospitals --batch 8 --steps 1 --protection none --protection 'ε = 8'
      fedsim reconstruct runs/hospitals --batch 2 --minibatches 2 --optimizer momentum --optimizer adam
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond, sent
    from fedsim.terminal import live
    from fedsim.terminal.beyond_tables import results

    settings = sent.settings_of(batches, steps, protections, minibatches, optimizers)
    with live.bar("settings", err()) as progress:
        run = RunDirectory.open(folder)
        table = beyond.gradient(run, settings, repeats, round=round, progress=progress)
    if as_json:
        print_json(table)
        return
    keys = {"protection": "protection", "optimizer": "optimizer", "batch": "batch", "minibatches": "parts"}
    keys |= {"epochs": "passes", "method": "method"}
    metrics = {"rows": "rows", "cells": "cells", "labels": "labels"}
    caption = (
        "Share recovered: rows with every category right and numbers within 5 % of their range, cells, "
        "labels. The nearest own record never touches the update, and is told which of them to name."
    )
    out().print(results(table, keys, metrics, "Gradient inversion", caption))
    _on_the_page(folder)


@click.command()
@_run
@click.option("--column", help="Also the shares of this column's values at the other parties.")
@click.option("--bins", default=2, show_default=True, type=click.IntRange(2), help="Bins of a number.")
@json_option
def count(folder: Path, column: str | None, bins: int, as_json: bool) -> None:
    """Count members among RUN's candidates, and shares of a group at the parties: how many, not who.

    \b
    Examples:
      fedsim count runs/hospitals
      fedsim count runs/heart --column sex
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond
    from fedsim.terminal.beyond_tables import results

    with busy("Counting…"):
        table = beyond.count(RunDirectory.open(folder), column, bins)
    if as_json:
        print_json(table)
        return
    keys = {"score": "score", "estimator": "estimator"}
    metrics = {"error": "error", "gain over prior": "gain over\nprior", "covered": "covered"}
    caption = "Error: as a share of a list of 40; the prior, one half of it, is .3 off. Intervals 95 %."
    lists = table[table["what"] == "lists"]
    out().print(results(lists, keys, metrics, "Members on lists with 0 to 100 % of them", caption))
    whole = _beside_truth(table[table["metric"].str.startswith("count")])
    keys = {"what": "among", "game": "game", "score": "score", "estimator": "estimator"}
    out().print(results(whole, keys, {"estimate": "members", "truth": "truth"}, "Members of all candidates"))
    shares = _beside_truth(table[table["metric"].str.startswith("share")])
    if len(shares):
        keys = {"what": "group, at", "game": "game", "score": "from"}
        title = f"Share of the groups of {column}"
        caption = "From 'none': the share among the adversary's own records, which never touches an update."
        out().print(results(shares, keys, {"estimate": "share", "truth": "truth"}, title, caption))
    _on_the_page(folder)


def _beside_truth(table: pd.DataFrame) -> pd.DataFrame:
    """Return each row twice, as 'estimate' and as 'truth', with its game in a column of its own."""
    import pandas as pd

    game = table["metric"].str.split().str[-1]
    estimate = table.assign(game=game, metric="estimate")
    truth = estimate.assign(metric="truth", value=table["truth"], low=float("nan"), high=float("nan"))
    return pd.concat([estimate, truth]).sort_index(kind="stable")
