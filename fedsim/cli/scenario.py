"""`fedsim scenario`."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import (
    busy,
    data_dir_option,
    json_option,
    line,
    notices,
    out,
    print_json,
    read_scenario,
    set_option,
)


@click.group()
def scenario() -> None:
    """Scenario files: check one, or print the schema.

    \b
    Examples:
      fedsim scenario check experiments/hospitals.toml
      fedsim scenario schema
    """


@scenario.command()
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@data_dir_option
@json_option
def check(file: Path, overrides: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Check FILE and its data without running anything, and say what it would do.

    \b
    Examples:
      fedsim scenario check experiments/hospitals.toml
      fedsim scenario check clinics.toml --set parties.count=3
    """
    from fedsim.runs import prepare
    from fedsim.terminal import check_table

    settings = read_scenario(file, overrides)
    with busy("Reading the records…"):
        prepared = prepare.check(settings, data_dir)
    notices((*prepared.encoded.notices, *prepared.encoded.owner_notices))
    if as_json:
        seconds, memory = check_table.estimate(prepared)
        parties = {name: len(index) for name, index in prepared.rows.items()}
        print_json({
            "scenario": settings.name, "parties": parties, "adversary": prepared.adversary,
            "columns": list(prepared.encoded.columns), "seconds": seconds, "memory": memory,
            "notices": [*prepared.encoded.notices, *prepared.encoded.owner_notices],
        })  # fmt: skip
        return
    check_table.show(prepared, out())
    sizes = ", ".join(f"{name} ({len(index)})" for name, index in prepared.rows.items())
    line(f"{file} is valid: {len(prepared.rows)} parties: {sizes}")


@scenario.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors.

    \b
    Example:
      fedsim scenario schema > scenario.schema.json
    """
    import json

    from fedsim.core.scenario.settings import Scenario

    line(json.dumps(Scenario.model_json_schema(), indent=2))
