"""A sweep: many runs that differ in a few keys, and one tidy table of what they found.

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

Every combination of scenario, variant and axis values is a point; points with the same content share one
cell (`fedsim.sweeps.cells`), which is run once.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks import registry
from fedsim.core.data.encode import Encoded
from fedsim.core.errors import FedsimError, InputError, suggestion
from fedsim.core.scenario import reading
from fedsim.core.scenario.adversary import attack_key
from fedsim.core.scenario.reading import OFF
from fedsim.core.scenario.settings import Scenario
from fedsim.runs import prepare
from fedsim.runs.observers import observers_of
from fedsim.sweeps import cells
from fedsim.sweeps.cells import Cell, Report
from fedsim.sweeps.file import Source, Sweep, Values, Variant, check_clashes, load


class Stopped(FedsimError):
    """A person stopped the sweep; the same command goes on."""

    exit_code = 130


@dataclass(frozen=True)
class Point:
    """One combination of a sweep; labels: scenario, variant and the axes' values, by column."""

    labels: Values
    cell: Cell

    @property
    def name(self) -> str:
        """The labels in words."""
        scenario, variant, *axes = self.labels.items()
        return ", ".join([scenario[1], *filter(None, [variant[1]]), *_words(dict(axes))])


def plan(
    path: Path,
    cells_folder: Path,
    data_dir: Path | None = None,
    overrides: Iterable[str] = (),
    progress: Callable[[int, int], object] | None = None,
) -> list[Point]:
    """Return every point of the sweep at ``path``, in the file's order, each checked against its data.

    overrides: 'key=value' texts that hold for every point, whatever the file says
    progress: called with points checked and in all.

    Raises:
        InputError: in one sentence, which point is wrong, and why.
    """
    sweep, last = load(path), dict(reading.assignment(text) for text in overrides)
    check_clashes(sweep, path, [("--set", last)])
    _check_count(sweep, path)
    parsed = list(_scenarios(sweep, path, last))
    _check_headline(sweep, path, [scenario for _, _, scenario in parsed])
    read: dict[str, Encoded] = {}
    points = []
    for labels, where, scenario in parsed:
        cell = _cell(scenario, where, sweep.headline, cells_folder, data_dir, read)
        points.append(Point(labels, cell))
        if progress:
            progress(len(points), len(parsed))
    return points


MOST_POINTS = 20_000
"""Points of a sweep: each is checked against its data before the first one is run."""


def _check_count(sweep: Sweep, path: Path) -> None:
    """Refuse a sweep of more points than can be checked, before any of them is made.

    Raises:
        InputError: naming the axis with most values.
    """
    lengths = {axis: len(values) for axis, values in sweep.axes.items()}
    points = len(sweep.scenarios) * max(1, len(sweep.variants)) * math.prod(lengths.values())
    if points > MOST_POINTS:
        longest = max(lengths, key=lambda axis: lengths[axis], default="variants")
        raise InputError(
            f"{path}: {points:,} points, of which a sweep has at most {MOST_POINTS:,}; shorten the longest "
            f"axis, '{longest}'"
        )


def _check_headline(sweep: Sweep, path: Path, points: Sequence[Scenario]) -> None:
    """Refuse headline attacks that do not exist, neither built in nor among the scenarios' own."""
    folders = {(tuple(s.adversary.own_attacks), s.adversary.folder) for s in points}
    attacks = {attack for own, folder in folders for attack in registry.known(own, folder)}
    keys = {(observer, attack.name) for attack in attacks for observer in attack.observers}
    names = [name if whose == "participant" else f"{whose}:{name}" for whose, name in keys]
    for text in sweep.headline:
        if attack_key(text) not in keys:
            raise InputError(f"{path}: headline: unknown attack '{text}'{suggestion(text, names)}")


def _scenarios(sweep: Sweep, path: Path, last: Values) -> Iterator[tuple[Values, str, Scenario]]:
    """Yield labels, words for an error's sentence, and the scenario of every point."""
    documents = [_document(path, source) for source in sweep.scenarios]
    names = [str(document["name"]) for document, _ in documents]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: scenarios: two are named '{max(names, key=names.count)}'")
    for variant in sweep.variants:
        for name in set(variant.scenarios) - set(names):
            where = f"{path}: variant '{variant.name}': scenarios"
            raise InputError(f"{where}: '{name}' is none of the sweep's{suggestion(name, names)}")
    for source, (document, folder) in zip(sweep.scenarios, documents, strict=True):
        name = str(document["name"])
        applying = [v for v in sweep.variants if not v.scenarios or name in v.scenarios]
        variants = applying if sweep.variants else [Variant(name="")]
        for variant, values in itertools.product(variants, itertools.product(*sweep.axes.values())):
            axes = dict(zip(sweep.axes, values, strict=True))
            where = f"{path}: {', '.join([name, *filter(None, [variant.name]), *_words(axes)])}"
            changes = {**sweep.set, **source.set, **variant.set, **last, **axes}
            scenario = reading.parse(_changed(document, changes, where), where, folder)
            shown = {axis: _label(axis, value) for axis, value in axes.items()}
            yield {"scenario": name, "variant": variant.name, **shown}, where, scenario


