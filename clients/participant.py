"""What every party does when Flower sends it a message: introduce itself, train, evaluate."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import dp, messages
from clients.draws import draws_of
from clients.party import Party
from fedsim.core.models import private, weights
from fedsim.core.training import distillation
from fedsim.core.training.draws import Draws
from fedsim.core.training.metrics import evaluate as measure
from fedsim.core.training.steps import LocalTraining
from fedsim.core.training.updates import shape_answer


def introduce(party: Party, context: Context) -> RecordDict:
    """Say which party this is, and plan its privacy for the whole run before round 1."""
    introduction: dict[str, Any] = {"partition-id": party.partition, "party": party.name, "path": party.path}
    plan = dp.plan_of(party, context)
    if plan is not None:
        private.check_dp_ready(party.module, party.records.train.shape)
        introduction |= dataclasses.asdict(plan)
    return RecordDict({"introduction": ConfigRecord(introduction)})


def train(party: Party, message: Message, context: Context) -> RecordDict:
    """Train the global model on the party's members; refuse where its ε budget would be exceeded."""
    started = time.perf_counter()
    sent = messages.global_model(message)
    weights.load_weights(party.module, sent)
    plan = dp.plan_of(party, context)
    reason = None if plan is None else dp.refusal(context, plan)
    if reason is not None:
        return messages.refusal(reason)
    local, draws = _local_training(party, message), draws_of(party, messages.server_round(message))
    if plan is None:
        metrics = _train_openly(party, local, draws)
    else:
        metrics = dp.train_privately(party, local, context, plan, draws)
    metrics["num-examples"] = len(party.records.train)
    shape_answer(party.module, sent, party.defence, draws)
    answer = weights.weights_of(party.module)
    metrics["seconds"] = time.perf_counter() - started
    return RecordDict({"arrays": messages.to_arrays(answer), "metrics": messages.metrics(metrics)})


def evaluate(party: Party, message: Message) -> RecordDict:
    """Measure the global model on the party's held-out records."""
    weights.load_weights(party.module, messages.global_model(message))
    metrics = measure(party.module, party.records.heldout, device=party.scenario.device)
    metrics["num-examples"] = len(party.records.heldout)
    return RecordDict({"metrics": messages.metrics(metrics)})


def _local_training(party: Party, message: Message) -> LocalTraining:
    return LocalTraining(
        party.training,
        party.defence,
        proximal_mu=messages.proximal_mu(message),
        device=party.scenario.device,
        stop_on=party.stop_on,
        gradients="auto" if party.dp is None else party.dp.gradients,
        transfer=party.transfer,
        path=party.path,
    )


def _train_openly(party: Party, local: LocalTraining, draws: Draws) -> dict[str, float]:
    report = distillation.train(party.module, party.records.train, local, draws)
    assert report.loss is not None
    return {"epsilon": math.inf, "train-loss": report.loss}
