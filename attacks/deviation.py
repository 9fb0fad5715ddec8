"""What an adversary inside the federation does to learn more than it would by watching.

gradient-ascent   Nasr et al. 2019: before it answers it moves its model up the loss of the targets. A target
                  that a party trains on is pulled down again in the rounds that follow, others less.
poisoning         Tramèr et al. 2022 ('Truth Serum'): mislabelled copies of the targets among its own training
                  records make the model depend on who else vouches for the true label; then LiRA, with
                  shadows that train on the same poison.

Both need the targets before round 1; who of them is a member stays unknown. Targets are the first of the
candidates, which are in random order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from attacks.views.settings import Weights
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import AdversarySettings

if TYPE_CHECKING:
    import torch


FEW = 20
"""Candidates of an active adversary by default."""


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
    """Return the rounds in which the adversary ascends; after the last it watches at least one round."""
    return range(settings.ascent_every, rounds, settings.ascent_every)


def candidates(settings: AdversarySettings) -> int | None:
    """Return the number of candidates: few by default where it acts, since acting on many shows."""
    return FEW if settings.active and settings.candidates is None else settings.candidates


def check(settings: AdversarySettings, rounds: int) -> None:
    """Refuse a gradient ascent that would never be made.

    Raises:
        InputError: the federation ends before the first one, or with it.
    """
    if settings.active == "gradient-ascent" and not ascent_rounds(settings, rounds):
        raise InputError(
            f"adversary.ascent_every = {settings.ascent_every}: federation.rounds = {rounds} leaves no round "
            "to ascend in and one to watch; choose a smaller one, of at least 2, or more rounds"
        )


def ascent(module: torch.nn.Module, records: Records, rate: float) -> Weights:
    """Return γ Σ_z ∇_w ℓ(w; z) by parameter name, float32; w and the architecture are ``module``'s.

    rate: γ, the step per record.
    """
    import torch

    device = next(module.parameters()).device
    module.eval()
    features = torch.tensor(records.features, device=device)
    labels = torch.tensor(records.labels, device=device)
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    with torch.enable_grad():
        total = torch.nn.functional.cross_entropy(module(features), labels, reduction="sum")
        gradients = torch.autograd.grad(total, list(parameters.values()))
    pairs = zip(parameters, gradients, strict=True)
    return {name: (rate * gradient).cpu().numpy() for name, gradient in pairs}


def shortened(step: Weights, longest: float) -> Weights:
    """Return ``step``, scaled down to the Euclidean length ``longest`` where it is longer."""
    long = length(step)
    factor = np.float32(longest / long if long > longest else 1.0)
    return {name: factor * array for name, array in step.items()}


def length(step: Weights) -> float:
    """Return the Euclidean length of all arrays together."""
    return float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in step.values())))


def assumption(settings: AdversarySettings) -> str:
    """Say what an active adversary does and owns for it, a sentence and a space; '' of one that is not."""
    which = "all candidates" if settings.targets is None else f"the first {settings.targets} candidates"
    own = f"It holds {which} before round 1, not knowing who trained on them, and"
    if settings.active == "gradient-ascent":
        return (
            f"{own} moves its update up their loss every {settings.ascent_every} rounds; its shadow "
            "federations repeat that. "
        )
    if settings.active == "poisoning":
        copies = settings.poison_copies
        added = "a mislabelled copy" if copies == 1 else f"{copies} mislabelled copies"
        return f"{own} trains on {added} of each. "
    return ""
