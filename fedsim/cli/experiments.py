"""`fedsim experiments`: the scenarios that come with fedsim, also where there is no checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from fedsim.cli.common import line
from fedsim.core.errors import InputError


@click.command()
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Copy them into this folder.")
def experiments(folder: Path | None) -> None:
    """List the scenarios and examples that come with fedsim, or copy them.

    \b
    Examples:
      fedsim experiments
      fedsim experiments --to experiments
    """
    from fedsim.core.files import cannot_write
    from fedsim.core.own_packages import shipped

    files = shipped()
    if not files:
        raise InputError("this installation has no experiments; take them from fedsim's repository")
    if folder is None:
        for name, file in files.items():
            line(f"{name:32} {file}")
        return
    taken = next((folder / name for name in files if (folder / name).exists()), None)
    if taken is not None:
        raise InputError(f"{taken} is there already and stays as it is; choose another folder with --to")
    for name, file in files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        except OSError as error:
            raise cannot_write(folder / name, error) from error
    line(f"{len(files)} files in {folder}; try: fedsim run {folder / 'hospitals.toml'} --quick")
