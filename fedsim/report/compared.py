"""Several runs side by side: how their scenarios differ, and paired differences with intervals.

Everything is compared with the first run. Where both runs asked about the same candidates, of which the
same were members, the difference of leakage is paired (DeLong et al. 1988); else the two intervals are
combined as those of independent samples (MOVER, Zou & Donner 2008), which is wider, and said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import comparison, results
from fedsim.evaluation.comparison import Scored
from fedsim.evaluation.estimates import Estimate, speaks_of
from fedsim.report import cards
from fedsim.report.cards import Switch

PAIRED = "paired, the same candidates"
APART = "two independent samples"
OVER_GAMES = "paired over games"


def settings(runs: Sequence[RunDirectory]) -> pd.DataFrame:
    """Return the keys in which the scenarios differ: key, and a column of values per run."""
    flat = [_flat(run.scenario.model_dump(mode="json")) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [
        {"key": key, **{run.path.name: one.get(key, "") for run, one in zip(runs, flat, strict=True)}}
        for key in keys
        if key != "name" and len({repr(one.get(key, "")) for one in flat}) > 1
    ]
    return pd.DataFrame(rows, columns=["key", *(run.path.name for run in runs)])


def _flat(document: Any, key: str = "") -> dict[str, str]:
    if isinstance(document, dict) and document:
        parts = [_flat(value, f"{key}.{name}".lstrip(".")) for name, value in document.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {} if document is None or document == {} else {key: str(document)}


def summary(runs: Sequence[RunDirectory], prior: float = 0.1) -> pd.DataFrame:
    """Return a row per run: strongest attack, its AUC, accuracy, loss and ε, with intervals."""
    rows = []
    for run, row in zip(runs, _switches(runs, prior), strict=True):
        rows.append({
            "run": run.path.name, "DP-SGD": row.label, "attack": row.leak.attack, "auc": row.leak.value,
            "auc_low": row.leak.low, "auc_high": row.leak.high, "accuracy": row.accuracy.value,
            "accuracy_low": row.accuracy.low, "accuracy_high": row.accuracy.high, "loss": row.loss,
            "epsilon": math.inf if row.epsilon is None else row.epsilon,
            "intervals of": speaks_of(run.scenario.games),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _switches(runs: Sequence[RunDirectory], prior: float) -> list[Switch]:
    return [cards.switch(run, prior) for run in runs]


def differences(runs: Sequence[RunDirectory]) -> pd.DataFrame:
    """Return each further run minus the first: run, of, value, low, high, how, intervals of.

    of: 'AUC of the strongest attack', 'accuracy' or 'ε'; of the last there is no interval: it is computed
    """
    first, rows = runs[0], []
    one, *others = _switches(runs, 0.1)
    for run, other in zip(runs[1:], others, strict=True):
        name, federations = run.path.name, speaks_of(min(first.scenario.games, run.scenario.games))
        leak, how = _leakage(first, run, one, other)
        rows.append((name, "AUC of the strongest attack", leak.value, leak.low, leak.high, how, federations))
        accuracy, how = _accuracy(first, run, one, other)
        rows.append((name, "accuracy", accuracy.value, accuracy.low, accuracy.high, how, federations))
        if one.epsilon is not None and other.epsilon is not None:
            rows.append((name, "ε", other.epsilon - one.epsilon, math.nan, math.nan, "computed", ""))
    return pd.DataFrame(rows, columns=["run", "of", "value", "low", "high", "how", "intervals of"])


def _leakage(first: RunDirectory, other: RunDirectory, one: Switch, two: Switch) -> tuple[Estimate, str]:
    games = _paired([(other, two.leak.attack), (first, one.leak.attack)])
    if games:
        found = comparison.compare_auc(games)
        return Estimate(found.value, found.low, found.high), PAIRED
    leaks = (Estimate(leak.value, leak.low, leak.high) for leak in (two.leak, one.leak))
    return _apart(*leaks), APART


def _paired(pairs: Sequence[tuple[RunDirectory, str]]) -> list[Scored]:
    """Return the games with both runs' scores; none where they are about other records or other members."""
    tables = []
    for run, attack in pairs:
        rows = results.in_world(run, results.judged(run))
        rows = rows[(rows["observer"] == "participant") & (rows["attack"] == attack)]
        tables.append(rows.sort_values(["game", "candidate"]).reset_index(drop=True))
    keys = ["game", "candidate", "record", "party", "member"]
    data = [run.manifest.get("data_sha256") for run, _ in pairs]
    if data[0] != data[1] or not tables[0][keys].equals(tables[1][keys]):
        return []
    games = []
    for game, rows in tables[0].groupby("game"):
        second = tables[1][tables[1]["game"] == game]
        member = rows["member"].to_numpy(bool)
        if min(member.sum(), (~member).sum()) < 2:
            return []
        games.append(Scored(np.stack([rows["score"], second["score"]]).astype(float), member))
    return games


def _accuracy(first: RunDirectory, other: RunDirectory, one: Switch, two: Switch) -> tuple[Estimate, str]:
    """Return the difference of accuracy, over games where both runs played several."""
    by_game = [_by_game(run) for run in (other, first)]
    if len(by_game[0]) == len(by_game[1]) > 1:
        change = by_game[0] - by_game[1]
        reach = _student(len(change)) * float(change.std(ddof=1)) / math.sqrt(len(change))
        value = float(change.mean())
        return Estimate(value, value - reach, value + reach), OVER_GAMES
    return _apart(two.accuracy, one.accuracy), APART


def _by_game(run: RunDirectory) -> np.ndarray:
    last = run.final_rounds()
    return last[last["party"] == "all"].sort_values("game")["accuracy"].to_numpy(float)


def _student(games: int) -> float:
    from scipy.stats import t

    return float(t.isf(0.025, games - 1))


def _apart(first: Estimate, second: Estimate) -> Estimate:
    """Return first − second; the two intervals combined as of independent samples (MOVER)."""
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high)
