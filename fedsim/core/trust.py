"""A scenario is code: whose run folders may name it.

A run's scenario can name a 'module:callable', which attacks, `--resume` and others import. A folder that this
person made carries a mark that nobody else can write: HMAC-SHA256 (RFC 2104) of the scenario under a key that
lies among the person's own files. A folder without it came from elsewhere, or its scenario was changed: its
code is imported only where the person says so (`TRUST`). To show such a run, or its report, imports nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

import platformdirs

from fedsim.core import files, imports
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import Scenario

TRUST = "FEDSIM_TRUST_CODE"
"""Environment variable: '1' where any run's code may be imported, as `--trust-code` says; else the folders of
runs whose code may be, with a `os.pathsep` between."""

MARK = ".made-here"


def references(scenario: Scenario) -> list[tuple[str, str | None]]:
    """Return what a scenario names to be imported: ('module:callable', the folder to import it from)."""
    federation, model, adversary, data = (
        scenario.federation,
        scenario.model,
        scenario.adversary,
        scenario.data,
    )
    named = [(model.name, model.folder), (federation.strategy, federation.folder)]
    named += [(attack, adversary.folder) for attack in adversary.attacks]
    named += [(file, data.folder) for file in data.files]
    return [(name, folder) for name, folder in named if imports.is_reference(name)]


def mark(run: Path, scenario: Scenario) -> None:
    """Leave this person's mark in the new folder of a run whose scenario names code."""
    if not references(scenario):
        return
    try:
        files.write_text(run / MARK, _seal(run, _key()))
    except InputError:  # the key cannot be kept: this process, and those it starts, know the run all the same
        os.environ[TRUST] = os.pathsep.join(filter(None, [os.environ.get(TRUST), str(run)]))


def require(run: Path, scenario: Scenario) -> None:
    """Refuse a run from elsewhere that brings code, before any of it is asked for.

    Raises:
        InputError: see `guard`.
    """
    guard(run, scenario)
    for reference in references(scenario):
        if reference in imports.REFUSED:
            raise InputError(imports.REFUSED[reference])


def guard(run: Path, scenario: Scenario) -> None:
    """Have `imports.load` refuse the code that a run's scenario names, where the run came from elsewhere."""
    for reference in references(scenario):
        if _trusted(run) or (_is_ours(run) and not _lies_in(run, reference[1])):
            imports.REFUSED.pop(reference, None)
        else:
            imports.REFUSED[reference] = (
                f"{run} came from elsewhere, or was changed, and '{reference[0]}' is code that it brings; "
                f"read it first, then say --trust-code (in Python: set {TRUST} = '1')"
            )


def passed_on(run: Path, scenario: Scenario) -> dict[str, str]:
    """Return the variable by which a process with another home trusts a run as this one does."""
    guard(run, scenario)
    named = references(scenario)
    if not named or any(reference in imports.REFUSED for reference in named):
        return {}
    said = os.environ.get(TRUST, "")
    return {TRUST: said if said == "1" else os.pathsep.join(filter(None, [said, str(run)]))}


def _trusted(run: Path) -> bool:
    said = os.environ.get(TRUST, "")
    return said == "1" or str(run) in said.split(os.pathsep)


def _is_ours(run: Path) -> bool:
    try:
        written = (run / MARK).read_text(encoding="ascii")
        return hmac.compare_digest(written, _seal(run, _key()))
    except (OSError, ValueError, TypeError, InputError):
        return False


def _lies_in(run: Path, folder: str | None) -> bool:
    return Path(folder or ".").resolve().is_relative_to(run.resolve())


def _seal(run: Path, key: bytes) -> str:
    return hmac.new(key, (run / "scenario.toml").read_bytes(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """Return this person's key, drawn from the operating system the first time.

    Raises:
        InputError: it can be neither read nor kept.
    """
    path = platformdirs.user_data_path("fedsim", appauthor=False) / "key"
    try:
        if not path.exists():
            files.write_bytes(path, secrets.token_bytes(32), private=True)
        return path.read_bytes()
    except OSError as error:
        raise files.cannot_read(path, error) from error
