"""The one tidy table of what a sweep's runs found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from attacks.shadows import budget
from fedsim.core import files
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import attack_key
from fedsim.sweeps.file import FIXED, Values
from fedsim.sweeps.points import Point

UTILITY = ("accuracy", "auc", "loss", "brier")

BUDGET = ("shadows", "early_shadows")

LEAKAGE = ("auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")
"""Metrics of leakage that `compact` keeps."""


def write(points: Sequence[Point], out: Path, failed: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Write ``sweep.parquet`` and ``cells.parquet`` into ``out``; return the former.

    What depends on the machine's speed is in the latter alone, so that two sweeps' tables can be compared.
    """
    rows = table(points)
    files.write_table(out / "sweep.parquet", rows)
    files.write_table(out / "cells.parquet", _states(points, failed or {}))
    return rows


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


def table(points: Sequence[Point]) -> pd.DataFrame:
    """Return what the finished points found, a row per point, kind, observer, attack, world, party, game,
    metric.

    Columns: cell, scenario, variant, one per axis, and `FIXED`.
    kind: 'leakage' (see `fedsim.evaluation`), 'source' (which party is a member of?), 'utility' (the final
    model on held-out records), 'guarantee' (ε and δ; 'all': the largest of the parties'), 'budget' (shadows
    of all rounds and of the first two) or 'not run' (an attack that could not be; the note says why).
    game: a number as text, or 'all': the mean over games with its 95 % interval; ε is the largest of them.
    """
    parts = []
    for point in points:
        if point.cell.finished:
            rows = findings(RunDirectory(point.cell.path))
            for position, (name, value) in enumerate({"cell": point.cell.key, **point.labels}.items()):
                rows.insert(position, name, value)
            parts.append(rows)
    labels = list(points[0].labels)
    if not parts:
        return pd.DataFrame(columns=["cell", *labels, *FIXED])
    return _uniform(pd.concat(parts, ignore_index=True), labels)


