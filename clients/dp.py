"""A party's DP switch: its plan, its ledger and its clipping norm, which outlive a message.

All of them live in Flower's ``Context.state``: on a real deployment every message is a new process, which
must neither solve for σ again nor forget what was spent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, Context

from clients.party import Party
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan, would_exceed
from fedsim.core.training import dp, persons
from fedsim.core.training.draws import Draws
from fedsim.core.training.steps import LocalTraining


def plan_of(party: Party, context: Context) -> Plan | None:
    """Return the plan of the whole run, made at the first call, with an empty ledger; None without DP."""
    if party.dp is None:
        return None
    if "plan" not in context.state:
        n, rounds = _units(party), party.scenario.federation.rounds
        plan = make_plan(party.dp, party.training, n, rounds)
        context.state["plan"] = ConfigRecord(dataclasses.asdict(plan))
        _enter(context, Ledger())
    return Plan(**cast(Any, dict(context.state.config_records["plan"])))


def ledger_of(context: Context) -> Ledger:
    """Return what the party has spent over all its rounds so far.

    Raises:
        KeyError: no plan was made, see `plan_of`.
    """
    return Ledger.from_config(dict(context.state.config_records["ledger"]))


def clipping_norm_of(context: Context) -> float | None:
    """Return C as adaptive clipping left it after the party's last round, None before its first."""
    if "clipping" not in context.state:
        return None
    return float(cast(float, context.state.config_records["clipping"]["norm"]))


def refusal(context: Context, plan: Plan) -> str | None:
    """Return why the party does not train another round, None if its ε budget has room for one."""
    ledger = ledger_of(context)
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
        records, person = _bounded(party)
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


def _bounded(party: Party) -> tuple[Records, np.ndarray]:
    """Return the records that a party trains on by person, the same in every round, and whose they are."""
    assert party.dp is not None
    stream = rng.generator(party.scenario.seed, "records of a person", game=party.game, party=party.name)
    rows = persons.bounded(_owners(party), party.dp.records_per_person, stream)
    return party.records.train.take(rows), _owners(party)[rows]


def _enter(context: Context, ledger: Ledger) -> None:
    context.state["ledger"] = ConfigRecord(cast(Any, ledger.to_config()))
