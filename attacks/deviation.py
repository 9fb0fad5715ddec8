"""What an adversary inside the federation does to learn more than it would by watching.

gradient-ascent   Nasr et al. 2019: before it answers it moves its model up the loss of the targets. A target
                  that a party trains on is pulled down again in the rounds that follow, others less.
separation        ours, after FedPoisonMIA's question: what leaks while robust rules see nothing? It moves
                  its answer to where the next round's updates will hold most of the targets, as far as a
                  budget of length, angle and utility allows.
poisoning         Tramèr et al. 2022 ('Truth Serum'): mislabelled copies of the targets among its own training
                  records make the model depend on who else vouches for the true label; then LiRA, with
                  shadows that train on the same poison.

All need the targets before round 1; who of them is a member stays unknown. Targets are the first of the
candidates, which are in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


OWN_SAMPLE = 128
"""Own records whose gradients say what other records add to an update, at most."""

SEPARATING_STEPS = 8
"""Of the search for a separating step; more hardly find a better one."""


def separation(
    module: torch.nn.Module, targets: Records, own: Records, share: float, longest: float
) -> Weights:
    """Return a step d from the answer w, at most ``longest`` long, that raises what tells the targets apart.

    In the linear-Gaussian channel (docs/theory.md) a round tells a record z by d'² = s_zᵀ Σ⁻¹ s_z, s_z, its
    signature, being about its gradient at the model w' of that round, and Σ what the others' records add to
    the update. The answer moves w' by its ``share``: sought is the d with the largest Σ_z log g_zᵀ D⁻¹ g_z at
    w + share · d, g_z = ∇ℓ(w'; z), D the mean squares of own records' gradients at w. Steps of equal length
    along the objective's slope. The other parties are taken to have moved as far as it did itself.

    module: with w, the honest answer; share: of its records among all parties'; longest: Euclidean length
    """
    import torch

    module.eval()
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    names, start = list(parameters), [value.detach() for value in parameters.values()]
    noise = [torch.zeros_like(value) for value in start]
    for number in range(len(own)):
        for total, slope in zip(noise, _slopes(module, names, start, own, number, False), strict=True):
            total += slope**2 / len(own)
    # A weight that moves no record of its own says nothing, and must not seem to say everything.
    floor = 1e-3 * torch.cat([n.flatten() for n in noise]).mean()
    weight = [1 / (n + floor) for n in noise]
    step = [torch.zeros_like(value) for value in start]
    for _ in range(SEPARATING_STEPS):
        moved = [(w + share * d).requires_grad_() for w, d in zip(start, step, strict=True)]
        with torch.enable_grad():
            told = [
                torch.log(_weighed(_slopes(module, names, moved, targets, z, True), weight))
                for z in range(len(targets))
            ]
            uphill = torch.autograd.grad(torch.stack(told).sum(), moved)
        size = torch.sqrt(_weighed(uphill, [torch.ones_like(g) for g in uphill]))
        if not torch.isfinite(size) or size == 0:
            break
        step = [d + longest / SEPARATING_STEPS * g / size for d, g in zip(step, uphill, strict=True)]
    return shortened({name: d.cpu().numpy() for name, d in zip(names, step, strict=True)}, longest)


def _weighed(slopes: Sequence[torch.Tensor], weight: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return Σ weight · slope² over all arrays, a number above 0."""
    import torch

    parts = [(slope**2 * by).sum() for slope, by in zip(slopes, weight, strict=True)]
    return torch.stack(parts).sum() + torch.finfo(torch.float32).tiny


def _slopes(
    module: torch.nn.Module,
    names: list[str],
    values: list[torch.Tensor],
    records: Records,
    z: int,
    graph: bool,
) -> tuple[torch.Tensor, ...]:
    """Return ∇ℓ(w; z), an array per name, of record number ``z``; graph: to be differentiated again."""
    import torch
    from torch.func import functional_call

    device = values[0].device
    features = torch.tensor(records.features[z : z + 1], device=device)
    label = torch.tensor(records.labels[z : z + 1], device=device)
    with torch.enable_grad():
        leaves = values if graph else [value.detach().requires_grad_() for value in values]
        answer = functional_call(module, dict(zip(names, leaves, strict=True)), (features,))
        loss = torch.nn.functional.cross_entropy(answer, label)
        return torch.autograd.grad(loss, leaves, create_graph=graph)


def within_budget(
    step: Weights, learnt: Weights, least_cosine: float, allowed: Callable[[Weights], bool]
) -> Weights:
    """Return the longest of ``step``, half of it, a quarter, … that keeps the budget, or a step of nothing.

    learnt: the honest update u; least_cosine: of u + step with u; allowed: whether utility allows a step
    """
    for _ in range(8):
        answer = {name: u + step.get(name, 0) for name, u in learnt.items()}
        if cosine(answer, learnt) >= least_cosine and allowed(step):
            return step
        step = {name: array / 2 for name, array in step.items()}
    return {name: 0 * array for name, array in step.items()}


def loss_after(module: torch.nn.Module, step: Weights, records: Records) -> float:
    """Return the mean loss of the records, in nats, where ``module`` had made the step."""
    import torch
    from torch.func import functional_call

    module.eval()
    state = {name: value.detach() for name, value in module.named_parameters()}
    device = next(iter(state.values())).device
    moved = state | {name: state[name] + torch.tensor(change, device=device) for name, change in step.items()}
    features, labels = (torch.tensor(a, device=device) for a in (records.features, records.labels))
    with torch.no_grad():
        answers = functional_call(module, moved, (features,))
        return float(torch.nn.functional.cross_entropy(answers, labels))


def cosine(first: Weights, second: Weights) -> float:
    """Return the cosine of the angle between all arrays together; 1 where one of them is 0."""
    product = sum(float(np.sum(first[name].astype(np.float64) * second[name])) for name in first)
    lengths = length(first) * length(second)
    return product / lengths if lengths else 1.0


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
    if settings.active == "separation":
        return (
            f"{own} moves its update to where the next round should show them: by at most "
            f"{settings.ascent_limit:g} times its length, to a cosine of {settings.least_cosine:g} at the "
            f"least, for {settings.most_loss:g} nats of loss at the most. "
        )
    if settings.active == "poisoning":
        copies = settings.poison_copies
        added = "a mislabelled copy" if copies == 1 else f"{copies} mislabelled copies"
        return f"{own} trains on {added} of each. "
    return ""
