"""The gate: does a run show what its policy asks? Every figure is the end of an interval that speaks
against it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from fedsim.core import files
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.policy import PolicySettings
from fedsim.evaluation import guarantees, results
from fedsim.report import cards, verdicts

FILE = "policy.json"

MEANINGS = {
    "max_auc": "upper end of the strongest attack's AUC",
    "max_tpr": "upper end of the largest TPR at 1 % FPR",
    "max_epsilon": "ε spent by the accountant, the largest of the victims'",
    "max_shown_epsilon": "lower bound on ε that an attack's own rates prove",
    "min_accuracy": "lower end of the final model's held-out accuracy",
}


@dataclass(frozen=True)
class Check:
    """One threshold: what was shown of it, and whether it passes; figure: None where it cannot be told."""

    name: str
    meaning: str
    threshold: float
    figure: float | None
    passes: bool
    why: str
    source: str


def judge(run: RunDirectory, policy: PolicySettings) -> list[Check]:
    """Return a check for each threshold that is set.

    Raises:
        InputError: a table of the run is missing or corrupt.
    """
    checks = []
    for name, threshold in policy.thresholds().items():
        figure, why = _FIGURES[name](run)
        at_most = name.startswith("max_")
        passes = math.isfinite(figure) and (figure <= threshold if at_most else figure >= threshold)
        shown = figure if math.isfinite(figure) else None
        checks.append(Check(name, MEANINGS[name], threshold, shown, passes, why, policy.source(name)))
    return checks


def write(run: RunDirectory, checks: list[Check]) -> dict[str, Any]:
    """Write ``policy.json`` into the run's folder; return what it says."""
    document = {"run": run.path.name, "passes": all(check.passes for check in checks),
                "checks": [asdict(check) for check in checks]}  # fmt: skip
    files.write_json(run.path / FILE, document)
    return document


def _overall(run: RunDirectory) -> pd.DataFrame:
    """Return the participant's rows over all parties and games, in the world of the headline."""
    rows = results.in_world(run, run.table("leakage"))
    return rows[(rows["observer"] == "participant") & (rows["party"] == "all") & (rows["game"] == "all")]


def _auc(run: RunDirectory) -> tuple[float, str]:
    table = run.table("strongest") if run.has("strongest") else results.strongest(run)
    leak = verdicts.leaks_in(table)["all"]
    return leak.high, f"{leak.attack}: {leak.value:.3f}, {leak.low:.3f} to {leak.high:.3f}"


def _tpr(run: RunDirectory) -> tuple[float, str]:
    rows = _overall(run)
    rows = rows[rows["metric"] == "tpr_at_fpr_0.01"]
    known = rows[rows["value"].notna()]
    if known.empty:
        return math.nan, f"{int(rows['n_nonmembers'].max())} held-out records cannot resolve 1 % FPR"
    worst = known.sort_values("high", kind="stable").iloc[-1]
    return float(worst["high"]), f"{worst['attack']}: {worst['value']:.3f}, up to {worst['high']:.3f}"


def _epsilon(run: RunDirectory) -> tuple[float, str]:
    adversary, last = run.manifest.get("adversary"), run.final_rounds()
    victims = last[~last["party"].isin(["all", str(adversary)])]
    off = victims[~victims["epsilon"].map(math.isfinite)]["party"]
    if len(off):
        return math.inf, f"DP-SGD is off at {', '.join(dict.fromkeys(map(str, off)))}"
    worst = victims.sort_values("epsilon", kind="stable").iloc[-1]
    return float(worst["epsilon"]), str(worst["party"])


def _shown(run: RunDirectory) -> tuple[float, str]:
    deltas = [settings.delta for name in run.manifest["parties"] if (settings := run.scenario.dp_of(name))]
    delta, most = max(deltas, default=1e-5), (0.0, "no attack's rates prove any")
    rows = _overall(run)
    for attack, of_attack in rows.groupby("attack", sort=False):
        metrics = of_attack.drop_duplicates("metric").set_index("metric")
        tpr, fpr = float(metrics["low"]["tpr_at_threshold"]), float(metrics["high"]["fpr"])
        if math.isfinite(tpr) and math.isfinite(fpr):
            needed = guarantees.epsilon_needed(tpr, fpr, delta)
            most = max(most, (needed, f"{attack}, at its own threshold, δ = {delta:g}"))
    return most


def _accuracy(run: RunDirectory) -> tuple[float, str]:
    value = cards.accuracy(run.final_rounds())
    return value.low, f"{value.value:.3f}, {value.low:.3f} to {value.high:.3f}"


_FIGURES = {
    "max_auc": _auc,
    "max_tpr": _tpr,
    "max_epsilon": _epsilon,
    "max_shown_epsilon": _shown,
    "min_accuracy": _accuracy,
}
