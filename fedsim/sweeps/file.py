"""Sweep files.

A sweep file (TOML) names scenarios, keys that hold for all of them, and axes:

    name = "epsilon"
    scenarios = ["../heart.toml", {file = "../banks.toml", set = {"adversary.candidates" = 2000}}]
    headline = ["joint", "server:fedmia"]  # the attacks that tables show, named before anything is known
    [set]
    games = 4
    [axes]
    "dp.all.epsilon" = [1, 8, inf]         # inf switches DP off
    [[variants]]                           # settings that go together: one more axis
    name = "smoothed"
    set = {"defences.all.label_smoothing" = 0.1}
    scenarios = ["heart"]                  # default: all
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from fedsim.core.errors import InputError
from fedsim.core.scenario import reading
from fedsim.core.scenario.base import Settings

Values = dict[str, Any]
"""Dotted key → value."""

FIXED = [
    "kind", "observer", "attack", "world", "party", "game", "metric", "value", "low", "high", "n_members",
    "n_nonmembers", "note",
]  # fmt: skip
"""Columns of the table after cell, scenario, variant and the axes."""


def _flat(document: Any) -> Any:
    """Return nested tables as dotted keys; what is no table is left for the schema to refuse."""
    if not isinstance(document, dict):
        return document
    flat = {}
    for key, value in document.items():
        if isinstance(value, dict) and value:
            flat.update({f"{key}.{below}": leaf for below, leaf in _flat(value).items()})
        else:
            flat[key] = value
    return flat


def _as_table(source: Any) -> Any:
    return {"file": source} if isinstance(source, str) else source


Changes = Annotated[Values, BeforeValidator(_flat)]
NonEmpty = Annotated[list[Any], Field(min_length=1)]


class Source(Settings):
    """A scenario of a sweep."""

    file: str = Field(description="a scenario file, relative to the sweep file")
    set: Changes = Field({}, description="what to change in it, by dotted key")


class Variant(Settings):
    """Settings that go together."""

    name: str = Field(description="what the table's column 'variant' says")
    set: Changes = Field({}, description="what to change, by dotted key")
    scenarios: list[str] = Field([], description="names of the scenarios that it is for; default: all")


class Sweep(Settings):
    """A sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "sweep"
    scenarios: Annotated[list[Annotated[Source, BeforeValidator(_as_table)]], Field(min_length=1)]
    headline: Annotated[list[str], Field(min_length=1)] = Field(description="attacks that tables show")
    set: Changes = Field({}, description="what to change in every scenario, by dotted key")
    axes: Annotated[dict[str, NonEmpty], BeforeValidator(_flat)] = Field({}, description="key → its values")
    variants: list[Variant] = Field([], description="one more axis: settings that go together")


def load(path: Path) -> Sweep:
    """Read the sweep file at ``path``.

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    document = reading.read_toml(path)
    document.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "sweep")
    try:
        sweep = Sweep.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {reading.sentence(error, Sweep)}") from error
    _check(sweep, path)
    return sweep


def _check(sweep: Sweep, path: Path) -> None:
    names = [variant.name for variant in sweep.variants]
    for axis in sweep.axes:
        if axis in ("name", *FIXED):
            raise InputError(f"{path}: axes.{axis}: a scenario's '{axis}' decides nothing; leave it out")
    check_clashes(sweep, path, _all_changes(sweep))
    for variant in sweep.variants:
        twins = [other for other in sweep.variants if other.name == variant.name and other is not variant]
        if any(
            not variant.scenarios or not t.scenarios or {*variant.scenarios} & {*t.scenarios} for t in twins
        ):
            raise InputError(f"{path}: variants: {names.count(variant.name)} are named '{variant.name}'")


def check_clashes(sweep: Sweep, path: Path, named: Iterable[tuple[str, Values]]) -> None:
    """Refuse changes of a key that an axis varies; named: (where they stand, the changes).

    Raises:
        InputError: naming both places.
    """
    for (where, changes), axis in itertools.product(named, sweep.axes):
        clash = next((key for key in changes if overlap(key, axis)), None)
        if clash:
            raise InputError(f"{path}: '{clash}' of {where} and the axis '{axis}' set the same; keep one")


def _all_changes(sweep: Sweep) -> Iterator[tuple[str, Values]]:
    yield "[set]", sweep.set
    yield from ((f"scenario '{source.file}'", source.set) for source in sweep.scenarios)
    yield from ((f"variant '{variant.name}'", variant.set) for variant in sweep.variants)


def overlap(key: str, other: str) -> bool:
    """Whether one key is the other, or a section that holds it."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")
