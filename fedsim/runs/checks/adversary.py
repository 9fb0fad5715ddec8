"""Whether the observers that a scenario names can be, and against whom its protections do nothing."""

from __future__ import annotations

from collections.abc import Sequence

from attacks import registry
from attacks.shadows.plan import STRATEGIES
from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.settings import Scenario

# What secure aggregation can compute is a sum: these strategies need nothing else of a round.
_SUMS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi")


def check_observers(scenario: Scenario, names: Sequence[str], adversary: str) -> None:
    """Check before any work starts that the observers named can be.

    Raises:
        InputError: an accomplice is no other party, nobody is left to attack, or the strategy needs more than
            sums.
    """
    settings = scenario.adversary
    for name in settings.coalition:
        if name not in names or name == adversary:
            others = [other for other in names if other != adversary]
            raise InputError(
                f"adversary.coalition: '{name}' is no party beside the adversary{suggestion(name, others)}"
            )
    if len({adversary, *settings.coalition}) == len(names):
        raise InputError("adversary.coalition names every other party; leave at least one to attack")
    strategy = scenario.federation.strategy
    if settings.secure_aggregation and strategy not in _SUMS:
        raise InputError(
            f"adversary.secure_aggregation: federation.strategy = '{strategy}' needs each party's own update"
            + suggestion(strategy, _SUMS)
        )
    central = scenario.federation.central_dp
    if settings.secure_aggregation and central is not None and central.where == "server":
        raise InputError(
            "adversary.secure_aggregation: federation.central_dp.where = 'server' clips each party's own "
            "update; let the parties clip with 'client'"
        )


def protection_notices(scenario: Scenario) -> tuple[str, ...]:
    """Return what a person has to know of a scenario's protections: against whom they do nothing."""
    notices = []
    if scenario.adversary.secure_aggregation:
        notices.append(
            "Secure aggregation hides each party's update from the server alone. From a participant, who "
            "receives the aggregate either way, it hides nothing of any record."
        )
    central = scenario.federation.central_dp
    if central is not None:
        notices.append(
            "Central DP protects whole parties against whoever sees aggregates, and trusts the server, which "
            "adds the noise, with every update. From a participant, who receives the aggregate, it hides "
            "nothing of a record beyond what that noise hides. Its ε is a party's, not a record's."
        )
    if _leaves_shadows_out(scenario):
        strategy = scenario.federation.strategy
        what = "central DP" if central is not None else f"federation.strategy = '{strategy}'"
        what = "adversary.active = 'separation'" if scenario.adversary.active == "separation" else what
        notices.append(f"Attacks on shadow federations are left out: shadows do not follow {what}.")
    if _decodes_no_rounds(scenario):
        notices.append(
            "Round decoding is left out: it simulates records one by one, and DP-SGD's unit is a person. "
            "Shadow federations draw whole persons."
        )
    return tuple(notices)


def _decodes_no_rounds(scenario: Scenario) -> bool:
    """Tell whether an attack is asked for that simulates party-rounds, which are of records alone."""
    adversary = scenario.adversary
    by_person = any(not isinstance(dp, str) and dp.unit == "person" for dp in scenario.dp.values())
    asked_for = registry.select(adversary.attacks, "participant", adversary.folder)
    return by_person and any(attack.simulates for attack in asked_for)


def _leaves_shadows_out(scenario: Scenario) -> bool:
    """Tell whether an attack on shadows is asked for that cannot follow this federation."""
    adversary, federation = scenario.adversary, scenario.federation
    follows = federation.central_dp is None and federation.strategy in STRATEGIES
    if follows and adversary.active != "separation":
        return False
    asked_for = registry.select(adversary.attacks, "participant", adversary.folder)
    return any(attack.shadows and attack.infers == "membership" for attack in asked_for)
