"""A scenario without what takes long: its attacks that simulate nothing, for a first answer within
seconds; and where seconds are all that it takes, several games."""

from __future__ import annotations

import dataclasses

from attacks import registry
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import Scenario
from fedsim.runs.checks import limits
from fedsim.runs.prepare import Prepared

GAMES = 5
"""Games where nobody says how many and they cost little: one game speaks of one federation alone."""

CHEAP = 30.0
"""Seconds that so many games may take by estimate."""


def several_games(prepared: Prepared) -> Prepared:
    """Return the same with `GAMES` games, where the scenario says none and the machine has room for them."""
    scenario = prepared.scenario
    if "games" in scenario.model_fields_set:
        return prepared
    scenario = scenario.model_copy(update={"games": GAMES})
    try:
        limits.check(scenario, prepared.encoded, prepared.rows)
    except InputError:
        return prepared
    return dataclasses.replace(prepared, scenario=scenario)


def without_simulations(scenario: Scenario) -> Scenario:
    """Return the scenario with those of the participant's attacks that train no shadows and simulate nothing.

    Raises:
        InputError: it asks for no such attack.
    """
    wanted = [a for a in registry.attacks_of(scenario) if not (a.shadows or a.simulates)]
    names = [attack.origin or attack.name for attack in wanted if attack.infers == "membership"]
    if not names:
        raise InputError(
            f"--quick: every attack of adversary.attacks = {scenario.adversary.attacks!r} simulates the "
            "federation; leave --quick out, or name one that does not, such as 'loss'"
        )
    others = [text for text in scenario.adversary.attacks if text.partition(":")[0] in ("outsider", "server")]
    adversary = scenario.adversary.model_copy(update={"attacks": [*names, *others]})
    return scenario.model_copy(update={"adversary": adversary})
