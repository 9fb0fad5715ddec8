"""The first screen's data: what each adversary finds by what it owns, and what DP-SGD buys and costs.

Every figure is one of a row of a run's tables, or follows from such rows; a test traces each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import guarantees, results
from fedsim.evaluation.comparison import of_attacks
from fedsim.evaluation.estimates import Estimate, clopper_pearson
from fedsim.evaluation.leakage import ppv_table
from fedsim.report import verdicts
from fedsim.report.findings import PARTICIPANT, Findings, entries
from fedsim.report.verdicts import Leak, Verdict

OWNS = {
    "all": "every record that may be a member",
    "half": "half of the records that may be members; the others are unknown to it",
    "few": "a few of the records that may be members",
    "none": "other records of the same parties, none that may be a member",
    "own": "no records but its own",
}
"""What an adversary holds beside the record that it asks about, by the name of its world."""

_BY_AUXILIARY = {"population": "all", "disjoint": "none", "own": "own"}


@dataclass(frozen=True)
class Rung:
    """What an adversary finds that owns this much; named: what its accusations are worth, in words."""

    world: str
    owns: str
    leak: Leak
    verdict: Verdict
    named: str


@dataclass(frozen=True)
class Switch:
    """One setting of DP-SGD: what was found, promised, and what the final model is worth.

    epsilon, delta: the largest of the parties', None where DP-SGD is off; bound: the AUC that they allow
    accuracy: over all held-out records, with its interval; loss: mean of the held-out records
    """

    label: str
    run: str
    epsilon: float | None
    delta: float | None
    bound: float | None
    leak: Leak
    verdict: Verdict
    named: str
    accuracy: Estimate
    loss: float
    shadows: int


def ladder(findings: Findings, prior: float, record: str) -> list[Rung]:
    """Return a rung for each world that the run compares, the one with the most owned first."""
    run, leaks = findings.run, {}
    if findings.overall is None:
        return []
    if run.has("ladder"):
        for row in run.table("ladder").to_dict("records"):
            leak = Leak(PARTICIPANT, *(row[name] for name in _LEAK))
            leaks[str(row["world"])] = leak
    else:
        leaks[_BY_AUXILIARY[run.scenario.adversary.auxiliary]] = findings.overall
    rungs = []
    for world, leak in leaks.items():
        leakage = run.table("leakage")  # of every world; the findings are of the headline's alone
        rows = leakage[leakage["world"] == world] if "world" in leakage else leakage
        named = verdicts.named_rightly(accused(rows, leak, prior), prior, record)
        owns = OWNS[world] if _simulates(findings, leak) else "nothing of the other parties"
        rungs.append(Rung(world, owns, leak, verdicts.verdict(leak), named))
    return rungs


def _simulates(findings: Findings, leak: Leak) -> bool:
    """Tell whether an attack uses records that the adversary owns: shadows, or simulated rounds."""
    suite = findings.suite
    rows = suite[(suite["observer"] == leak.observer) & (suite["attack"] == leak.attack)]
    return bool(rows["shadows"].astype(bool).any()) or findings.run.has("ladder")


_LEAK = ("attack", "attacks", "value", "low", "high", "n_members", "n_nonmembers")


def accused(leakage: pd.DataFrame, leak: Leak, prior: float) -> dict[str, Any] | None:
    """Return how often an accusation is right at the attack's own threshold, a row of `ppv_table`."""
    rows = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")]
    rows = of_attacks(rows, [(leak.observer, leak.attack)])
    if rows.empty:
        return None
    table = ppv_table(rows, [prior])
    return entries(table[table["at"] == "threshold"])[0]


def switches(run: RunDirectory, twins: Sequence[RunDirectory], prior: float) -> list[Switch]:
    """Return this run and those of the same scenario under other DP-SGD, the least private first."""
    rows = [switch(one, prior) for one in (run, *twins) if one.has("leakage")]
    return sorted(rows, key=lambda row: -math.inf if row.epsilon is None else -row.epsilon)


def switch(run: RunDirectory, prior: float) -> Switch:
    """Return what one run found, promised and is worth."""
    table = run.table("strongest") if run.has("strongest") else results.strongest(run)
    leak, leakage = verdicts.leaks_in(table)["all"], results.in_world(run, run.table("leakage"))
    last = run.final_rounds()
    parties = [name for name in run.manifest["parties"] if name != run.manifest.get("adversary")]
    private = {name: settings for name in parties if (settings := run.scenario.dp_of(name)) is not None}
    epsilon = delta = bound = None
    if private:
        spent = last[last["party"].isin(list(private))]["epsilon"]
        epsilon, delta = float(spent.max()), max(settings.delta for settings in private.values())
        bound = guarantees.auc_bound(epsilon, delta) if len(private) == len(parties) else None
    record = str(run.manifest.get("record", "record"))
    return Switch(
        _label(epsilon, len(private), len(parties)), run.path.name, epsilon, delta, bound, leak,
        verdicts.verdict(leak), verdicts.named_rightly(accused(leakage, leak, prior), prior, record),
        accuracy(last), float(last[last["party"] == "all"]["loss"].mean()), run.scenario.adversary.shadows,
    )  # fmt: skip


def _label(epsilon: float | None, private: int, parties: int) -> str:
    if epsilon is None:
        return "off"
    return f"ε = {epsilon:.3g}" + ("" if private == parties else f" at {private} of {parties} victims")


def accuracy(last: pd.DataFrame) -> Estimate:
    """Return the final models' accuracy on all held-out records, mean over games, Clopper–Pearson's interval.

    The records of all games are counted once: games share records, so that more of them tell little more.
    """
    overall = last[last["party"] == "all"]
    value, n = float(overall["accuracy"].mean()), int(overall["n_heldout"].min())
    return Estimate(value, *clopper_pearson(value * n, n))


def reconciled(rows: Sequence[Switch]) -> str:
    """Say in one sentence how a guarantee that rules out little and a leak that is gone can both be true."""
    private = [row for row in rows if row.epsilon is not None]
    if not private:
        return ""
    first = private[0]
    promise = (
        "by itself rules out hardly any attack"
        if first.bound is None or first.bound >= 0.9995
        else f"allows no attack an AUC above {first.bound:.3f} on average"
    )
    return (
        f"Both are true: {first.label} {promise}, since a guarantee speaks of every attack that there could "
        "ever be, on the most exposed record, by someone who knows all the others; and the attacks here, on "
        f"these records, found an AUC of {first.leak.value:.2f} ({first.leak.low:.2f} to "
        f"{first.leak.high:.2f}). The guarantee will hold tomorrow; the measurement is of these attacks."
    )


def surest(run: RunDirectory, leak: Leak, most: int = 10) -> list[dict[str, Any]]:
    """Return the records that an attack calls members most surely: party, record, rank in (0, 1], member."""
    scores = results.in_world(run, results.judged(run))
    rows = of_attacks(scores, [(leak.observer, leak.attack)])
    rows = rows[rows["game"] == rows["game"].min()]
    top = rows.assign(rank=1 + len(rows) - rows["score"].rank(method="max")).nsmallest(most, "rank")
    return entries(top[["party", "record", "rank", "member"]])
