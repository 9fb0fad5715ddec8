"""Signatures: what the membership of one record adds to the update of the party that trains on it.

s_i = E[d | i in] − E[d | i out] of a party-round's d = (n_k/N)(w^k − w_{t−1}), here less its mean over the
records of the population: sets have a fixed size, so that one record's membership is another's absence.

paired    measured: party-rounds that differ in this record alone, in a set, at a place and in a batch order
          that are drawn anew a few times. For every optimizer, defence and model.
gradient  to first order −lr·epochs/batch·(n_k/N)·∇ℓ(w; z_i), the gradient's mean along the way of a few local
          trainings; for plain SGD. It costs no training of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attacks.rounds.knowledge import Knowledge
from attacks.rounds.party_rounds import Compress, MemberSets, simulate
from attacks.rounds.sets import Context
from attacks.shadows.plan import FederationPlan
from attacks.signals.gradients import stack_factors
from attacks.views.settings import Weights
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

ALONG = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where on the straight way of a local training gradients are taken."""
WAYS = 4
"""Local trainings of a population along which gradients are taken."""
GRADIENT_BYTES = 2**26
"""Memory that the gradients formed at a time may take."""


def paired(
    plan: FederationPlan,
    start: Weights,
    pool: Records,
    contexts: Sequence[Context],
    drawable: np.ndarray,
    seed: int,
    compress: Compress,
) -> np.ndarray:
    """Return the records' paired signatures, (R, q) float32, each the mean over its contexts, or 0.

    From every context's updates is subtracted their mean over the records that parties are drawn from,
    ``drawable``, (R,) bool: what is said of a record that is decoded alone must not depend on others.
    """
    sums: np.ndarray | None = None
    count = np.zeros(len(drawable))
    for number, context in enumerate(contexts):
        if len(context.open) == 0:
            continue
        updates = simulate(plan, start, pool, context.sets(number), seed, compress)
        sums = np.zeros((len(drawable), updates.shape[1]), np.float32) if sums is None else sums
        middle = drawable[context.open] if drawable[context.open].any() else slice(None)
        sums[context.open] += updates - updates[middle].mean(axis=0)
        count[context.open] += 1
    if sums is None:
        raise ValueError("there are no contexts to measure signatures in")
    return np.asarray(sums / np.maximum(count, 1)[:, None].astype(np.float32))


def gradient(
    plan: FederationPlan,
    start: Weights,
    pool: Records,
    knowledge: Knowledge,
    sets: MemberSets,
    seed: int,
    compress: Compress,
) -> np.ndarray:
    """Return the records' mean gradients, negative and centred in their population, (R, q) float32.

    They are signatures up to a factor, which `fit` finds.
    """
    rows: np.ndarray | None = None
    for members, parties in knowledge.populations():
        ways = np.flatnonzero(np.isin(sets.party, parties))[:WAYS]
        few = MemberSets(sets.party[ways], sets.rows[ways], sets.number[ways])
        points = _points(plan, start, pool, few, seed)
        asked = knowledge.belonging(*parties)
        found = -mean_gradients(plan, start, points, knowledge.records.take(asked), compress)
        rows = np.zeros((len(knowledge), found.shape[1]), np.float32) if rows is None else rows
        rows[asked] = found - found[np.isin(asked, members)].mean(axis=0)
    assert rows is not None  # there is at least one other party
    return rows


def fit(signatures: np.ndarray, presence: np.ndarray, updates: np.ndarray) -> float:
    """Return α of the regression d ≈ α Σ_i y_i g_i over sets, both sides centred.

    signatures: g, (R, q); presence: y, (S, R), centred; updates: d, (S, q), centred
    """
    predicted = presence @ signatures
    square = float(np.einsum("sq,sq->", predicted, predicted, dtype=np.float64))
    return float(np.einsum("sq,sq->", predicted, updates, dtype=np.float64)) / square if square else 0.0


def record_gradients(module: torch.nn.Module, records: Records) -> np.ndarray:
    """Return ∇ℓ(w; z) of every record z at the module's parameters in a row, (n, p) float32."""
    import torch

    from fedsim.core.models.layers import linear_stack

    features, labels = torch.tensor(records.features), torch.tensor(records.labels)
    if linear_stack(module) is not None:
        # A layer's gradient for one record is (δ aᵀ, δ). torch.func is imported for other modules alone: it
        # brings torch's compiler along, two seconds of imports.
        factors = stack_factors(module, features, labels)
        pairs = [(delta[:, :, None] * inputs[:, None], delta) for _, inputs, delta in factors]
        return torch.cat([part.flatten(1) for pair in pairs for part in pair], dim=1).numpy()
    from torch.func import functional_call, grad, vmap

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(module, weights, (x[None],)), y[None])

    weights = {name: value.detach() for name, value in module.named_parameters()}
    by_record = vmap(grad(loss), in_dims=(None, 0, 0))
    gradients = by_record(weights, features, labels)
    return np.asarray(torch.cat([each.flatten(1) for each in gradients.values()], dim=1).numpy())


def _points(
    plan: FederationPlan, start: Weights, pool: Records, sets: MemberSets, seed: int
) -> list[tuple[np.ndarray, float]]:
    """Return updates w − w_{t−1} at which gradients are taken, (p,) each, and the weight of each."""
    shares = plan.sizes[sets.party] / plan.sizes.sum()
    ways = simulate(plan, start, pool, sets, seed) / shares[:, None].astype(np.float32)
    later = [(part * way, 1 / (len(ways) * len(ALONG))) for way in ways for part in ALONG[1:]]
    return [(np.zeros_like(ways[0]), 1 / len(ALONG)), *later]  # every way begins at w_{t−1}


def mean_gradients(
    plan: FederationPlan,
    start: Weights,
    points: Sequence[tuple[np.ndarray, float]],
    records: Records,
    compress: Compress,
) -> np.ndarray:
    """Return the weighted mean of the records' gradients at w_{t−1} + each of the points, (n, q) float32."""
    import torch

    from fedsim.core.models import zoo
    from fedsim.core.models.weights import load_weights

    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    load_weights(module, start)
    module.eval()
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    size = max(1, GRADIENT_BYTES // (4 * len(before)))
    parts = []
    for some in np.split(np.arange(len(records)), range(size, len(records), size)):
        total = np.zeros((len(some), len(before)), np.float32)
        for point, weight in points:
            torch.nn.utils.vector_to_parameters(before + torch.from_numpy(point), module.parameters())
            total += np.float32(weight) * record_gradients(module, records.take(some))
        parts.append(compress(total))
    return np.concatenate(parts)
