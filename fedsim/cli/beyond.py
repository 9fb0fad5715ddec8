"""`fedsim attribute`, `invert`, `reconstruct` and `count`: more of a finished run than membership."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import err, line, out

_run = click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))


@click.command()
@_run
@click.option("--column", required=True, help="The column that the adversary does not know.")
@click.option("--bins", default=3, show_default=True, type=click.IntRange(2), help="Bins of a number.")
def attribute(folder: Path, column: str, bins: int) -> None:
    """Infer a hidden column of RUN's candidates: the leak is what members lose and held-out records do not.

    \b
    Examples:
      fedsim attribute runs/heart --column thal
      fedsim attribute runs/hospitals --column bmi --bins 2
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond
    from fedsim.terminal.beyond_tables import results

    with err().status("Trying every value…"):
        table = beyond.attribute(RunDirectory.open(folder), column, bins)
    caption = (
        "Imputation never touches the model. Leak: the accuracy above imputation of members minus that of "
        "held-out records."
    )
    keys = ["attack", "records", "metric", "n"]
    out().print(results(table, keys, f"Attribute inference: {column}", caption))


@click.command()
@_run
def invert(folder: Path) -> None:
    """Reconstruct the typical record of each class from RUN's models, beside the mean of the adversary's own.

    \b
    Example:
      fedsim invert runs/digits
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond
    from fedsim.terminal.beyond_tables import results

    run = RunDirectory.open(folder)
    with err().status("Descending…"):
        table = beyond.invert(run)
    caption = (
        "Nearer: P(a member is nearer to it than a held-out record of its class); .5 tells nothing of who is "
        "in the data. Distances: root mean squares over columns."
    )
    out().print(results(table, ["source", "party", "metric"], "Model inversion", caption))
    line(f"Records: {run.path / 'inverted.safetensors'}")


@click.command()
@_run
@click.option(
    "--batch", "batches", multiple=True, type=click.IntRange(1), help="Records. [default: 1, 4, 16]"
)
@click.option("--steps", multiple=True, type=click.IntRange(1), help="Local steps. [default: 1, 4]")
@click.option("--protection", "protections", multiple=True, help="What the party does. [default: all]")
@click.option("--repeats", default=4, show_default=True, type=click.IntRange(1), help="Batches of each.")
@click.option("--round", default=1, show_default=True, type=click.IntRange(1), help="Whose update.")
def reconstruct(
    folder: Path,
    batches: tuple[int, ...],
    steps: tuple[int, ...],
    protections: tuple[str, ...],
    repeats: int,
    round: int,
) -> None:
    """Reconstruct batches of training records from the updates that RUN's parties would send (the server's
    attack, and a participant's on a sum).

    \b
    Examples:
      fedsim reconstruct runs/hospitals
      fedsim reconstruct runs/hospitals --batch 8 --steps 1 --protection none --protection 'ε = 8'
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond, sent
    from fedsim.terminal import live
    from fedsim.terminal.beyond_tables import results

    settings = sent.settings_of(batches, steps, protections)
    with live.bar("settings", err()) as progress:
        run = RunDirectory.open(folder)
        table = beyond.gradient(run, settings, repeats, round=round, progress=progress)
    keys = ["method", "protection", "batch", "steps", "metric", "n"]
    shown = table.rename(columns={"epochs": "steps"})
    out().print(results(shown, keys, "Gradient inversion: share recovered"))


@click.command()
@_run
@click.option("--column", help="Also the shares of this column's values at the other parties.")
@click.option("--bins", default=2, show_default=True, type=click.IntRange(2), help="Bins of a number.")
def count(folder: Path, column: str | None, bins: int) -> None:
    """Count members among RUN's candidates, and shares of a group at the parties: how many, not who.

    \b
    Examples:
      fedsim count runs/hospitals
      fedsim count runs/heart --column sex
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import beyond
    from fedsim.terminal.beyond_tables import results
    from fedsim.terminal.formatting import number

    with err().status("Counting…"):
        table = beyond.count(RunDirectory.open(folder), column, bins)
    caption = "Error: as a share of a list; the prior, one half of it, is .3 off."
    shown = table.assign(truth=[number(truth) for truth in table["truth"]])
    keys = ["what", "score", "estimator", "metric", "truth"]
    out().print(results(shown, keys, "Counts", caption))
