"""What to audit, and what an audit found."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.protection import DPSettings
from fedsim.runs import prepare

Vantage = Literal["white-box", "participant"]
Method = Literal["one-run", "many-run"]
VANTAGES: tuple[Vantage, ...] = ("white-box", "participant")


CANARIES: Mapping[Vantage, int] = {"white-box": 4000, "participant": 400}
RUNS: Mapping[Vantage, int] = {"white-box": 400, "participant": 100}
"""Defaults, of one-run and of many-run."""

RECORDS = 4
"""Of a canary that is a person: enough that clipping, or drawing, them one by one would show."""


@dataclass(frozen=True)
class AuditSettings:
    """What to audit, and how much of it.

    party: whose DP
    canaries: m ≥ 10, of the one-run method; spread over several runs if need be, since a record of one run is
        under the same guarantee in all of them together
    guesses: r, how many canaries are guessed on; default: the number that would give the largest bound if the
        noise were exactly the plan's, found before the run by simulation
    runs: an even number ≥ 10, of the many-run method, half of them with the canary
    confidence: probability that the lower bound lies below the true ε
    delta: δ of both bounds; default: that of the party's DP
    worst_case: of a participant's many runs, with initial weights and a canary that `worst_case.craft`s
    records: of each canary, more than one only where the unit of the party's DP is a person
    """

    party: str = ""
    vantage: Vantage = "white-box"
    method: Method = "one-run"
    canaries: int = CANARIES["white-box"]
    guesses: int | None = None
    runs: int = RUNS["white-box"]
    confidence: float = 0.95
    delta: float | None = None
    seed: int = 0
    worst_case: bool = False
    records: int = 1

    def __post_init__(self) -> None:
        if self.canaries < 10:
            raise InputError(f"--canaries {self.canaries}: an audit needs at least 10")
        if self.runs < 10 or self.runs % 2:
            raise InputError(f"--runs {self.runs}: an audit needs an even number of runs, at least 10")
        if not 0 < self.confidence < 1:
            raise InputError(f"--confidence {self.confidence:g}: it must lie between 0 and 1, such as 0.95")
        if self.guesses is not None and not 1 <= self.guesses <= self.canaries:
            raise InputError(f"guesses = {self.guesses}: it must lie between 1 and {self.canaries} canaries")
        if self.worst_case and (self.vantage, self.method) != ("participant", "many-run"):
            raise InputError(
                "--worst-case: one canary is crafted, for a participant and a run for each guess; add "
                "--vantage participant --method many-run (the white box's gradients are the worst as it is)"
            )

    @property
    def error(self) -> float:
        """Probability of a bound above the true ε."""
        return 1 - self.confidence


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    lower: statistic → lower bound on ε, at ``confidence``
    ceiling: statistic → the largest bound that this audit could have found, every guess being right
    upper: the accountant's ε, infinite without DP
    guesses, correct: how many guesses were made, and how many of them were right
    canaries: how many were tossed coins for (one-run), or how many runs there were (many-run)
    estimate: statistic → what would be a lower bound, were the canaries of one run independent of each other;
        empty where that is not known to be nearly so; none lies below the bound that is proved
    worst_case: whether initial weights and canary were crafted
    records: of each canary, a person where it has several
    """

    party: str
    vantage: Vantage
    method: Method
    lower: dict[str, float]
    ceiling: dict[str, float]
    upper: float
    guesses: int
    correct: int
    canaries: int
    confidence: float
    delta: float
    estimate: dict[str, float] = dataclasses.field(default_factory=dict)
    worst_case: bool = False
    records: int = 1

    @property
    def violated(self) -> bool:
        """Whether a lower bound lies above the upper one."""
        return max(self.lower.values()) > self.upper

    @property
    def saturated(self) -> bool:
        """Whether every guess was right: the bound is then what the audit's size allows, not what ε is."""
        return self.correct == self.guesses


@dataclass(frozen=True)
class Outcome:
    """What one statistical test found; fields as in `Audit`."""

    lower: dict[str, float]
    ceiling: dict[str, float]
    guesses: int
    correct: int
    canaries: int
    estimate: dict[str, float] = dataclasses.field(default_factory=dict)


def settings_for(
    prepared: prepare.Prepared,
    *,
    party: str | None = None,
    vantage: Vantage = "white-box",
    method: Method | None = None,
    canaries: int | None = None,
    runs: int | None = None,
    confidence: float = 0.95,
    worst_case: bool = False,
    records: int | None = None,
) -> AuditSettings:
    """Return the settings of an audit of a checked scenario, what is None filled in.

    party: by default the first one with DP, else the first one that is not the adversary
    method: by default one run, of the worst case many
    records: of each canary; by default 1, or `RECORDS` where the unit is a person and no bound is lower

    Raises:
        InputError: there is no such party, or it is the adversary itself and the auditor a participant; or a
            canary would have more records than the party's DP lets one unit have.
    """
    scenario, adversary = prepared.scenario, prepared.adversary
    others = [name for name in prepared.rows if name != adversary]
    if party is None:
        party = next((name for name in others if scenario.dp_of(name)), others[0])
    if party not in prepared.rows:
        raise InputError(f"--party {party}: no such party{suggestion(party, prepared.rows)}")
    if vantage == "participant" and party == adversary:
        raise InputError(f"--party {party}: that is the participant who audits; choose one of {others}")
    return AuditSettings(
        party=party,
        vantage=vantage,
        method=method or ("many-run" if worst_case else "one-run"),
        canaries=CANARIES[vantage] if canaries is None else canaries,
        runs=RUNS[vantage] if runs is None else runs,
        confidence=confidence,
        seed=scenario.seed,
        worst_case=worst_case,
        records=_records_of_canary(scenario.dp_of(party), party, records),
    )


def _records_of_canary(dp: DPSettings | None, party: str, asked: int | None) -> int:
    by_person = dp is not None and dp.unit == "person"
    most = (dp.records_per_person or math.inf) if dp is not None and by_person else 1
    if asked is not None and not 1 <= asked <= most:
        why = f"records_per_person = {most}" if by_person else "unit = 'record', of which a canary is one"
        raise InputError(f"--records {asked}: dp.{party} has {why}; take 1{f' to {most}' * (most > 1)}")
    return int(min(RECORDS, most)) if asked is None else asked


@contextlib.contextmanager
def folder(parent: Path | None, settings: AuditSettings) -> Iterator[Path]:
    """Yield the folder for an audit's run: in ``parent``, or where that is None one that is removed again."""
    if parent is not None:
        yield parent / f"{settings.party}-{settings.vantage}"
        return
    with tempfile.TemporaryDirectory(prefix="fedsim-audit-") as temporary:
        yield Path(temporary)
