"""Judging what the parties answered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from clients import messages
from fedsim.core.errors import plainly
from fedsim.core.parallel import LATE
from fedsim.core.scenario.settings import FederationSettings, Scenario
from fedsim.server import strategy
from fedsim.server.federation import Federation, log


@dataclass(frozen=True)
class Outcome:
    """How one party fared in one round.

    status: 'ok', 'not drawn', 'refused' (ε budget spent), 'failed' (raised), 'no reply' (timeout) or
        'invalid' (NaN, wrong shapes or too large)
    detail: why, in words
    metrics: what the party reported
    """

    status: str
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


NO_REPLY = Outcome("no reply", "nothing came within federation.timeout")


def sort_out(
    federation: Federation, drawn: list[int], replies: list[Message], weights: ArrayRecord
) -> tuple[dict[int, Outcome], list[Message]]:
    """Judge each reply; return all outcomes, and the usable replies by partition id."""
    by_partition = {federation.partition_of(reply): reply for reply in replies}
    outcomes: dict[int, Outcome] = {}
    usable = []
    for partition in federation.parties:
        if partition not in drawn:
            outcomes[partition] = Outcome("not drawn")
            continue
        outcome = _judge(by_partition.get(partition), weights, federation.scenario.federation)
        outcomes[partition] = outcome
        if outcome.status == "ok":
            usable.append(_for_strategy(by_partition[partition], outcome, weights, federation.scenario))
        else:
            log.warning("%s: %s: %s", federation.parties[partition], outcome.status, outcome.detail)
    return outcomes, usable


def _judge(reply: Message | None, weights: ArrayRecord, settings: FederationSettings) -> Outcome:
    """Say whether a training reply can be used, and why not."""
    if reply is None:
        return NO_REPLY
    if reply.has_error():
        reason = plainly(str(reply.error.reason))
        if messages.TOO_LARGE in reason:
            return Outcome("invalid", reason)
        # A client that runs in a process below Flower's ends it by itself, and says so in time.
        return NO_REPLY if reason.endswith(LATE) else Outcome("failed", reason)
    content = reply.content
    refusal = content.get("refusal")
    if isinstance(refusal, ConfigRecord):
        return Outcome("refused", plainly(str(refusal.get("reason", ""))))
    try:
        arrays, metrics = messages.arrays_in(content), messages.numbers(messages.metrics_in(content))
    except KeyError:
        return Outcome("invalid", "the reply holds no model")
    flaw = flaw_of(arrays, weights)
    if not flaw and not 0 < metrics.get("num-examples", 0) < math.inf:
        flaw = f"num-examples = {metrics.get('num-examples')}"
    missing = [name for name in strategy.metrics_needed(settings) if name not in metrics]
    if not flaw and missing:
        flaw = f"the metric '{missing[0]}' is missing"
    if not flaw and settings.central_dp is not None and settings.central_dp.where == "server":
        flaw = _without_direction(arrays, weights)
    return Outcome("invalid", flaw, metrics) if flaw else Outcome("ok", "", metrics)


def flaw_of(arrays: ArrayRecord, reference: ArrayRecord) -> str:
    """Return what is wrong with a model beside ``reference``, '' where nothing is."""
    if arrays.keys() != reference.keys():
        return "the model has other layers than the global model"
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(reference[name].shape):
            return f"{name} has shape {tuple(array.shape)}, not {tuple(reference[name].shape)}"
        flaw = messages.payload_flaw(array)
        if flaw:
            return f"{name} {flaw}"
    for name, value in messages.to_numpy(arrays).items():
        if not np.isfinite(value).all():
            return f"{name} holds NaN or infinity"
    return ""


def _without_direction(arrays: ArrayRecord, reference: ArrayRecord) -> str:
    """Return what is wrong with an update of 0 where Flower clips it: it divides by the norm."""
    same = all(np.array_equal(arrays[name].numpy(), reference[name].numpy()) for name in reference)
    return "the update is 0, which central DP at the server cannot clip" if same else ""


def _for_strategy(reply: Message, outcome: Outcome, weights: ArrayRecord, scenario: Scenario) -> Message:
    """Keep only what the strategy needs, in the global model's order of layers.

    It averages every metric, and ε or seconds have no mean. Under central DP all parties weigh the same: a
    weight by records would let a large party move the mean by more than the noise covers.
    """
    federation, arrays = scenario.federation, messages.arrays_in(reply.content)
    metrics = {name: outcome.metrics[name] for name in strategy.metrics_needed(federation)}
    if federation.central_dp is not None:
        metrics["num-examples"] = 1.0
    ordered = messages.record_of({name: messages.Readable(arrays[name]) for name in weights})
    reply.content = RecordDict({"arrays": ordered, "metrics": messages.metrics(metrics)})
    return reply


def too_few(federation: Federation, round: int, outcomes: dict[int, Outcome], usable: int) -> str:
    """Say why a round ended with too few usable replies."""
    reasons = "; ".join(
        f"{federation.parties[partition]}: {outcome.status} ({outcome.detail})"
        for partition, outcome in outcomes.items()
        if outcome.status not in ("ok", "not drawn")
    )
    wanted = federation.scenario.federation.min_parties
    return f"round {round} ended with {usable} usable replies of at least {wanted}: {reasons}"


def update_shapes(
    federation: Federation, usable: list[Message], weights: ArrayRecord
) -> dict[int, tuple[float, float]]:
    """Return, by partition id, ‖Δ_k‖ and the cosine of Δ_k with the mean of the others' updates.

    Δ_k is the party's answer minus the global model it was sent: what a server could notice of a party that
    deviates. NaN where there is no direction: a party alone, an update of 0.
    """
    sent = _flat(weights)

    def update_of(reply: Message) -> np.ndarray:
        return _flat(messages.arrays_in(reply.content)) - sent

    total = np.zeros_like(sent)  # one update at a time: all of them take twice as much as the replies
    for reply in usable:
        total += update_of(reply)
    shapes = {}
    for reply in usable:
        update = update_of(reply)
        shapes[federation.partition_of(reply)] = (
            float(np.linalg.norm(update)),
            _cosine(update, total - update),
        )
    return shapes


def _flat(weights: ArrayRecord) -> np.ndarray:
    arrays = messages.to_numpy(weights)
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)]).astype(np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else math.nan
