"""What every party does when Flower sends it a message: introduce itself, train, evaluate."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, cast

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import dp, messages
from clients.party import Party
from clients.training import evaluate as measure
from clients.training import train as train_locally
from fedsim import models, privacy, rng


def introduce(party: Party, context: Context) -> RecordDict:
    """Say which party this is, and plan its privacy for the whole run before round 1."""
    introduction: dict[str, Any] = {"partition-id": party.partition, "party": party.name}
    plan = _plan(party, context)
    if plan is not None:
        models.check_dp_ready(party.module, party.records.train.shape)
        introduction |= dataclasses.asdict(plan)
    return RecordDict({"introduction": ConfigRecord(introduction)})


def train(party: Party, message: Message, context: Context) -> RecordDict:
    """Train the global model on the party's members; refuse where its ε budget would be exceeded."""
    started = time.perf_counter()
    models.load_weights(party.module, messages.global_model(message))
    plan = _plan(party, context)
    if plan is None:
        metrics = _train_openly(party, message)
    else:
        ledger = _ledger(context)
        if privacy.would_exceed(ledger, plan):
            spent = ledger.epsilon(plan.delta, plan.accountant)
            return messages.refusal(f"ε = {spent:.4g} of {plan.budget:.4g} is spent")
        metrics = _train_privately(party, message, context, plan, ledger)
    metrics["num-examples"] = len(party.records.train)
    metrics["seconds"] = time.perf_counter() - started
    arrays = messages.to_arrays(models.weights(party.module))
    return RecordDict({"arrays": arrays, "metrics": messages.metrics(metrics)})


def evaluate(party: Party, message: Message) -> RecordDict:
    """Measure the global model on the party's held-out records."""
    models.load_weights(party.module, messages.global_model(message))
    metrics = measure(party.module, party.records.heldout, device=party.scenario.device)
    metrics["num-examples"] = len(party.records.heldout)
    return RecordDict({"metrics": messages.metrics(metrics)})


def _train_openly(party: Party, message: Message) -> dict[str, float]:
    report = train_locally(
        party.module,
        party.records.train,
        party.scenario.training,
        _stream(party, "training", messages.server_round(message)),
        proximal_mu=messages.proximal_mu(message),
        device=party.scenario.device,
    )
    assert report.loss is not None
    return {"epsilon": math.inf, "train-loss": report.loss}


def _train_privately(
    party: Party, message: Message, context: Context, plan: privacy.Plan, ledger: privacy.Ledger
) -> dict[str, float]:
    """Train under DP-SGD and enter its steps into the ledger, which spans all rounds."""
    round = messages.server_round(message)
    report = dp.train_private(
        party.module,
        party.records.train,
        party.scenario.training,
        plan,
        sampling=_stream(party, "poisson sampling", round),
        noise=_stream(party, "dp noise", round),
        proximal_mu=messages.proximal_mu(message),
        device=party.scenario.device,
    )
    ledger = plan.spend(ledger, report.steps)
    context.state["ledger"] = ConfigRecord(cast(Any, ledger.to_config()))
    # The training loss is a function of the private records: under DP it stays at the party.
    return {"epsilon": ledger.epsilon(plan.delta, plan.accountant), "train-loss": math.nan}


def _stream(party: Party, purpose: str, round: int) -> torch.Generator:
    seed = party.scenario.seed
    return rng.torch_generator(seed, purpose, game=party.game, party=party.name, round=round)


def _ledger(context: Context) -> privacy.Ledger:
    return privacy.Ledger.from_config(dict(context.state.config_records["ledger"]))


def _plan(party: Party, context: Context) -> privacy.Plan | None:
    """Return the plan made before round 1; it lives in ``Context.state``, as the ledger does.

    On a real deployment every message is a new process, which must not solve for σ again.
    """
    if party.dp is None:
        return None
    if "plan" not in context.state:
        n, rounds = len(party.records.train), party.scenario.federation.rounds
        plan = privacy.plan(party.dp, party.scenario.training, n, rounds)
        context.state["plan"] = ConfigRecord(dataclasses.asdict(plan))
        context.state["ledger"] = ConfigRecord(cast(Any, privacy.Ledger().to_config()))
    return privacy.Plan(**cast(Any, dict(context.state.config_records["plan"])))
