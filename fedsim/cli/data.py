"""`fedsim data`."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import busy, data_dir_option, json_option, line, out, print_json


@click.group()
def data() -> None:
    """The named data sets.

    \b
    Examples:
      fedsim data list
      fedsim data show heart-disease
    """


@data.command("list")
@json_option
def list_sets(as_json: bool) -> None:
    """List the named data sets.

    \b
    Example:
      fedsim data list
    """
    from fedsim.core.data import catalogue
    from fedsim.terminal import data_tables

    sets = [catalogue.get(name) for name in catalogue.names()]
    if as_json:
        names = ("name", "title", "rows", "record", "licence", "origin", "embedded")
        print_json([{name: getattr(entry, name) for name in names} for entry in sets])
        return
    out().print(data_tables.data_list(sets))


@data.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show origin, licence, files and columns of NAME.

    \b
    Example:
      fedsim data show heart-disease
    """
    from fedsim.core.data import catalogue
    from fedsim.terminal import data_tables

    if as_json:
        print_json(data_tables.facts(catalogue.get(name)))
        return
    data_tables.data_set(catalogue.get(name), out())


@data.command()
@click.argument("name")
@data_dir_option
def fetch(name: str, data_dir: Path | None) -> None:
    """Download NAME, or find it in --data-dir, and check it against its hash.

    \b
    Examples:
      fedsim data fetch heart-disease
      fedsim data fetch mnist --data-dir data
    """
    from fedsim.core.data import catalogue

    with busy(f"Fetching {name}…"):
        paths = catalogue.fetch(name, data_dir)
    for path, file in zip(paths, catalogue.get(name).files, strict=True):
        line(f"{path}: {'SHA-256 as published' if file.sha256 else 'no published SHA-256'}")
    if not paths:
        line(f"{name} comes with scikit-learn; there is nothing to fetch")