def _document(path: Path, source: Source) -> tuple[Values, Path]:
    file = path.parent / source.file
    if not file.is_file():
        near = suggestion(file.name, [other.name for other in file.parent.glob("*.toml")])
        raise InputError(f"{path}: scenarios: there is no file {file}{near}")
    return reading.read(file), file.resolve().parent


def _words(axes: Values) -> list[str]:
    return [f"{axis} = {value}" for axis, value in axes.items()]


def _changed(document: Values, changes: Values, where: str) -> Values:
    changed = copy.deepcopy(document)
    for key, value in changes.items():
        if _is_epsilon(key):
            reading.switch_dp(changed, key.split(".")[1], math.inf if value in OFF else value)
        else:
            reading.put(changed, key, copy.deepcopy(value), where)
    return changed


def _is_epsilon(key: str) -> bool:
    return re.fullmatch(r"dp\.[^.]+\.epsilon", key) is not None


def _label(axis: str, value: Any) -> Any:
    """Return an axis' value as a cell of a table: DP that is off has ε = ∞, lists become text."""
    if _is_epsilon(axis):
        return math.inf if value in OFF else float(value)
    return value if isinstance(value, str | int | float) else json.dumps(value)


def _cell(
    scenario: Scenario,
    where: str,
    headline: Sequence[str],
    folder: Path,
    data_dir: Path | None,
    read: dict[str, Encoded],
) -> Cell:
    """Check a point's scenario; records that an earlier point has read are not read again."""
    full = prepare.with_sector_defaults(scenario)
    same = json.dumps([full.data.model_dump(mode="json"), full.parties.sector, full.seed])
    try:
        if same not in read:
            read.clear()  # points with the same records come one after another
            read[same] = prepare.read_records(full, data_dir)
        prepared = prepare.check(scenario, data_dir, read[same])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    observers = observers_of(prepared.scenario.adversary)
    attacks = {observer: registry.attacks_of(prepared.scenario, observer) for observer in observers}
    run = {(observer, attack.name) for observer, mounted in attacks.items() for attack in mounted}
    if run.isdisjoint(map(attack_key, headline)):
        names = [attack.name for attack in attacks["participant"] if attack.infers == "membership"]
        raise InputError(
            f"{where}: no attack of headline = {list(headline)} is run; it runs {', '.join(names)}"
        )
    return Cell(cells.key_of(prepared), prepared.scenario, folder, data_dir)


def distinct(points: Sequence[Point]) -> list[Cell]:
    """Return the points' cells, each once."""
    return list({point.cell.key: point.cell for point in points}.values())


def run(
    points: Sequence[Point],
    workers: int,
    engine: str = "inprocess",
    address: str | None = None,
    watch: Callable[[Report], object] = lambda report: None,
) -> dict[str, str]:
    """Run the cells that are not finished; return key → reason of those that failed.

    engine: 'inprocess' (processes of this machine) or 'ray' (tasks, on the cluster at ``address`` if any)
    watch: called with each report

    Raises:
        Stopped: Ctrl-C; what was done is kept.
    """
    todo = [cell for cell in distinct(points) if not cell.finished]
    if not todo:
        return {}
    todo[0].folder.mkdir(parents=True, exist_ok=True)
    reports = (
        cells.in_processes(todo, workers) if engine == "inprocess" else cells.on_ray(todo, workers, address)
    )
    failed = {}
    try:
        with contextlib.closing(reports):
            for report in reports:
                watch(report)
                if report.state == "failed":
                    failed[report.key] = report.reason
    except KeyboardInterrupt:
        done = sum(cell.finished for cell in distinct(points))
        raise Stopped(
            f"stopped with {done} of {len(distinct(points))} cells finished; the same command goes on"
        ) from None
    return failed


def complaint(points: Sequence[Point], failed: Mapping[str, str]) -> str:
    """Say in one sentence how many cells failed, which was the first, and why."""
    first = next(point for point in points if point.cell.key in failed)
    return (
        f"{len(failed)} of {len(distinct(points))} cells failed, the first being {first.name}: "
        f"{failed[first.cell.key]}; the same command tries them again"
    )
