"""Running a participant's attacks on a view that no run stands behind."""

from __future__ import annotations

from collections.abc import Sequence

from attacks import execution, registry
from attacks.declaration import Attack
from attacks.execution import Finding, Task
from attacks.shadows.suite import Laboratory
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records
from fedsim.core.scenario.adversary import Observer
from fedsim.core.scenario.settings import FederationSettings


def attacks_of(observer: Observer, infers: str = "membership") -> dict[str, Attack]:
    """An observer's built-in attacks by name."""
    attacks = registry.built_in()
    return {a.name: a for a in attacks if observer in a.observers and a.infers == infers}


PARTICIPANTS = attacks_of("participant")

VIEW_ATTACKS = [
    name
    for name, attack in PARTICIPANTS.items()
    if attack.kind == "view" and attack.reads != "text" and not (attack.active or attack.simulates)
]
"""Those that simulate nothing and need no active adversary."""


def findings(
    view: ParticipantView,
    candidates: Records,
    names: Sequence[str | Attack],
    seed: int = 0,
    game: int = 0,
    laboratory: Laboratory | None = None,
) -> dict[str, Finding]:
    """What the attacks of these names find; one that cannot be run fails the test."""
    federation = FederationSettings(strategy=view.settings.strategy, central_dp=view.settings.central_dp)
    known = [name for name in names if isinstance(name, str)]
    attacks = registry.applicable(known, view.assumptions, federation) if known else []
    attacks += [attack for attack in names if isinstance(attack, Attack)]
    attacks = [attack for attack in attacks if attack.infers == "membership"]
    results = execution.run("participant", view, attacks, Task(candidates, seed, game, laboratory))
    assert not results.not_run, results.not_run
    return results.findings
