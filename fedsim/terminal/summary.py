"""A run in a few sentences: the verdict first, what it rests on, and how far an unfinished run has come."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd

from attacks import deviation
from attacks.shadows import budget
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import results
from fedsim.evaluation.comparison import of_attacks
from fedsim.evaluation.leakage import PRIORS, ppv_table
from fedsim.report import course, verdicts
from fedsim.report.verdicts import Leak, Verdict


def strongest(run: RunDirectory) -> dict[str, Leak]:
    """Return the participant's strongest attack on each party, and on 'all'."""
    table = run.table("strongest") if run.has("strongest") else results.strongest(run)
    return verdicts.leaks_in(table)


def verdict(run: RunDirectory, leaks: dict[str, Leak]) -> Verdict:
    """Return the answer to 'what could another participant learn?', with its condition."""
    record = run.manifest.get("record", "record")
    holding = verdicts.condition(run.scenario.adversary, leaks["all"], run.table("attacks"), record)
    beside = verdicts.other_worlds(verdicts.rungs_of(run.table("ladder")) if run.has("ladder") else [])
    return verdicts.headline(leaks["all"], {k: v for k, v in leaks.items() if k != "all"}, holding, beside)


def sentences(run: RunDirectory, leaks: dict[str, Leak]) -> list[str]:
    """Return what stands above the tables: the answer, the world, accusations, guarantee and utility."""
    adversary, record = run.manifest.get("adversary"), run.manifest.get("record", "record")
    leak = leaks["all"]
    lines = [f"What could {adversary} learn of who is in the data? {verdict(run, leaks).words}."]
    lines.append(
        f"Strongest of {leak.attacks} attacks: {leak.attack}, on {leak.n_members} members and "
        f"{leak.n_nonmembers} held-out {record}s; {world(run, leak.attack)}. Guessing is AUC .5."
    )
    return [*lines, accused(run, leak, record), guarantees(run)]


def accused(run: RunDirectory, leak: Leak, record: str, prior: float = PRIORS[0]) -> str:
    """Say how many of 100 accusations of the strongest attack are right, at its own threshold."""
    table = results.in_world(run, run.table("leakage"))
    keys = (table["party"] == "all") & (table["game"] == "all")
    rows = ppv_table(of_attacks(table[keys], [(leak.observer, leak.attack)]), [prior])
    row = rows[rows["at"] == "threshold"].to_dict("records")[0]
    said = verdicts.named_rightly({str(key): value for key, value in row.items()}, prior, record)
    return f"At its own threshold, {said}."


def guarantees(run: RunDirectory) -> str:
    """Say what DP-SGD guarantees, and what the final model is worth."""
    last = run.final_rounds()
    private = last[(last["party"] != "all") & last["epsilon"].map(math.isfinite)]
    parties = last[last["party"] != "all"]["party"].nunique()
    accuracy = last[last["party"] == "all"]["accuracy"].mean()
    model = f"the final model is right on {100 * accuracy:.0f} % of the held-out records"
    if private.empty:
        return f"DP-SGD is off at all {parties} parties: nobody has a guarantee; {model}."
    count, most = private["party"].nunique(), private["epsilon"].max()
    return f"DP-SGD is on at {count} of {parties} parties (ε up to {most:.3g}); {model}."


def assumptions(run: RunDirectory, attacks: list[str]) -> str:
    """Say what the adversary is and holds, and what these of its attacks assume, and no others."""
    settings, declared = run.scenario.adversary, run.table("attacks")
    rows = declared[(declared["observer"] == "participant") & declared["attack"].isin(attacks)]
    assumed = "; ".join(dict.fromkeys(text for text in rows["assumes"] if text))
    kind = "a participant that deviates" if settings.active else "an ordinary participant"
    text = (
        f"Adversary: {run.manifest.get('adversary')}, {kind}. {deviation.assumption(settings)}"
        "It sees every global model that it is sent, its own records and updates, and the public settings. "
        "It is assumed to hold the candidate records, not knowing who trained on them. "
    )
    if rows["shadows"].astype(bool).any():
        if any(not isinstance(dp, str) and dp.unit == "person" for dp in run.scenario.dp.values()):
            text += "It knows which of the records that it holds are one person's. "
        text += (
            f"Its budget: {budget.in_words(settings, budget.parameters(run.scenario.model, run.manifest))}. "
        )
    return text + (f"The attacks shown rest on: {assumed}." if assumed else "")


def ranked(leakage: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (observer, attack) by AUC over all parties and games, the largest first."""
    rows = leakage[(leakage["metric"] == "auc") & (leakage["party"] == "all") & (leakage["game"] == "all")]
    rows = rows.sort_values("value", ascending=False, kind="stable")
    return [(str(o), str(a)) for o, a in zip(rows["observer"], rows["attack"], strict=True)]


def document(run: RunDirectory) -> dict[str, Any]:
    """Return what `run_tables.show` shows as data: verdict, and the tables it is read from."""
    shown: dict[str, Any] = {
        "run": str(run.path),
        "scenario": run.scenario.name,
        "complete": bool(run.manifest.get("complete")),
        "adversary": run.manifest.get("adversary"),
    }
    if run.has("rounds"):
        shown["final"] = run.final_rounds()
    if not run.has("leakage"):
        return shown | {"verdict": None, "progress": course.progress(run)}
    leaks = strongest(run)
    judged = verdict(run, leaks)
    shown["verdict"] = {"level": judged.level, "words": judged.words}
    shown["world"] = world(run, leaks["all"].attack)
    shown["strongest"] = [{"party": party, **asdict(leak)} for party, leak in leaks.items()]
    leakage = run.table("leakage")
    shown["leakage"] = leakage[leakage["game"] == "all"]
    return shown | {name: run.table(name) for name in ("ladder", "sources", "not_run") if run.has(name)}


def world(run: RunDirectory, attack: str) -> str:
    """Name the world that an attack's figures hold in, and the key that sets it."""
    declared, settings = run.table("attacks"), run.scenario.adversary
    rows = declared[(declared["observer"] == "participant") & (declared["attack"] == attack)]
    if not verdicts.simulates(rows):
        return "it needs no records beside its own, so that it is the same in closed and open world"
    return f"{verdicts.world_of(settings)} (adversary.worlds: '{settings.ladder[0]}')"
