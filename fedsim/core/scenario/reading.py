"""Reading, changing and writing scenario files.

A key that a person can get wrong is answered with one sentence that names the file, the key, the value and
the nearest valid choice.
"""

from __future__ import annotations

import math
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from fedsim.core.errors import InputError, suggestion
from fedsim.core.files import cannot_read, write_text
from fedsim.core.imports import is_reference
from fedsim.core.scenario.settings import Scenario

Section = TypeVar("Section", bound=BaseModel)

FOREIGN = "foreign.json"
"""In the folder of a run that fedsim did not make: round → the model's file and its SHA-256."""


def load(path: Path, overrides: Iterable[str] = (), dp: Iterable[str] = ()) -> Scenario:
    """Read the scenario file at ``path``.

    overrides: ``key.path=value`` texts, the value in TOML's syntax or a bare word.
    dp: ``party=ε`` texts ('all' for every party, 'off' or 'inf' to switch it off).

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    document = read(path)
    for text in overrides:
        put(document, *assignment(text), f"--set {text}")
    for text in dp:
        switch_dp(document, *dp_switch(text))
    return parse(document, source=str(path), folder=path.resolve().parent)


def scenario_file(path: Path) -> Path:
    """Return the scenario's file where ``path`` is the folder of a run, else ``path`` itself.

    Raises:
        InputError: it is a run that fedsim did not make: its scenario describes it, and does not repeat it.
    """
    try:
        if (path / FOREIGN).exists():
            raise InputError(
                f"{path}: fedsim did not make these models and cannot make them again; repeat the attacks on "
                f"them with `fedsim attack {path}`"
            )
        return path / "scenario.toml" if path.is_dir() else path
    except OSError:  # a name too long for any file: whoever reads it says so
        return path


def read(path: Path) -> dict[str, Any]:
    """Return the document at ``path``, not validated; a scenario without a name is called as its file is.

    Raises:
        InputError: the file cannot be read, is not TOML, or is empty.
    """
    document = read_toml(path)
    if not document:
        raise InputError(f"{path}: the scenario is empty; begin with data.name, a set of `fedsim data list`")
    document.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "scenario")
    return document


def read_toml(path: Path) -> dict[str, Any]:
    """Return the TOML document at ``path``, which must be a regular file: a pipe could keep us waiting.

    Raises:
        InputError: the file cannot be read or is not TOML.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise InputError(f"cannot read {path}: it is {kind}, not a file")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise cannot_read(path, error) from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid TOML: it is nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, or a number of too many digits
        raise InputError(f"{path}: not valid TOML: {error}") from error


def read_settings(path: Path, kind: type[Section]) -> Section:
    """Return a TOML file of settings other than a scenario's, as ``kind``.

    Raises:
        InputError: in one sentence, what is wrong.
    """
    document = read_toml(path)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {sentence(error, kind)}") from error


