"""What several commands share: their consoles, options and first steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from fedsim.cli.streams import VERBOSITY, console

if TYPE_CHECKING:
    from rich.console import Console

    from fedsim.core.scenario.settings import Scenario

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    envvar="FEDSIM_DATA",
    help="Folder with data sets, used instead of downloads. [env: FEDSIM_DATA]",
)
set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override any key.")
dp_option = click.option(
    "--dp", multiple=True, metavar="PARTY=ε", help="DP-SGD of a party; 'all=8', 'x=off'."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
engine_option = click.option(
    "--engine",
    default="inprocess",
    show_default=True,
    help="inprocess, ray or superlink (see docs/processes.md).",
)


def _of_ray_alone(context: click.Context, option: click.Parameter, address: str | None) -> str | None:
    """Leave out what the environment says, but for --engine ray: it may be set for other programs."""
    said = context.get_parameter_source(option.name or "")
    elsewhere = said is ParameterSource.ENVIRONMENT and context.params.get("engine") != "ray"
    return None if elsewhere else address


ray_address_option = click.option(
    "--ray-address",
    envvar="RAY_ADDRESS",
    callback=_of_ray_alone,
    help="Ray cluster for what is run, or the shadows alone; 'auto': a local one. "
    "[env: RAY_ADDRESS, with --engine ray]",
)


def out() -> Console:
    """Return the console of standard output: results."""
    return console("stdout")


def err() -> Console:
    """Return the console of standard error: progress and notices; silent where --quiet asks for it."""
    stderr = console("stderr")
    stderr.quiet = VERBOSITY.quiet
    return stderr


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """Say what goes on and for how long it has.

    In a terminal on a line that goes away again; else in a line after two seconds, and in one every ten more.
    """
    console, began, over = err(), time.monotonic(), threading.Event()

    def tell(say: Callable[[str], object], first: float, later: float) -> None:
        pause = first
        while not over.wait(pause):
            say(f"{what} {time.monotonic() - began:.0f} s")
            pause = later

    with contextlib.ExitStack() as on_exit:
        if console.is_terminal:
            status = on_exit.enter_context(console.status(what))
            telling = threading.Thread(target=tell, args=(status.update, 2.0, 1.0), daemon=True)
        else:
            # A file's encoding may have no ellipsis, or one that is not what its reader takes it for.
            telling = threading.Thread(
                target=tell,
                args=(lambda text: line(text.replace("…", "..."), console), 2.0, 10.0),
                daemon=True,
            )
        telling.start()
        try:
            yield
        finally:
            over.set()
            telling.join()


def print_json(data: object) -> None:
    """Print data as JSON: tables as lists of rows, what is no finite number as null."""
    import json

    line(json.dumps(_plain(data), indent=2, ensure_ascii=False))


def _plain(data: object) -> object:
    """Return ``data`` in JSON's own types."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        return [_plain(row) for row in data.to_dict("records")]
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return _plain(vars(data))
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set):
        return [_plain(value) for value in data]
    if hasattr(data, "item") and callable(data.item):
        data = data.item()
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data if data is None or isinstance(data, bool | int | float) else str(data)


def line(text: str, to: Console | None = None, style: str | None = None) -> None:
    """Print ``text`` as it is on one line: no markup, no colours but ``style``, not wrapped."""
    (to or out()).print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def notices(texts: tuple[str, ...] | list[str]) -> None:
    """Print what a person has to know, in yellow."""
    for text in texts:
        err().print(text, style="yellow", markup=False, highlight=False, emoji=False)


def read_scenario(path: Path, overrides: tuple[str, ...], dp: tuple[str, ...] = ()) -> Scenario:
    """Return the scenario of a file, or of an earlier run's folder, with what the options change."""
    from fedsim.core import trust
    from fedsim.core.scenario import reading

    scenario = reading.load(reading.scenario_file(path), overrides, dp)
    if path.is_dir():  # a run's own, which may have come from elsewhere
        trust.guard(path.resolve(), scenario)
    named = dict.fromkeys(f"{name} ({folder})" for name, folder in trust.references(scenario))
    if named:
        line(f"This scenario names code, which is imported and run: {', '.join(named)}", err())
    return scenario
