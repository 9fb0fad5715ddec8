"""A sweep: many runs that differ in a few keys, and one tidy table of what they found.

A sweep file (TOML) names scenarios, keys that hold for all of them, and axes:

    name = "epsilon"
    scenarios = ["../heart.toml", {file = "../banks.toml", set = {"adversary.candidates" = 2000}}]
    headline = ["joint", "lira"]           # the attacks that tables show, named before anything is known
    [set]
    games = 4
    [axes]
    "dp.all.epsilon" = [1, 8, inf]         # inf switches DP off
    [[variants]]                           # settings that go together: one more axis
    name = "smoothed"
    set = {"defences.all.label_smoothing" = 0.1}
    scenarios = ["heart"]                  # default: all

Every combination of scenario, variant and axis values is a point; points with the same content share one
cell (`fedsim.cells`), which is run once.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, ValidationError

from attacks import suite
from fedsim import cells, files, runner
from fedsim import scenario as scenarios
from fedsim.cells import Cell, Report
from fedsim.data.encode import Encoded
from fedsim.errors import FedsimError, InputError, suggestion
from fedsim.results import RunDirectory
from fedsim.scenario import OFF, Scenario, Settings

Values = dict[str, Any]
"""Dotted key → value."""

FIXED = [
    "kind", "attack", "party", "game", "metric", "value", "low", "high", "n_members", "n_nonmembers", "note",
]  # fmt: skip
"""Columns of the table after cell, scenario, variant and the axes."""

UTILITY = ("accuracy", "auc", "loss")

LEAKAGE = ("auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")
"""Metrics of leakage that `compact` keeps."""


class Stopped(FedsimError):
    """A person stopped the sweep; the same command goes on."""

    exit_code = 130


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


def load(path: Path) -> Sweep:
    """Read the sweep file at ``path``.

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise files.cannot_read(path, error) from error
    document.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "sweep")
    try:
        sweep = Sweep.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {scenarios.sentence(error, Sweep)}") from error
    _check(sweep, path)
    return sweep


def _check(sweep: Sweep, path: Path) -> None:
    names = [variant.name for variant in sweep.variants]
    for axis in sweep.axes:
        if axis in ("name", *FIXED):
            raise InputError(f"{path}: axes.{axis}: a scenario's '{axis}' decides nothing; leave it out")
    _check_clashes(sweep, path, _all_changes(sweep))
    for variant in sweep.variants:
        twins = [other for other in sweep.variants if other.name == variant.name and other is not variant]
        if any(
            not variant.scenarios or not t.scenarios or {*variant.scenarios} & {*t.scenarios} for t in twins
        ):
            raise InputError(f"{path}: variants: {names.count(variant.name)} are named '{variant.name}'")
    for attack in sweep.headline:
        if "/" not in attack and attack not in suite.SUITE:
            raise InputError(f"{path}: headline: unknown attack '{attack}'{suggestion(attack, suite.SUITE)}")


def _check_clashes(sweep: Sweep, path: Path, named: Iterable[tuple[str, Values]]) -> None:
    for (where, changes), axis in itertools.product(named, sweep.axes):
        clash = next((key for key in changes if _overlap(key, axis)), None)
        if clash:
            raise InputError(f"{path}: '{clash}' of {where} and the axis '{axis}' set the same; keep one")


def _all_changes(sweep: Sweep) -> Iterator[tuple[str, Values]]:
    yield "[set]", sweep.set
    yield from ((f"scenario '{source.file}'", source.set) for source in sweep.scenarios)
    yield from ((f"variant '{variant.name}'", variant.set) for variant in sweep.variants)


def _overlap(key: str, other: str) -> bool:
    """Whether one key is the other, or a section that holds it."""
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


# -------------------------------------------------------------------- points
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
    sweep, last = load(path), dict(scenarios.assignment(text) for text in overrides)
    _check_clashes(sweep, path, [("--set", last)])
    parsed = list(_scenarios(sweep, path, last))
    read: dict[str, Encoded] = {}
    points = []
    for labels, where, scenario in parsed:
        cell = _cell(scenario, where, sweep.headline, cells_folder, data_dir, read)
        points.append(Point(labels, cell))
        if progress:
            progress(len(points), len(parsed))
    return points


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
        mine = [v for v in sweep.variants if not v.scenarios or name in v.scenarios]
        variants = mine if sweep.variants else [Variant(name="")]
        for variant, values in itertools.product(variants, itertools.product(*sweep.axes.values())):
            axes = dict(zip(sweep.axes, values, strict=True))
            where = f"{path}: {', '.join([name, *filter(None, [variant.name]), *_words(axes)])}"
            changes = {**sweep.set, **source.set, **variant.set, **last, **axes}
            scenario = scenarios.parse(_changed(document, changes, where), where, folder)
            shown = {axis: _label(axis, value) for axis, value in axes.items()}
            yield {"scenario": name, "variant": variant.name, **shown}, where, scenario


