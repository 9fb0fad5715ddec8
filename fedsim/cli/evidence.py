"""`fedsim evidence`."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import busy, err, json_option, line, out, print_json


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--records", required=True, type=click.Path(path_type=Path), help="Table of the records asked.")
@click.option(
    "--prior",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Probability that such a record is in, before the models are looked at. Yours to state.",
)
@click.option("--game", default=0, show_default=True, type=click.IntRange(0), help="Which federation.")
@click.option("--out", "place", type=click.Path(path_type=Path), help="File for the table, as CSV.")
@json_option
def evidence(folder: Path, records: Path, prior: float, game: int, place: Path | None, as_json: bool) -> None:
    """Say of each record how strongly RUN's models speak for its having been in the training set.

    Per record: a likelihood ratio, the probability at a stated prior, how often such a finding is wrong,
    and a wording fit for a file. Where the calibration does not hold on records left out of it, nothing is
    said.

    \b
    Examples:
      fedsim evidence runs/hospitals --records people.csv
      fedsim evidence runs/hospitals --records people.csv --prior 0.5 --out evidence.csv
    """
    from fedsim.core.errors import InputError
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs.evidence import about
    from fedsim.terminal.evidence_table import table

    run = RunDirectory.open(folder)
    if game >= run.scenario.games:
        raise InputError(f"--game {game}: {folder} has games 0 to {run.scenario.games - 1}")
    with busy("Calibrating…"):
        found = about(run, records, prior, game)
    if as_json:
        print_json(found)
    else:
        out().print(table(found))
        for words in found["words"].head(3):
            line(words)
        if len(found) > 3:
            line(f"The wording of all {len(found)} records: --out FILE.csv or --json", err())
    if place is not None:
        from fedsim.core.files import write_text

        write_text(place, found.to_csv(index=False))
        line(f"Evidence: {place}", err() if as_json else out())
