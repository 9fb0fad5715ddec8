"""`fedsim doctor` and `fedsim completion`."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import data_dir_option, json_option, line, out, print_json
from fedsim.core.errors import FedsimError


@click.command()
@data_dir_option
@json_option
def doctor(data_dir: Path | None, as_json: bool) -> None:
    """Look whether fedsim can run here: versions, packages, folders, memory. Exit code 1 where it cannot.

    \b
    Examples:
      fedsim doctor
      fedsim doctor --json
    """
    from fedsim.terminal import doctor as examination
    from fedsim.terminal.formatting import new_table

    checks = examination.examine(data_dir)
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        table = new_table("fedsim doctor")
        for heading in ("what", "", "found"):
            table.add_column(heading, overflow="fold")
        colours = {"ok": "green", "note": "yellow", "bad": "red"}
        for check in checks:
            state = f"[{colours[check.state]}]{check.state}[/{colours[check.state]}]"
            table.add_row(check.what, state, check.said.replace("[", r"\["))
        out().print(table)
    bad = [check.what for check in checks if check.state == "bad"]
    if bad:
        raise FedsimError(f"to be mended: {', '.join(bad)}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands and options.

    \b
    Examples:
      fedsim completion bash >> ~/.bashrc
      fedsim completion zsh > ~/.zfunc/_fedsim
    """
    from click.shell_completion import get_completion_class

    from fedsim.cli.main import main

    made = get_completion_class(shell)
    assert made is not None
    line(made(main, {}, "fedsim", "_FEDSIM_COMPLETE").source())
