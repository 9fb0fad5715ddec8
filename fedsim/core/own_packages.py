"""fedsim's own packages are the ones that Python finds, and what is shipped with them is found as well."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import fedsim
from fedsim.core.errors import InputError

BESIDE = ("attacks", "clients")
"""Top-level packages of the distribution beside `fedsim`: names that another module may well have."""

SHIPPED = "experiments"
"""Folder of the scenarios that come along."""


def check() -> None:
    """Refuse to start where a module of someone else's stands in the place of one of fedsim's packages.

    Raises:
        InputError: naming the package, and what Python finds instead.
    """
    assert fedsim.__file__ is not None
    home = Path(fedsim.__file__).resolve().parent.parent
    for name in BESIDE:
        spec = importlib.util.find_spec(name)
        place = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if place != home / name / "__init__.py":
            where = "none" if place is None else str(place)
            raise InputError(
                f"the package '{name}' that Python finds is {where}, not fedsim's in {home}: one hides the "
                "other; rename yours, or start from another folder"
            )


def shipped() -> dict[str, Path]:
    """Return the scenarios and examples that come along, by their path below 'experiments'.

    They stand beside the package in a checkout, and below share/fedsim where a wheel was installed.
    """
    assert fedsim.__file__ is not None
    beside = Path(fedsim.__file__).resolve().parent.parent / SHIPPED
    if (beside / "hospitals.toml").is_file():
        files = [file for file in sorted(beside.rglob("*")) if file.suffix in (".toml", ".py", ".ipynb")]
        return {file.relative_to(beside).as_posix(): file for file in files}
    try:
        listed = importlib.metadata.files("fedsim") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    marker = f"share/fedsim/{SHIPPED}/"
    found = {
        str(path).rpartition(marker)[2]: Path(str(path.locate())) for path in listed if marker in str(path)
    }
    return dict(sorted(found.items()))
