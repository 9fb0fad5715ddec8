"""The party's part in central DP: it clips its own update where the server asks it to."""

from __future__ import annotations

import math

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from clients import messages
from clients.party import party_of


def clip(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip the update w − w_{t−1} in the answer to the norm in ``message``; where none is, do nothing.

    A mod of the ClientApp, in the place of Flower's fixedclipping_mod and adaptiveclipping_mod: these take a
    party's refusal, and layers in another order, for an error, and divide by the norm of an update of 0. Like
    the latter it says whether it clipped, where clipping is adaptive.
    """
    reply = call_next(message, context)
    norm = messages.clipping_norm(message)
    if norm is None or reply.has_error() or "arrays" not in reply.content:
        return reply
    sent = messages.global_model(message)
    weights, clipped = to_norm(messages.to_numpy(messages.arrays_in(reply.content)), sent, norm)
    reply.content["arrays"] = messages.to_arrays(weights)
    central = party_of(context).scenario.federation.central_dp
    if central is not None and central.clipping == "adaptive":
        messages.metrics_in(reply.content)[messages.NORM_BIT] = int(clipped)
    return reply


def to_norm(
    answer: dict[str, np.ndarray], sent: dict[str, np.ndarray], norm: float
) -> tuple[dict[str, np.ndarray], bool]:
    """Return sent + Δ·min(1, norm/‖Δ‖) of Δ = answer − sent, and whether ‖Δ‖ > norm (McMahan et al. 2018)."""
    update = {name: answer[name] - sent[name] for name in answer}
    length = math.sqrt(sum(float(np.linalg.norm(array.ravel())) ** 2 for array in update.values()))
    if length <= norm:
        return answer, False
    factor = norm / length
    return {
        name: sent[name] + np.asarray(factor * array, array.dtype) for name, array in update.items()
    }, True
