"""What an adversary inside the federation does to learn more than it would by watching.

gradient-ascent   Nasr et al. 2019, §III-C: before it answers it moves its model up the loss of the targets. A
                  target that someone trains on is pulled down again in the next round, any other is not.
poisoning         Tramèr et al. 2022 ('Truth Serum'): mislabelled copies of the targets among its own training
                  records make the model depend on who else vouches for the true label; then LiRA, with
                  shadows that train on the same poison.

Both need the targets before round 1; who of them is a member stays unknown. Targets are the first of the
candidates, which are in random order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attacks.observer import Weights
from fedsim.data.records import Records
from fedsim.scenario import AdversarySettings

if TYPE_CHECKING:
    import torch


def poison(targets: Records, copies: int, classes: int, rng: np.random.Generator) -> Records:
    """Return ``copies`` of every target, (n · copies) records, all with one wrong label drawn per target.

    Raises:
        ValueError: there is no wrong label.
    """
    if classes < 2:
        raise ValueError(f"{classes} classes: no label is wrong")
    shift = rng.integers(1, classes, len(targets))
    wrong = (targets.labels + shift) % classes
    return Records(np.repeat(targets.features, copies, axis=0), np.repeat(wrong, copies))


def ascent_rounds(settings: AdversarySettings, rounds: int) -> range:
    """Return the rounds in which the adversary ascends: the last before round T, in which it only watches."""
    wanted = rounds if settings.ascent_rounds is None else settings.ascent_rounds
    return range(max(1, rounds - wanted), rounds)


def half(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return (n,) bool, a random half of n targets: those that are ascended in one round."""
    chosen = np.zeros(n, dtype=bool)
    chosen[rng.permutation(n)[: (n + 1) // 2]] = True
    return chosen


def ascent(module: torch.nn.Module, records: Records, rate: float) -> Weights:
    """Return γ Σ_z ∇_w ℓ(w; z) by parameter name, float32; w and the architecture are ``module``'s.

    rate: γ, the step per record.
    """
    import torch

    device = next(module.parameters()).device
    module.eval()
    features = torch.tensor(records.features, device=device)
    labels = torch.tensor(records.labels, device=device)
    parameters = dict(module.named_parameters())
    with torch.enable_grad():
        total = torch.nn.functional.cross_entropy(module(features), labels, reduction="sum")
        gradients = torch.autograd.grad(total, list(parameters.values()))
    pairs = zip(parameters, gradients, strict=True)
    return {name: (rate * gradient).cpu().numpy() for name, gradient in pairs}


def shortened(step: Weights, longest: float) -> Weights:
    """Return ``step``, scaled down to the Euclidean length ``longest`` where it is longer."""
    length = norm(step)
    factor = np.float32(min(1.0, longest / length) if length > 0 else 1.0)
    return {name: factor * array for name, array in step.items()}


def norm(step: Weights) -> float:
    """Return the Euclidean length of all arrays together."""
    return float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in step.values())))