def _uniform(rows: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Make each label's column one type, which Parquet asks for: numbers where all are, else text."""
    for name in labels:
        kinds = {type(value) for value in rows[name]}
        if len(kinds) > 1:
            numbers = kinds <= {int, float}
            rows[name] = rows[name].astype(float) if numbers else rows[name].map(str)
    return rows


def findings(run: RunDirectory) -> pd.DataFrame:
    """Return one finished run's rows, with the columns `FIXED`."""
    leakage = run.table("leakage").assign(kind="leakage")
    parts = [leakage, _utility(run), _guarantees(run), _budget(run), _not_run(run)]
    if run.has("sources"):
        sources = run.table("sources").rename(columns={"n": "n_members"})
        parts.insert(1, sources.assign(kind="source", party="all", n_nonmembers=0))
    rows = pd.concat(parts, ignore_index=True)[FIXED]
    return rows.fillna({"observer": "", "attack": "", "world": "", "note": ""}).astype(
        {"n_members": int, "n_nonmembers": int}
    )


def _utility(run: RunDirectory) -> pd.DataFrame:
    last = run.final_rounds()
    rows: list[Values] = []
    for party in ["all", *run.manifest["parties"]]:
        of_party = last[last["party"] == party]
        for metric in [metric for metric in UTILITY if metric in last]:  # an earlier run has no brier
            common = {"kind": "utility", "party": party, "metric": metric, "n_members": 0}
            for game, value, n in zip(of_party["game"], of_party[metric], of_party["n_heldout"], strict=True):
                rows.append({**common, "game": str(game), "value": value, "n_nonmembers": int(n)})
            value, low, high = mean_over_games(
                of_party[metric].tolist(), {"loss": math.inf, "brier": 2.0}.get(metric, 1.0)
            )
            interval = {"value": value, "low": low, "high": high}
            rows.append(
                {**common, "game": "all", **interval, "n_nonmembers": int(of_party["n_heldout"].sum())}
            )
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
    last = run.final_rounds()
    spent = {str(party): float(rows["epsilon"].max()) for party, rows in last.groupby("party")}
    parties = list(run.manifest["parties"])
    private = {name: settings for name in parties if (settings := run.scenario.dp_of(name))}
    figures = [(name, "epsilon", spent[name]) for name in parties]
    figures += [(name, "delta", settings.delta) for name, settings in private.items()]
    figures.append(("all", "epsilon", max(spent[name] for name in parties)))
    if len(private) == len(parties):
        figures.append(("all", "delta", max(settings.delta for settings in private.values())))
    rows = pd.DataFrame(figures, columns=["party", "metric", "value"])
    return rows.assign(kind="guarantee", game="all", n_members=0, n_nonmembers=0)


def _budget(run: RunDirectory) -> pd.DataFrame:
    """Return how many shadows the adversary could simulate, of all rounds and of the first two."""
    settings = run.scenario.adversary
    early = budget.early(settings, budget.parameters(run.scenario.model, run.manifest) or 1)
    rows = pd.DataFrame(
        {"metric": ["shadows", "early_shadows"], "value": [float(settings.shadows), float(early)]}
    )
    return rows.assign(kind="budget", party="all", game="all", n_members=0, n_nonmembers=0)


def _not_run(run: RunDirectory) -> pd.DataFrame:
    if not run.has("not_run"):
        return pd.DataFrame()
    rows = run.table("not_run").rename(columns={"reason": "note"}).astype({"game": str})
    return rows.assign(kind="not run", party="all", n_members=0, n_nonmembers=0)


def left_out(sweep: pd.DataFrame) -> list[str]:
    """Return a sentence for each attack and reason for which it was not run at some points."""
    labels = list(sweep.columns[1 : sweep.columns.get_loc("kind")])
    points = len(sweep[labels].drop_duplicates())
    sentences = []
    missing = sweep[sweep["kind"] == "not run"]
    for (observer, attack, reason), rows in missing.groupby(["observer", "attack", "note"], sort=False):
        name = attack if observer == "participant" else f"{observer}:{attack}"
        number = len(rows[labels].drop_duplicates())
        sentences.append(f"'{name}' was not run at {number} of {points} points: {reason}")
    return sentences


def compact(sweep: pd.DataFrame, headline: Sequence[str]) -> pd.DataFrame:
    """Return a row per point, world and headline attack, over all parties and games.

    headline: names as a person writes them ('lira', 'server:fedmia').
    Columns: the labels, epsilon, shadows, early_shadows, world, observer, attack, and for accuracy,
    utility_auc, and each of `LEAKAGE` the value and, with '_low' and '_high' appended, its 95 % interval.
    """
    labels = list(sweep.columns[1 : sweep.columns.get_loc("kind")])
    overall = sweep[(sweep["party"] == "all") & (sweep["game"] == "all")]
    rows = []
    for values, point in overall.groupby(labels, sort=False, dropna=False):
        row = dict(zip(labels, values, strict=True))
        row["epsilon"] = _figure(point[point["kind"] == "guarantee"], "epsilon")["epsilon"]
        row |= {metric: _figure(point[point["kind"] == "budget"], metric)[metric] for metric in BUDGET}
        utility = point[point["kind"] == "utility"]
        row |= _figure(utility, "accuracy") | _figure(utility, "auc", "utility_auc")
        for observer, attack in map(attack_key, headline):
            named = (point["observer"] == observer) & (point["attack"] == attack)
            for world, of_attack in point[(point["kind"] == "leakage") & named].groupby("world", sort=False):
                leakage = {name: x for metric in LEAKAGE for name, x in _figure(of_attack, metric).items()}
                rows.append({**row, "world": world, "observer": observer, "attack": attack, **leakage})
    return pd.DataFrame(rows)


def _figure(rows: pd.DataFrame, metric: str, name: str = "") -> Values:
    """Return a metric's value, low and high, by column."""
    row = rows[rows["metric"] == metric].iloc[0]
    name = name or metric
    return {name: row["value"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
