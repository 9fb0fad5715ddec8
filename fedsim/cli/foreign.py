"""`fedsim attack --models`: the models of another software, as a run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsim.cli.common import busy, notices
from fedsim.core.errors import InputError

if TYPE_CHECKING:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.core.scenario.settings import Scenario

_OPTIONS = {
    "models": ("PATH", "Attack models of another software: a folder of them by round, or one file."),
    "records": ("TABLE", "With --models: records as the model takes them; a file, or module:callable."),
    "members": ("FILE|COLUMN", "With --models: which of the records were trained on."),
    "id": ("COLUMN", "With --models: the column by which --members names records."),
    "label": ("COLUMN", "With --models: the column that the model predicts."),
    "party": ("COLUMN", "With --models: the party of a record, if there were several."),
    "adversary": ("PARTY", "With --models: the party that attacks. [default: the first]"),
    "insider": ("SHARE", "With --models, without --party: records the adversary knows. [default: 0.2]"),
    "model": ("MODULE:CALLABLE", "With --models: the architecture."),
    "scenario": ("FILE", "With --models: describes the training, for attacks that simulate it."),
    "set": ("KEY=VALUE", "With --models: override any key of the scenario."),
}
"""Option → what it takes, and its line in the help."""


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe a run of another software, as keywords ``foreign_models`` and so on."""
    for name, (metavar, text) in reversed(_OPTIONS.items()):
        kind = click.FloatRange(0, 1, min_open=True, max_open=True) if name == "insider" else None
        option = click.option(
            f"--{name}", f"foreign_{name}", metavar=metavar, help=text, type=kind, multiple=name == "set"
        )
        command = option(command)
    return command


def given(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return what was said of the options, by their names; empty where --models is not among them.

    Raises:
        InputError: one of the others was used without --models.
    """
    said = {name: keywords[f"foreign_{name}"] for name in _OPTIONS}
    used = [name for name, value in said.items() if value not in (None, ())]
    if used and said["models"] is None:
        raise InputError(f"--{used[0]} goes with --models, the models of another software")
    return said if used else {}


def bring(said: dict[str, Any], attacks: str | None, place: Path | None) -> RunDirectory:
    """Read what was brought and fill a run's folder with it, ready to be attacked.

    said: of `given`; place: the folder, default runs/<name>
    """
    from fedsim.core.run_directory import new_run_path
    from fedsim.runs import foreign, foreign_run

    for name in ("records", "members"):
        if said[name] is None:
            raise InputError(f"--models needs --{name}; see fedsim attack --help")
    scenario = _scenario(said, attacks)
    with busy("Reading models and records…"):
        brought = foreign.read(
            scenario,
            Path(said["models"]),
            said["members"],
            key=said["id"],
            described=said["scenario"] is not None,
            known=foreign.KNOWN if said["insider"] is None else said["insider"],
        )
        run = foreign_run.write(brought, place or new_run_path(Path("runs"), scenario.name))
    notices(run.manifest["notices"])
    return run


def _scenario(said: dict[str, Any], attacks: str | None) -> Scenario:
    """Return the scenario that describes the training, or the defaults, with what the options say.

    Functions and files named on the command line are looked for where that was typed.
    """
    from fedsim.core.imports import is_reference
    from fedsim.core.scenario import reading

    file = None if said["scenario"] is None else Path(said["scenario"])
    document: dict[str, Any] = {"name": "foreign"} if file is None else reading.read(file)
    for text in said["set"]:
        reading.put(document, *reading.assignment(text), f"--set {text}")
    records = said["records"]
    values = {
        "data.path": records if is_reference(records) else str(Path(records).resolve()),
        "data.folder": str(Path.cwd()) if is_reference(records) else None,
        "data.label": said["label"],
        "data.party": said["party"],
        "model.name": said["model"],
        "model.folder": str(Path.cwd()) if said["model"] else None,
        "adversary.party": said["adversary"],
        "adversary.attacks": [name.strip() for name in attacks.split(",")] if attacks else None,
    }
    for key, value in values.items():
        if value is not None:
            reading.put(document, key, value, "--models")
    document["data"].pop("name", None)
    if file is None and "model" not in document:
        raise InputError("--models needs --model MODULE:CALLABLE, the architecture of the saved weights")
    source, beside = ("--models", Path.cwd()) if file is None else (str(file), file.resolve().parent)
    return reading.parse(document, source, beside)
