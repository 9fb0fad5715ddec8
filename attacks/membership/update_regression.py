"""Which records' gradients an update is made of: all candidates decoded together, without shadows (ours).

A party that trains from w_{t−1} moves the model, to first order, by −c Σ_i m_i g_i, g_i = ∇ℓ(w_{t−1}; z_i),
with m_i = 1 for its members. The cosine looks at one record at a time and credits it with what similar
records did; here the updates of all rounds are regressed on the gradients of all candidates at once (ridge),
and the score is the record's coefficient over its standard error. Only inner products are needed:

    A = Σ_t G_t G_tᵀ / tr(G_t G_tᵀ),   b = −Σ_t G_t Δ_t / tr(G_t G_tᵀ),   m̂ = (A + λ tr(A)/n)⁻¹ b

with the gradients as rows of G_t. The weights let every round count alike, though gradients shrink.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attacks.declaration import EVERY_MODEL, PULLED, attack
from attacks.signals import gradients
from attacks.views.participant import ParticipantView
from attacks.views.settings import Weights
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

RIDGE = 0.003
"""λ: gradients at w_{t−1} explain an update of several epochs only roughly."""

MOST, SPLIT = 1024, 512
"""Candidates decoded together, and parts that more are split into: time and memory grow with the square."""

Step = tuple["torch.nn.Module", Sequence[Weights]]
"""The model w_{t−1} and K updates that were made from it."""


@attack(
    "update-regression",
    sees=EVERY_MODEL,
    assumes=PULLED,
    source="ours: all candidates decoded together",
    together=True,
)
def score(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return t-statistics of the candidates' part in the others' updates, (n,) float64; 0 without updates."""
    updates = ((t, view.others_update(t)) for t in view.trained_rounds)
    steps: list[Step] = [
        (view.module(view.models[t - 1]), [update]) for t, update in updates if update is not None
    ]
    return decode(steps, candidates)[:, 0] if steps else np.zeros(len(candidates))


def decode(steps: Sequence[Step], candidates: Records) -> np.ndarray:
    """Return each candidate's t-statistic in each of K series of updates, (n, K) float64.

    steps: one per round. A round whose gradients are all 0 or not finite says nothing; NaN where all are so.
    """
    parts = [_decode(steps, candidates.take(part)) for part in _split(len(candidates))]
    return np.concatenate([np.zeros((0, len(steps[0][1]))), *parts])


def _split(count: int) -> list[np.ndarray]:
    """Return the indices of the parts, as even as can be, none where there are no candidates."""
    return np.array_split(np.arange(count), 1 if count <= MOST else -(-count // SPLIT)) if count else []


def _decode(steps: Sequence[Step], records: Records) -> np.ndarray:
    n, series = len(records), len(steps[0][1])
    gram, product = np.zeros((n, n)), np.zeros((n, series))
    for module, updates in steps:
        of_round = gradient_gram(module, records)
        weight = np.trace(of_round)
        if np.isfinite(weight) and weight > 0:
            gram += of_round / weight
            along = [gradients.gradient_products(module, records, update)[0] for update in updates]
            product -= np.stack(along, axis=1) / weight
    return ridge(gram, product)


def ridge(gram: np.ndarray, product: np.ndarray, penalty: float = RIDGE) -> np.ndarray:
    """Return m̂ / s, (n, K): ridge coefficients over their standard errors, up to the noise's variance.

    gram: A, (n, n) symmetric, positive semi-definite; product: b, (n, K). s² = diag (A + λI)⁻¹ A (A + λI)⁻¹.
    """
    scale = np.trace(gram) / len(gram)
    if not scale > 0:
        return np.full(product.shape, np.nan)
    inverse = np.linalg.inv(gram + penalty * scale * np.eye(len(gram)))
    variance = np.einsum("ij,ij->i", inverse @ gram, inverse)
    tiny = np.finfo(np.float64).tiny
    return np.asarray(inverse @ product / np.sqrt(np.maximum(variance, tiny))[:, None])


def gradient_gram(module: torch.nn.Module, records: Records) -> np.ndarray:
    """Return ⟨∇ℓ(w; z_i), ∇ℓ(w; z_j)⟩ of every two records, (n, n) float64.

    A stack of linear layers needs no gradient as such: in a layer y = W a + b a record's gradient is
    (δ aᵀ, δ), so that its part is (δ_i · δ_j)(a_i · a_j + 1). Any other module takes n × parameters float32.
    """
    import torch

    from fedsim.core.models.layers import linear_stack

    if linear_stack(module) is None:
        rows = _gradients(module, records).double()
        return np.asarray((rows @ rows.T).numpy())
    features = torch.tensor(records.features, dtype=torch.float64)
    factors = gradients.stack_factors(copy.deepcopy(module).double(), features, torch.tensor(records.labels))
    parts = [(delta @ delta.T) * (a @ a.T + 1) for _, a, delta in factors]
    return np.asarray(torch.stack(parts).sum(dim=0).numpy())


def _gradients(module: torch.nn.Module, records: Records) -> torch.Tensor:
    """Return every record's gradient, (n, parameters), in the module's precision."""
    import torch
    from torch.func import functional_call, grad, vmap

    def loss_of_one(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(module, weights, (x[None],)), y[None])

    weights = {name: value.detach() for name, value in module.named_parameters()}
    module = copy.deepcopy(module)  # functional_call does not put back a layer that is used twice
    per_sample = vmap(grad(loss_of_one), in_dims=(None, 0, 0), chunk_size=256)
    by_name = per_sample(weights, torch.tensor(records.features), torch.tensor(records.labels))
    return torch.cat([gradient.flatten(1) for gradient in by_name.values()], dim=1).detach()