def _document(path: Path, source: Source) -> tuple[Values, Path]:
    file = path.parent / source.file
    if not file.is_file():
        near = suggestion(file.name, [other.name for other in file.parent.glob("*.toml")])
        raise InputError(f"{path}: scenarios: there is no file {file}{near}")
    return scenarios.read(file), file.resolve().parent


def _words(axes: Values) -> list[str]:
    return [f"{axis} = {value}" for axis, value in axes.items()]


def _changed(document: Values, changes: Values, where: str) -> Values:
    changed = copy.deepcopy(document)
    for key, value in changes.items():
        if _is_epsilon(key):
            scenarios.switch_dp(changed, key.split(".")[1], math.inf if value in OFF else value)
        else:
            scenarios.put(changed, key, copy.deepcopy(value), where)
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
    full = runner.with_sector_defaults(scenario)
    same = json.dumps([full.data.model_dump(mode="json"), full.parties.sector, full.seed])
    try:
        if same not in read:
            read.clear()  # points with the same records come one after another
            read[same] = runner.read_records(full, data_dir)
        prepared = runner.check(scenario, data_dir, read[same])
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    names = [attack.name for attack in suite.attacks_of(prepared.scenario)]
    if not any(attack in names or "/" in attack for attack in headline):
        raise InputError(
            f"{where}: no attack of headline = {list(headline)} is run; it runs {', '.join(names)}"
        )
    return Cell(cells.key_of(prepared), prepared.scenario, folder, data_dir)


def distinct(points: Sequence[Point]) -> list[Cell]:
    """Return the points' cells, each once."""
    return list({point.cell.key: point.cell for point in points}.values())


# ------------------------------------------------------------------- running
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


