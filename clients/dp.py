"""A party's DP switch: its plan, its ledger and its clipping norm, which outlive a message.

All of them live in Flower's ``Context.state``: on a real deployment every message is a new process, which
must neither solve for σ again nor forget what was spent.

Any Flower ClientApp can have the same switch for its own torch module, without the rest of fedsim:
`train_or_refuse`, shown in ``experiments/flower_app``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context

from clients import messages, node
from clients.node import BudgetSpent
from clients.party import Party
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.models.private import check_dp_ready
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan, would_exceed
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp, persons
from fedsim.core.training.draws import Draws, PartyDraws
from fedsim.core.training.steps import LocalTraining


@dataclasses.dataclass(frozen=True)
class Spent:
    """What all rounds of a context have cost together, (ε, δ) for one record added or taken away."""

    epsilon: float
    delta: float
    rounds: int


def plan_of(party: Party, context: Context) -> Plan | None:
    """Return the plan of the whole run, made at the first call, as is its ledger; None without DP.

    Raises:
        BudgetSpent: it would cost more than the node's own budget, see `clients.node`.
    """
    if party.dp is None:
        node.check_plan(context, None)
        return None
    if "plan" not in context.state:
        n, rounds = _units(party), party.scenario.federation.rounds
        plan = make_plan(party.dp, party.training, n, rounds)
        node.check_plan(context, plan)
        context.state["plan"] = ConfigRecord(dataclasses.asdict(plan))
        _open_ledger(context)
    return Plan(**cast(Any, dict(messages.config_in(context.state, "plan"))))


def ledger_of(context: Context) -> Ledger:
    """Return what the party has spent over all its rounds so far, by its node's disk where it is kept there.

    Raises:
        KeyError: no plan was made, see `plan_of`.
    """
    on_disk = node.read_ledger(context)
    if on_disk is not None:
        return on_disk
    return Ledger.from_config(dict(messages.config_in(context.state, "ledger")))


def clipping_norm_of(context: Context) -> float | None:
    """Return C as adaptive clipping left it after the party's last round, None before its first."""
    if "clipping" not in context.state:
        return None
    return float(cast(float, messages.config_in(context.state, "clipping")["norm"]))


def refusal(context: Context, plan: Plan) -> str | None:
    """Return why the party does not train another round, None if its ε budget has room for one."""
    ledger, plan = ledger_of(context), node.limited(context, plan)
    if not would_exceed(ledger, plan):
        return None
    return f"ε = {ledger.epsilon(plan.delta, plan.accountant):.4g} of {plan.budget:.4g} is spent"


def train_privately(
    party: Party, local: LocalTraining, context: Context, plan: Plan, draws: Draws
) -> dict[str, float]:
    """Train the party's module under DP-SGD; enter the steps into the ledger. Return the round's metrics.

    Formal guarantee:
        The ``epsilon`` returned is that of all rounds of this context, by `train_private` and the ledger. It
        is the only number that leaves the party here; the training loss is a function of the private records
        and does not.
    """
    clipping_norm = clipping_norm_of(context)
    if plan.unit == "person":
        records, person = _bounded(party, plan)
        report = persons.train_by_person(
            party.module, records, person, local, plan, draws, clipping_norm=clipping_norm
        )
    else:
        report = dp.train_private(
            party.module, party.records.train, local, plan, draws, clipping_norm=clipping_norm
        )
    ledger = plan.spend(ledger_of(context), report.steps)
    _enter(context, ledger)
    if report.clipping_norm is not None:
        context.state["clipping"] = ConfigRecord({"norm": report.clipping_norm})
    return {"epsilon": ledger.epsilon(plan.delta, plan.accountant), "train-loss": math.nan}


def _units(party: Party) -> int:
    """Return the number of records, or of persons where these are the unit, that the party trains on."""
    if party.dp is None or party.dp.unit == "record":
        return len(party.records.train)
    return len(np.unique(_owners(party)))


def _owners(party: Party) -> np.ndarray:
    assert party.records.train_person is not None  # checked before the run was prepared
    return party.records.train_person


def _bounded(party: Party, plan: Plan) -> tuple[Records, np.ndarray]:
    """Return the records that a party trains on by person, the same in every round, and whose they are."""
    stream = rng.generator(party.scenario.seed, "records of a person", game=party.game, party=party.name)
    rows = persons.bounded(_owners(party), plan.records_per_person, stream)
    return party.records.train.take(rows), _owners(party)[rows]