def put(document: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set ``key``, such as 'training.lr', in ``document``; ``source`` begins the error's sentence.

    Raises:
        InputError: a section of the key is a value.
    """
    *sections, last = [part.strip() for part in key.split(".")]
    table = document
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise InputError(f"{source}: '{section}' is a value, not a section")
    table[last] = value


def switch_dp(document: dict[str, Any], party: str, epsilon: float) -> None:
    """Set a party's target ε in ``document``; its other settings, or those of 'all', are kept. inf: off."""
    switch = document.setdefault("dp", {})
    if not isinstance(switch, dict):
        raise InputError(
            f"dp = {_shown(switch)}: it should be a section, of a table for each party or for 'all'"
        )
    if epsilon == math.inf:
        switch[party] = "off"
        return
    inherited = switch.get(party, switch.get("all", {}))
    settings = dict(inherited) if isinstance(inherited, dict) else {}
    settings.pop("noise_multiplier", None)
    switch[party] = {**settings, "epsilon": epsilon}


def parse(document: Mapping[str, Any], source: str = "scenario", folder: Path | None = None) -> Scenario:
    """Validate ``document``; relative paths in it are taken from ``folder``.

    Raises:
        InputError: see `load`.
    """
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{source}: {sentence(error)}") from error
    return scenario if folder is None else _with_absolute_paths(scenario, folder, source)


def save(scenario: Scenario, path: Path) -> None:
    """Write the scenario with every default filled in, so that running the file repeats the run."""
    write_text(path, tomli_w.dumps(scenario.model_dump(exclude_none=True)))


def assignment(text: str) -> tuple[str, Any]:
    """Return key and value of a 'key=value'; the value is in TOML's syntax, or a bare word.

    Raises:
        InputError: there is no key, or no '='.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {text}: expected key=value, such as training.lr=0.05")
    return key.strip(), _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word is a string


OFF = ("off", "inf", "∞")
"""Spellings of an ε that switch DP off."""


def dp_switch(text: str) -> tuple[str, float]:
    """Return party and ε of 'party=ε', inf where it is switched off.

    Raises:
        InputError: it has another form, or ε is no number.
    """
    party, sign, value = text.rpartition("=")
    if not sign or not party:
        raise InputError(f"--dp {text}: expected party=ε, such as all=8 or hospital-2=3")
    try:
        return party, math.inf if value in OFF else float(value)
    except ValueError:
        raise InputError(f"--dp {text}: ε is '{value}'; it must be a number above 0 or 'off'") from None


def _with_absolute_paths(scenario: Scenario, folder: Path, source: str) -> Scenario:
    def absolute(path: str, key: str) -> str:
        try:
            return str((folder / Path(path).expanduser()).resolve())
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition(" from ")[0]
            raise InputError(f"{source}: {key} = {_shown(path)}: it names no file: {reason}") from error

    def absolute_file(path: str, key: str) -> str:
        return path if is_reference(path) else absolute(path, key)

    data = scenario.data
    path = data.path
    if isinstance(path, str):
        path = absolute_file(path, "data.path")
    elif path is not None:
        path = {party: absolute_file(file, f"data.path.{party}") for party, file in path.items()}
    if any(map(is_reference, data.files)):
        data = data.model_copy(update={"folder": absolute(data.folder or ".", "data.folder")})
    public = absolute(data.public, "data.public") if data.public else None
    text = absolute(data.text, "data.text") if data.text else None
    model = scenario.model
    if ":" in model.name:
        model = model.model_copy(update={"folder": absolute(model.folder or ".", "model.folder")})
    federation, adversary = scenario.federation, scenario.adversary
    if is_reference(federation.strategy):
        where = absolute(federation.folder or ".", "federation.folder")
        federation = federation.model_copy(update={"folder": where})
    if adversary.own_attacks:
        where = absolute(adversary.folder or ".", "adversary.folder")
        adversary = adversary.model_copy(update={"folder": where})
    data = data.model_copy(update={"path": path, "public": public, "text": text})
    sections = {"data": data, "model": model, "federation": federation, "adversary": adversary}
    return scenario.model_copy(update=sections)


def sentence(error: ValidationError, root: type[BaseModel] = Scenario) -> str:
    """Say the first problem of a document of type ``root`` in one sentence: key, value, what is valid."""
    problem = error.errors()[0]
    # Pydantic puts the tried member of a union into the location; only real keys are wanted.
    location = [str(part) for part in problem["loc"] if not _UNION_TAG.match(str(part))]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(location[:-1], root)
        where = f" in [{'.'.join(location[:-1])}]" if location[:-1] else ""
        return f"unknown key '{location[-1]}'{where}{suggestion(location[-1], known)}"
    key = ".".join(location)
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    message = message.replace("it should be a valid dictionary or instance of DPSettings", _DP_HINT)
    message = message.replace("it should be a valid dictionary or instance of DefenceSettings", _DEFENCE_HINT)
    shown = problem["input"]
    if isinstance(shown, dict):
        return f"[{key}] {message}" if key else message
    return f"{key} = {_shown(shown)}: {message}"


def _shown(value: object, length: int = 120) -> str:
    """Return a value as it is written, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= length else f"{text[:length]}…"


_UNION_TAG = re.compile(r"^(function-|literal\[|dict\[|DPSettings$|DefenceSettings$|str$|int$|float$)")


_DP_HINT = "it should be 'off' or a table such as {epsilon = 8}"
_DEFENCE_HINT = "it should be 'off' or a table such as {label_smoothing = 0.1}"


def _keys_at(location: list[str], root: type[BaseModel]) -> list[str]:
    """Return the valid keys of the section at ``location``."""
    section: type[BaseModel] | None = root
    for part in location:
        if section is None:
            return []
        field = section.model_fields.get(part)
        section = _settings_in(field.annotation) if field else section
    return list(section.model_fields) if section else []


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_args(annotation):
        for part in typing.get_args(annotation):
            model = _settings_in(part)
            if model:
                return model
    return None