def write(points: Sequence[Point], out: Path, failed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Write ``sweep.parquet`` and ``cells.parquet`` into ``out``; return the former.

    What depends on the machine's speed is in the latter alone, so that two sweeps' tables can be compared.
    """
    found = table(points)
    files.write_table(out / "sweep.parquet", found)
    files.write_table(out / "cells.parquet", _states(points, failed or {}))
    return found


def _states(points: Sequence[Point], failed: Mapping[str, str]) -> pd.DataFrame:
    rows = []
    for point in points:
        cell = point.cell
        state = "done" if cell.finished else "failed" if cell.key in failed else "not run"
        done = RunDirectory(cell.path).manifest.get("games", {})
        seconds = sum(game["seconds"] for game in done.values()) if done else math.nan
        rows.append({"cell": cell.key, **point.labels, "state": state, "reason": failed.get(cell.key, "")})
        rows[-1] |= {"seconds": seconds, "folder": str(cell.path)}
    return _uniform(pd.DataFrame(rows), list(points[0].labels))


# --------------------------------------------------------------------- table
def table(points: Sequence[Point]) -> pd.DataFrame:
    """Return what the finished points found, one row per point, kind, attack, party, game and metric.

    Columns: cell, scenario, variant, one per axis, and `FIXED`.
    kind: 'leakage' (see `attacks.evaluation`), 'source' (which party is a member of?), 'utility' (the final
    model on held-out records) or 'guarantee' (ε and δ; 'all': the largest of the parties').
    game: a number as text, or 'all': the mean over games with its 95 % interval; ε is the largest of them.
    """
    parts = []
    for point in points:
        if point.cell.finished:
            found = findings(RunDirectory(point.cell.path))
            for position, (name, value) in enumerate({"cell": point.cell.key, **point.labels}.items()):
                found.insert(position, name, value)
            parts.append(found)
    labels = list(points[0].labels)
    if not parts:
        return pd.DataFrame(columns=["cell", *labels, *FIXED])
    return _uniform(pd.concat(parts, ignore_index=True), labels)


def _uniform(found: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Make each label's column one type, which Parquet asks for: numbers where all are, else text."""
    for name in labels:
        kinds = {type(value) for value in found[name]}
        if len(kinds) > 1:
            numbers = kinds <= {int, float}
            found[name] = found[name].astype(float) if numbers else found[name].map(str)
    return found


def findings(run: RunDirectory) -> pd.DataFrame:
    """Return one finished run's rows, with the columns `FIXED`."""
    leakage = run.table("leakage").assign(kind="leakage")
    parts = [leakage, _utility(run), _guarantees(run)]
    if run.has("sources"):
        sources = run.table("sources").rename(columns={"n": "n_members"})
        parts.insert(1, sources.assign(kind="source", party="all", n_nonmembers=0))
    found = pd.concat(parts, ignore_index=True)[FIXED]
    return found.fillna({"attack": "", "note": ""}).astype({"n_members": int, "n_nonmembers": int})


def final_rounds(run: RunDirectory) -> pd.DataFrame:
    """Return the rows of ``rounds.parquet`` that are about the final models, by game and party."""
    rounds = run.table("rounds").sort_values("round", kind="stable")
    return rounds.groupby(["game", "party"], as_index=False).last()


def _utility(run: RunDirectory) -> pd.DataFrame:
    last = final_rounds(run)
    rows: list[Values] = []
    for party in ["all", *run.manifest["parties"]]:
        mine = last[last["party"] == party]
        for metric in UTILITY:
            common = {"kind": "utility", "party": party, "metric": metric, "n_members": 0}
            for game, value, n in zip(mine["game"], mine[metric], mine["n_heldout"], strict=True):
                rows.append({**common, "game": str(game), "value": value, "n_nonmembers": int(n)})
            value, low, high = mean_over_games(mine[metric].tolist(), math.inf if metric == "loss" else 1.0)
            interval = {"value": value, "low": low, "high": high}
            rows.append({**common, "game": "all", **interval, "n_nonmembers": int(mine["n_heldout"].sum())})
            if math.isnan(low):
                rows[-1]["note"] = "one game: no interval"
    return pd.DataFrame(rows)


def mean_over_games(values: Sequence[float], most: float = 1.0) -> tuple[float, float, float]:
    """Return the mean of values in [0, most] and Student's 95 % interval, NaN where no two are known."""
    from scipy.stats import t

    known = [value for value in values if math.isfinite(value)]
    mean = float(np.mean(known)) if known else math.nan
    if len(known) < 2:
        return mean, math.nan, math.nan
    reach = float(t.isf(0.025, len(known) - 1) * np.std(known, ddof=1)) / math.sqrt(len(known))
    return mean, max(0.0, mean - reach), min(most, mean + reach)


def _guarantees(run: RunDirectory) -> pd.DataFrame:
    last = final_rounds(run)
    spent = {str(party): float(rows["epsilon"].max()) for party, rows in last.groupby("party")}
    parties = list(run.manifest["parties"])
    private = {name: settings for name in parties if (settings := run.scenario.dp_of(name))}
    found = [(name, "epsilon", spent[name]) for name in parties]
    found += [(name, "delta", settings.delta) for name, settings in private.items()]
    found.append(("all", "epsilon", max(spent[name] for name in parties)))
    if len(private) == len(parties):
        found.append(("all", "delta", max(settings.delta for settings in private.values())))
    rows = pd.DataFrame(found, columns=["party", "metric", "value"])
    return rows.assign(kind="guarantee", game="all", n_members=0, n_nonmembers=0)


def compact(found: pd.DataFrame, headline: Sequence[str]) -> pd.DataFrame:
    """Return a row per point and headline attack, over all parties and games.

    Columns: the labels, epsilon, attack, and for accuracy, utility_auc, and each of `LEAKAGE` the value and,
    with '_low' and '_high' appended, its 95 % interval.
    """
    labels = list(found.columns[1 : found.columns.get_loc("kind")])
    overall = found[(found["party"] == "all") & (found["game"] == "all")]
    rows = []
    for values, mine in overall.groupby(labels, sort=False, dropna=False):
        row = dict(zip(labels, values, strict=True))
        row["epsilon"] = _figure(mine[mine["kind"] == "guarantee"], "epsilon")["epsilon"]
        utility = mine[mine["kind"] == "utility"]
        row |= _figure(utility, "accuracy") | _figure(utility, "auc", "utility_auc")
        for attack in headline:
            theirs = mine[(mine["kind"] == "leakage") & (mine["attack"] == attack)]
            if len(theirs):
                leakage = {name: x for metric in LEAKAGE for name, x in _figure(theirs, metric).items()}
                rows.append({**row, "attack": attack, **leakage})
    return pd.DataFrame(rows)


def _figure(rows: pd.DataFrame, metric: str, name: str = "") -> Values:
    """Return a metric's value, low and high, by column."""
    row = rows[rows["metric"] == metric].iloc[0]
    name = name or metric
    return {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