def _open_ledger(context: Context) -> None:
    context.state["ledger"] = ConfigRecord(cast(Any, (node.read_ledger(context) or Ledger()).to_config()))


def _enter(context: Context, ledger: Ledger) -> None:
    """Enter before anything leaves the party: an answer that is lost has been paid for all the same."""
    node.write_ledger(context, ledger)
    context.state["ledger"] = ConfigRecord(cast(Any, ledger.to_config()))


# ----------------------------------------------------------------- anyone's app
def train_or_refuse(
    module: torch.nn.Module,
    features: np.ndarray,
    labels: np.ndarray,
    context: Context,
    settings: DPSettings,
    training: TrainingSettings,
    *,
    rounds: int,
    seed: int | None = None,
) -> Spent:
    """Train ``module`` in place for one round of DP-SGD, entered into the ledger in ``context.state``.

    module: of a classifier, its weights being those that the server sent
    features, labels: the party's records, (n, …) float32 and (n,) int64
    settings: ``epsilon`` is that of all ``rounds`` together; σ is solved for it in the first one
    seed: of streams that repeat, for simulations; None: the operating system's source, which nobody predicts

    The budget is ``settings.budget`` or the node's own (`clients.node`), whichever is less: what an app asks
    for, a node need not give. The ledger holds all that was ever trained with this context, also by other
    settings; where the node keeps it on its disk, with any context.

    Formal guarantee:
        That of `fedsim.core.training.dp.train_private`, ε being the ``epsilon`` that is returned: of all
        rounds of the context. Whatever else the app answers (a loss, an accuracy, n) is outside it.

    Raises:
        BudgetSpent: the round would exceed the budget; nothing was trained.
        InputError: the module cannot be trained with DP-SGD, or the unit is not the record; says why.
    """
    if settings.unit != "record":
        raise InputError(f"unit = '{settings.unit}': here the unit of DP-SGD is one record")
    if "ledger" not in context.state:
        check_dp_ready(module, features.shape[1:])
        _open_ledger(context)
    plan = _plan_of_app(context, settings, training, len(labels), rounds)
    reason = refusal(context, plan)
    if reason is not None:
        raise BudgetSpent(reason)
    trained = _rounds_of(context)
    report = dp.train_private(
        module,
        Records(np.asarray(features, np.float32), np.asarray(labels, np.int64)),
        LocalTraining(training, gradients=settings.gradients),
        plan,
        _draws_of_app(context, trained + 1, seed),
        clipping_norm=clipping_norm_of(context),
    )
    ledger = plan.spend(ledger_of(context), report.steps)
    _enter(context, ledger)
    if report.clipping_norm is not None:
        context.state["clipping"] = ConfigRecord({"norm": report.clipping_norm})
    context.state["rounds"] = ConfigRecord({"trained": trained + 1})
    return Spent(ledger.epsilon(plan.delta, plan.accountant), plan.delta, trained + 1)


def _plan_of_app(
    context: Context, settings: DPSettings, training: TrainingSettings, n: int, rounds: int
) -> Plan:
    """Return the plan for these arguments, kept in the context; other arguments make another plan."""
    asked = json.dumps([settings.model_dump(), training.model_dump(), n, rounds])
    if "plan" not in context.state or messages.config_in(context.state, "asked")["for"] != asked:
        made = make_plan(settings, training, n, rounds)
        context.state["plan"] = ConfigRecord(dataclasses.asdict(made))
        context.state["asked"] = ConfigRecord({"for": asked})
    return Plan(**cast(Any, dict(messages.config_in(context.state, "plan"))))


def _rounds_of(context: Context) -> int:
    if "rounds" not in context.state:
        return 0
    return int(cast(int, messages.config_in(context.state, "rounds")["trained"]))


def _draws_of_app(context: Context, round: int, seed: int | None) -> PartyDraws:
    if seed is None:
        return PartyDraws(None, None)
    party = str(context.node_config.get("partition-id", context.node_id))
    sampling, noise = (
        rng.torch_generator(seed, purpose, party=party, round=round)
        for purpose in ("poisson sampling", "dp noise")
    )
    return PartyDraws(sampling, noise)
