"""`fedsim init`: a commented scenario for a table of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli.common import err, line
from fedsim.core.errors import InputError, suggestion

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.core.data.draft import Guess


@click.command()
@click.argument("table", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--label", help="The column to predict. [default: guessed]")
@click.option("--party", help="The column that says who holds a record. [default: guessed]")
@click.option("--person", help="The column that says whose a record is. [default: guessed]")
@click.option("--out", "place", type=click.Path(path_type=Path), help="Scenario. [default: FILE's name.toml]")
@click.option("--yes", is_flag=True, help="Ask nothing, also in a terminal.")
def init(
    table: Path, label: str | None, party: str | None, person: str | None, place: Path | None, yes: bool
) -> None:
    """Draft a scenario for FILE (CSV, Parquet, Excel): label, party, person, kinds, missing codes.

    In a terminal it asks whether the guesses are right; in a pipe it asks nothing. Every guess says why.

    \b
    Examples:
      fedsim init patients.csv
      fedsim init patients.csv --label readmitted --party clinic --out clinics.toml
    """
    from fedsim.core.data import draft
    from fedsim.core.data.table import read_frame
    from fedsim.core.files import write_text
    from fedsim.core.scenario.settings import DataSettings

    place = place or table.with_suffix(".toml")
    if place.exists():
        raise InputError(f"{place} is there already; name another file with --out")
    frame, notices = read_frame(table, DataSettings())
    for notice in notices:
        line(notice, err())
    ask = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    roles: dict[str, Guess] = {}
    for role, given, what in (
        ("label", label, "column to predict"),
        ("party", party, "column that says who holds a record"),
        ("person", person, "column that says whose a record is"),
    ):
        taken = [guess.column for guess in roles.values()]
        guess = draft.label(frame) if role == "label" else getattr(draft, role)(frame, taken)
        roles[role] = _settled(frame, role, given, guess, what, ask)
    if roles["label"].column is None:
        raise InputError(f"{table}: {roles['label'].why}; name the column to predict with --label")
    facts, asks = _facts(table, roles)
    write_text(
        place, draft.write_up(table.resolve().relative_to(table.resolve().parent), frame, roles, facts, asks)
    )
    for role, guess in roles.items():
        line(f"{role}: {guess.column or 'none'} ({guess.why})", err())
    line(str(place))
    line(f"Next: fedsim scenario check {place}; then: fedsim run {place} --quick", err())


def _settled(frame: pd.DataFrame, role: str, given: str | None, guess: Guess, what: str, ask: bool) -> Guess:
    """Return what was given, or what a person answers, or the guess."""
    from fedsim.core.data.draft import Guess

    names = [str(name) for name in frame.columns]
    if given is None and ask:
        given = click.prompt(f"The {what}", default=guess.column or "none", err=True)
    if given is None or given == guess.column:
        return guess
    if given == "none":
        return Guess(None, "none, as you said")
    if given not in names:
        raise InputError(f"--{role} {given}: no such column{suggestion(given, names)}")
    return Guess(given, f"as you said; {frame[given].nunique()} values")


def _facts(table: Path, roles: dict[str, Guess]) -> tuple[list, str]:
    """Return what becomes of the columns, and the sentence by which reading them is refused."""
    from fedsim.core.scenario.settings import DataSettings, Scenario
    from fedsim.runs.prepare import read_records

    named = {role: guess.column for role, guess in roles.items() if guess.column is not None}
    try:
        data = DataSettings(path=str(table.resolve()), **named)
        return list(read_records(Scenario(data=data), None).columns), ""
    except InputError as error:
        return [], str(error)
