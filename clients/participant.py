"""What every party does when Flower sends it a message: introduce itself, train, evaluate."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import messages
from clients.party import Party
from fedsim.core import rng
from fedsim.core.models import private, weights
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan, would_exceed
from fedsim.core.training import dp, updates
from fedsim.core.training.metrics import evaluate as measure
from fedsim.core.training.sgd import train as train_locally


def introduce(party: Party, context: Context) -> RecordDict:
    """Say which party this is, and plan its privacy for the whole run before round 1."""
    introduction: dict[str, Any] = {"partition-id": party.partition, "party": party.name}
    plan = _plan(party, context)
    if plan is not None:
        private.check_dp_ready(party.module, party.records.train.shape)
        introduction |= dataclasses.asdict(plan)
    return RecordDict({"introduction": ConfigRecord(introduction)})


def train(party: Party, message: Message, context: Context) -> RecordDict:
    """Train the global model on the party's members; refuse where its ε budget would be exceeded."""
    started = time.perf_counter()
    weights.load_weights(party.module, messages.global_model(message))
    plan = _plan(party, context)
    if plan is None:
        metrics = _train_openly(party, message)
    else:
        ledger = _ledger(context)
        if would_exceed(ledger, plan):
            spent = ledger.epsilon(plan.delta, plan.accountant)
            return messages.refusal(f"ε = {spent:.4g} of {plan.budget:.4g} is spent")
        metrics = _train_privately(party, message, context, plan, ledger)
    metrics["num-examples"] = len(party.records.train)
    answer = _shaped(party, message)
    metrics["seconds"] = time.perf_counter() - started
    return RecordDict({"arrays": messages.to_arrays(answer), "metrics": messages.metrics(metrics)})


def evaluate(party: Party, message: Message) -> RecordDict:
    """Measure the global model on the party's held-out records."""
    weights.load_weights(party.module, messages.global_model(message))
    metrics = measure(party.module, party.records.heldout, device=party.scenario.device)
    metrics["num-examples"] = len(party.records.heldout)
    return RecordDict({"metrics": messages.metrics(metrics)})


def _shaped(party: Party, message: Message) -> dict[str, np.ndarray]:
    """Return the answer: the model that the party has trained, its update as the party's defence shapes it.

    The module is given these weights. Buffers, which no gradient moves, are sent as they are.
    """
    if party.defence.changes_update:
        sent, trained = messages.global_model(message), weights.weights_of(party.module)
        parameters = [name for name, p in party.module.named_parameters() if p.requires_grad]
        update = {name: trained[name] - sent[name] for name in parameters}
        stream = _numpy_stream(party, "quantisation", messages.server_round(message))
        shaped = updates.shaped(update, party.defence, stream)
        weights.load_weights(party.module, trained | {name: sent[name] + shaped[name] for name in parameters})
    return weights.weights_of(party.module)


def _train_openly(party: Party, message: Message) -> dict[str, float]:
    report = train_locally(
        party.module,
        party.records.train,
        party.training,
        _stream(party, "training", messages.server_round(message)),
        proximal_mu=messages.proximal_mu(message),
        device=party.scenario.device,
        defence=party.defence,
        stop_on=party.stop_on,
    )
    assert report.loss is not None
    return {"epsilon": math.inf, "train-loss": report.loss}


def _train_privately(
    party: Party, message: Message, context: Context, plan: Plan, ledger: Ledger
) -> dict[str, float]:
    """Train under DP-SGD; enter its steps into the ledger, which spans all rounds, as an adapted C does."""
    round, settings = messages.server_round(message), party.dp
    assert settings is not None
    report = dp.train_private(
        party.module,
        party.records.train,
        party.training,
        plan,
        sampling=None if settings.secure else _stream(party, "poisson sampling", round),
        noise=None if settings.secure else _stream(party, "dp noise", round),
        proximal_mu=messages.proximal_mu(message),
        device=party.scenario.device,
        gradients=settings.gradients,
        clipping_norm=_clipping_norm(context),
        defence=party.defence,
        stop_on=party.stop_on,
    )
    ledger = plan.spend(ledger, report.steps)
    context.state["ledger"] = ConfigRecord(cast(Any, ledger.to_config()))
    if report.clipping_norm is not None:
        context.state["clipping"] = ConfigRecord({"norm": report.clipping_norm})
    # The training loss is a function of the private records: under DP it stays at the party.
    return {"epsilon": ledger.epsilon(plan.delta, plan.accountant), "train-loss": math.nan}


def _stream(party: Party, purpose: str, round: int) -> torch.Generator:
    seed = party.scenario.seed
    return rng.torch_generator(seed, purpose, game=party.game, party=party.name, round=round)


def _numpy_stream(party: Party, purpose: str, round: int) -> np.random.Generator:
    return rng.generator(party.scenario.seed, purpose, game=party.game, party=party.name, round=round)


def _clipping_norm(context: Context) -> float | None:
    """Return C as adaptive clipping left it after the party's last round, None before its first."""
    if "clipping" not in context.state:
        return None
    return float(cast(float, context.state.config_records["clipping"]["norm"]))


def _ledger(context: Context) -> Ledger:
    return Ledger.from_config(dict(context.state.config_records["ledger"]))


def _plan(party: Party, context: Context) -> Plan | None:
    """Return the plan made before round 1; it lives in ``Context.state``, as the ledger does.

    On a real deployment every message is a new process, which must not solve for σ again.
    """
    if party.dp is None:
        return None
    if "plan" not in context.state:
        n, rounds = len(party.records.train), party.scenario.federation.rounds
        plan = make_plan(party.dp, party.training, n, rounds)
        context.state["plan"] = ConfigRecord(dataclasses.asdict(plan))
        context.state["ledger"] = ConfigRecord(cast(Any, Ledger().to_config()))
    return Plan(**cast(Any, dict(context.state.config_records["plan"])))
