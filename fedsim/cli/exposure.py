"""`fedsim exposure`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from fedsim.cli.common import (
    busy,
    data_dir_option,
    dp_option,
    err,
    json_option,
    line,
    out,
    print_json,
    read_scenario,
    set_option,
)


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--party", help="Whose records. [default: the first that is not the adversary]")
@set_option
@dp_option
@data_dir_option
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Records shown.")
@click.option("--out", "place", type=click.Path(path_type=Path), help="File for all records, as Parquet.")
@json_option
def exposure(
    scenario: Path,
    party: str | None,
    overrides: tuple[str, ...],
    dp: tuple[str, ...],
    data_dir: Path | None,
    top: int,
    place: Path | None,
    as_json: bool,
) -> None:
    """Predict, before joining SCENARIO's federation, how exposed each of a party's records would be.

    No federation and no shadow is trained: a record's separation follows from what it would add to the first
    update and from the noise of everything else in it. Beside it stands what the party's DP would allow.

    \b
    Examples:
      fedsim exposure experiments/hospitals.toml
      fedsim exposure experiments/hospitals.toml --party hospital-3 --dp all=8
      fedsim exposure experiments/heart.toml --out exposed.parquet --top 20
    """
    from fedsim.core.files import write_table
    from fedsim.runs import prepare
    from fedsim.runs.exposure import expose
    from fedsim.terminal import exposure_table

    with busy("Reading the records…"):
        prepared = prepare.check(read_scenario(scenario, overrides, dp), data_dir)
    with busy("Simulating rounds of single parties…"):
        found = expose(prepared, party)
    if as_json:
        print_json(dataclasses.replace(found, records=found.records.head(top)) if place else found)
    else:
        out().print(exposure_table.table(found, min(top, len(found.records))))
        for sentence in exposure_table.words(found):
            line(sentence)
    if place is not None:
        write_table(place, found.records, private=True)
        line(f"All records: {place}", err() if as_json else out())
