"""Verdicts: the answer to 'what could this participant learn?' in one sentence, its condition inside.

A verdict goes by the interval first: where it includes guessing nothing is said to leak, and where the
records are too few to tell a severe leak from none, that is what is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedsim.core.scenario.adversary import WHERE, AdversarySettings

SLIGHT, CLEAR = 0.6, 0.75
"""AUCs from which a leak is called clear, and severe."""


@dataclass(frozen=True)
class Leak:
    """An observer's strongest attack on some candidates, with an interval that allows for the choice.

    value, low, high: of its AUC; attacks: how many it was chosen from
    """

    observer: str
    attack: str
    attacks: int
    value: float
    low: float
    high: float
    n_members: int
    n_nonmembers: int


@dataclass(frozen=True)
class Verdict:
    """A judgement of one AUC; level: 'ok', 'warn' or 'bad' (its colour), never without the words."""

    level: str
    words: str
    detail: str = ""


def leaks_in(table: pd.DataFrame, observer: str = "participant") -> dict[str, Leak]:
    """Return party → its leak, 'all' for all parties, from the table ``strongest`` of a run."""
    rows = table[table["observer"] == observer]
    names = ["observer", "attack", "attacks", "value", "low", "high", "n_members", "n_nonmembers"]
    return {
        str(party): Leak(*values)
        for party, *values in rows[["party", *names]].itertuples(index=False)
    }  # fmt: skip


def verdict(leak: Leak | None) -> Verdict:
    """Judge by the interval first: only one that lies wholly above .5 shows a leak.

    Its size goes by the value: 'slight' below .6, 'clear' below .75, 'severe' from there on. An interval that
    holds both .5 and .75 tells nothing.
    """
    if leak is None or math.isnan(leak.value):
        return Verdict("ok", "not measured")
    if leak.low <= 0.5:
        if leak.high >= CLEAR:
            span = f"the interval goes from {leak.low:.2f} to {leak.high:.2f}"
            return Verdict("ok", "too few records to tell", span)
        return Verdict("ok", "no leak shown", f"an AUC up to {leak.high:.2f} is not ruled out")
    size = "slight" if leak.value < SLIGHT else "clear" if leak.value < CLEAR else "severe"
    return Verdict("warn" if size == "slight" else "bad", f"{size} leak")


def condition(adversary: AdversarySettings, leak: Leak, suite: pd.DataFrame, record: str) -> str:
    """Say what the strongest attack's owner must hold for the verdict to be about it: 'if it already …'.

    suite: what was declared of the attacks (``attacks.parquet``); record: what one is called
    """
    declared = suite[(suite["observer"] == leak.observer) & (suite["attack"] == leak.attack)]
    if not simulates(declared):
        return f"if it holds the full record of the {record} it asks about"
    return CONDITIONS[adversary.ladder[0]].format(records=f"{record}s")


def simulates(declared: pd.DataFrame) -> bool:
    """Tell whether attacks simulate federations or rounds, on records that their owner must have."""
    return bool(declared[["shadows", "simulates"]].astype(bool).to_numpy().any())


CONDITIONS: dict[str, str] = {
    "all": "if it already holds the full records of all the {records} it asks about",
    "half": "if it already holds the full records of half of the parties' {records}",
    "few": "if it already holds the full records of one in ten of the parties' {records}",
    "none": "though of the other parties it holds only {records}' records that trained nothing",
    "own": "though it holds no records but its own and the one it asks about",
}
"""What an adversary must hold in a world, as a condition of the verdict."""


@dataclass(frozen=True)
class Rung:
    """What the participant finds in one world (`core.scenario.adversary.OWNS`).

    leak: its strongest attack there; tpr: of this at 1 % FPR, as a row of the leakage table
    """

    world: str
    leak: Leak
    tpr: Mapping[str, Any]


def rungs_of(ladder: pd.DataFrame) -> list[Rung]:
    """Return the worlds of the table ``ladder`` of a run, the headline's first."""
    rungs = []
    for row in ladder.to_dict("records"):
        best = {name: row[name] for name in ("attack", "attacks", "value", "low", "high")}
        leak = Leak("participant", **best, n_members=row["n_members"], n_nonmembers=row["n_nonmembers"])
        tpr = {"value": row["tpr"], "low": row["tpr_low"], "high": row["tpr_high"], "note": row["note"]}
        rungs.append(Rung(str(row["world"]), leak, tpr))
    return rungs


def other_worlds(rungs: Sequence[Rung]) -> str:
    """Say what is found in the worlds after the headline's: '; where half of the members are …: …'."""
    found = [(WHERE[rung.world], rung.leak, verdict(rung.leak)) for rung in rungs[1:]]
    return "".join(
        f"; {where}: {'a ' * (judged.level != 'ok')}{judged.words} ({interval(leak)})"
        for where, leak, judged in found
    )


def world_of(adversary: AdversarySettings) -> str:
    """Name the headline's world: closed where the adversary owns every record that may be a member."""
    return "closed world" if adversary.ladder[0] == "all" else "open world"


def headline(
    overall: Leak | None, parties: Mapping[str, Leak], holding: str = "", beside: str = ""
) -> Verdict:
    """Answer the first question in one line: over all parties together, else wherever a leak shows.

    parties: each victim's own; holding: the condition, see `condition`; beside: see `other_worlds`
    """
    if overall is None:
        return Verdict("ok", "Not measured yet: this run has no attack results")
    whole, held = verdict(overall), f", {holding}" if holding else ""
    judged = {name: verdict(leak) for name, leak in parties.items()}
    exposed = {name: judgement for name, judgement in judged.items() if judgement.level != "ok"}
    if whole.level != "ok":
        alone = "" if exposed else "; each party by itself has too few records to show it"
        return Verdict(
            whole.level, f"Yes{held}: a {whole.words} over all parties ({interval(overall)}){alone}{beside}"
        )
    if exposed:
        places = listed([f"{name} ({judgement.words})" for name, judgement in exposed.items()])
        level = "bad" if any(judgement.level == "bad" for judgement in exposed.values()) else "warn"
        words = f"At some parties{held}: {places}; over all parties together, no leak is shown{beside}"
        return Verdict(level, words)
    if whole.words == "too few records to tell":
        return Verdict("ok", f"Too few records to tell: {interval(overall)} holds both{beside}")
    return Verdict(
        "ok",
        f"No leak shown at any party, which does not prove that there is none ({whole.detail}){beside}",
    )


def interval(leak: Leak) -> str:
    """Say an AUC with its interval."""
    return f"AUC {leak.value:.2f}, 95 % interval {leak.low:.2f} to {leak.high:.2f}"


def named_rightly(row: Mapping[str, Any] | None, prior: float, record: str) -> str:
    """Say what an accusation is worth: 'of 100 patients it names, 76 are rightly named (57 to 88)'.

    row: of `evaluation.leakage.ppv_table`; prior: the share of members among those asked about. Where the
    interval holds the prior, accusing says nothing, and no count is given.
    """
    asked = f"where 1 in {1 / prior:.0f} of those it asks about is a member"
    if row is None or not math.isfinite(row["value"]):
        return f"it names nobody it could be right about, {asked}"
    if row["low"] <= prior:
        return f"naming {record}s is not shown to be better than naming them at random, {asked}"
    count, low, high = (round(100 * row[end]) for end in ("value", "low", "high"))
    return (
        f"of 100 {record}s it names, {count} are rightly named ({low} to {high}; at random "
        f"{100 * prior:.3g}), {asked}"
    )


def listed(names: list[str], most: int = 6) -> str:
    """Join names by commas, the seventh and later ones counted."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
