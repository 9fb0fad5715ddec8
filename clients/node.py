"""What a node's own administrator decides, whatever a server's app asks for: a budget of ε, a ledger on disk,
and a Ray cluster for a malicious party's shadows.

All are keys of Flower's node configuration, which no message can change:

    flower-supernode … --node-config 'epsilon-budget=1.0 epsilon-ledger="/var/lib/node/ledger.json"'

Flower keeps ``Context.state`` in the SuperNode's memory, one for every run: a node that is started again, or
asked by another run, would have spent nothing. The file holds all that its records were ever trained with.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from flwr.app import Context

from fedsim.core.errors import FedsimError, InputError
from fedsim.core.files import read_json, write_json
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan

BUDGET = "epsilon-budget"
"""ε that all training at this node may cost together."""
DELTA = "epsilon-delta"
"""δ at which the budget holds, or a plan's own where that is smaller: a large δ gains an app nothing."""
LEDGER = "epsilon-ledger"
"""File of the ledger, its folder being there."""
CLUSTER = "shadows-on"
"""Address of a Ray cluster for the shadows of a malicious party; a message could name a foreign one."""

_DELTA = 1e-5


class BudgetSpent(FedsimError):
    """What is asked for would take a party above its ε budget: it does not train.

    Flower answers what a ClientApp raises with an error, which its strategies leave out of the round.
    """


def budget_of(context: Context) -> float:
    """Return the node's own budget of ε, infinite where it has none.

    Raises:
        InputError: it is no positive number.
    """
    return _positive(context, BUDGET, math.inf)


def cluster_of(context: Context) -> str | None:
    """Return the address of the node's Ray cluster, None where it has none."""
    named = context.node_config.get(CLUSTER)
    return None if named is None else str(named)


def limited(context: Context, plan: Plan) -> Plan:
    """Return ``plan`` with the node's own budget and δ where they are smaller: to judge it, not to train."""
    own = budget_of(context)
    if math.isinf(own):
        return plan
    delta = min(plan.delta, _positive(context, DELTA, _DELTA))
    return dataclasses.replace(plan, budget=min(plan.budget, own), delta=delta)


def check_plan(context: Context, plan: Plan | None) -> None:
    """Refuse a plan whose rounds would cost more than the node's own budget, or training without DP.

    Raises:
        BudgetSpent: naming both figures.
    """
    own = budget_of(context)
    if math.isinf(own):
        return
    if plan is None:
        raise BudgetSpent(f"this node trains under DP-SGD only: its own {BUDGET} is {own:.4g}")
    judged = limited(context, plan)
    steps = plan.steps_per_round * plan.rounds
    epsilon = (
        Ledger().add(plan.noise_multiplier, plan.sample_rate, steps).epsilon(judged.delta, plan.accountant)
    )
    if epsilon > own * (1 + 1e-9):
        raise BudgetSpent(
            f"the plan's ε = {epsilon:.4g} at δ = {judged.delta:.3g} exceeds this node's own {BUDGET} "
            f"of {own:.4g}"
        )


def read_ledger(context: Context) -> Ledger | None:
    """Return the ledger on the node's disk, empty before its first round; None where it keeps none there.

    Raises:
        InputError: the file is corrupt: what was spent is unknown, and nothing may be added.
    """
    path = _path(context)
    if path is None:
        return None
    if not path.exists():
        return Ledger()
    try:
        return Ledger.from_config(read_json(path))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a ledger of ε ({error!r}); the node trains no more until it is"
        ) from error


def write_ledger(context: Context, ledger: Ledger) -> None:
    """Write the ledger to the node's disk, where it keeps one there, whole or not at all.

    Raises:
        InputError: it cannot be written; the caller has to answer nothing.
    """
    path = _path(context)
    if path is not None:
        write_json(path, ledger.to_config())


def _path(context: Context) -> Path | None:
    named = context.node_config.get(LEDGER)
    return None if named is None else Path(str(named))


def _positive(context: Context, key: str, default: float) -> float:
    value = context.node_config.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise InputError(f"--node-config {key}={value}: it must be a number above 0")
    return number
