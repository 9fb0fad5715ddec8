"""The worst case from a participant's seat: crafted initial weights, and one crafted canary.

DP-SGD's guarantee holds for any initial weights and any record, so an auditor may choose both. The first
global model fits every record of the federation, whose gradients are then next to nothing: what moves the
models that a participant is sent is the canary and the noise (Annamalai & De Cristofaro 2024, *Nearly tight
black-box auditing of differentially private machine learning*, section 4). The canary is chosen by rehearsal,
as the record that keeps pulling with the whole clipping norm however far the noise has carried the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.signals import outputs
from attacks.signals.gradients import gradient_products
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.files import write_arrays
from fedsim.core.models import zoo
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.models.weights import weights_of
from fedsim.core.run_directory import INITIAL, RunDirectory

if TYPE_CHECKING:
    from attacks.views.participant import ParticipantView
    from fedsim.core.privacy.plan import Plan

FITTED = 1e-3
"""Mean loss at which a record's gradient is next to nothing beside the clipping norm."""

MOST_STEPS = 3000
"""Of Adam at most, where the records cannot be fitted so well."""

DIRECTIONS = 8
"""Directions to choose the canary from; it is tried at each length, too."""

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""How many times longer than the clipping norm a canary's first gradient is at least."""

REHEARSALS = 2
"""Of the whole plan for each candidate, each with noise of its own."""

LONGEST = 200
"""Steps of a rehearsal at most: a longer plan is rehearsed with as much movement in fewer steps."""


def craft(run: RunDirectory, names: Sequence[str], party: str, plan: Plan) -> Records:
    """Write worst-case initial weights into a prepared run, and return the canary for them, one record.

    Both rest on the records of game 0, the plan and the scenario's seed; on no coin of the audit.

    Raises:
        InputError: the records are letters.
    """
    if run.scenario.model.name in LANGUAGE:
        raise InputError("--worst-case: it crafts a record of numbers, and letters are of tokens")
    parties = [read_party(run.party_folder(0, partition, name)) for partition, name in enumerate(names)]
    everyone = Records.concatenate(
        [records for of_party, _ in parties for records in (of_party.train, of_party.heldout)]
    )
    scenario = run.scenario
    seed = rng.integer(scenario.seed, "initial weights")
    module = zoo.build(scenario.model, everyone.shape, parties[0][1].classes, seed=seed)
    fit(module, everyone)
    write_arrays(run.path / INITIAL, weights_of(module))
    stream = rng.generator(scenario.seed, "audit canaries", party=party)
    return crafted_canary(module, everyone.shape, plan, scenario.training_of(party).lr, stream)


def fit(module: nn.Module, records: Records) -> float:
    """Train ``module`` in place on all records at once (Adam), until it fits them; return the last loss."""
    x, y = torch.from_numpy(records.features), torch.from_numpy(records.labels)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    module.train()
    loss = torch.tensor(torch.inf)
    for _ in range(MOST_STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        if float(loss.detach()) < FITTED:
            break
        loss.backward()
        optimizer.step()
    module.eval()
    return float(loss.detach())


def crafted_canary(
    module: nn.Module, shape: tuple[int, ...], plan: Plan, lr: float, stream: np.random.Generator
) -> Records:
    """Return the record, of some drawn, that pulls hardest throughout the plan; ``module`` is left as it is.

    lr: of the party's local SGD
    """
    best, most = None, -1.0
    for _ in range(DIRECTIONS):
        unit = stream.normal(size=(1, *shape)).astype(np.float32)
        for length in LENGTHS:
            canary = _stretched(module, unit, length * plan.clipping_norm)
            pull = float(np.mean([_pull(module, canary, plan, lr, stream) for _ in range(REHEARSALS)]))
            if pull > most:
                best, most = canary, pull
    assert best is not None
    return best


def _stretched(module: nn.Module, unit: np.ndarray, length: float) -> Records:
    """Return ``unit`` times what makes its gradient as long as ``length``, with its least likely label."""
    for size in 2.0 ** np.arange(-3, 30, 0.5):
        x = (size * unit).astype(np.float32)
        with torch.no_grad():
            label = int(module(torch.from_numpy(x)).argmin())
        canary = Records(x, np.array([label]))
        if float(torch.cat([g.flatten() for g in _gradient(module, canary)]).norm()) >= length:
            break
    return canary


def _pull(module: nn.Module, canary: Records, plan: Plan, lr: float, stream: np.random.Generator) -> float:
    """Return the mean over the steps of a rehearsal of min(‖g‖, C)² / C², 1 where the canary always pulls.

    The rehearsal is DP-SGD on the canary alone, drawn with its sample rate: w ← w − lr (b g + σC N) / qn.
    """
    module = copy.deepcopy(module).eval()
    steps = plan.rounds * plan.steps_per_round
    rehearsed = min(steps, LONGEST)
    stride = steps / rehearsed  # a sum of so many steps: noise grows with its root
    noise = torch.Generator().manual_seed(int(stream.integers(2**31)))
    deviation = plan.noise_multiplier * plan.clipping_norm * stride**0.5
    total = 0.0
    for drawn in stream.binomial(1, plan.sample_rate, size=rehearsed):
        gradient = _gradient(module, canary)
        norm = float(torch.cat([g.flatten() for g in gradient]).norm())
        total += min(norm / plan.clipping_norm, 1.0) ** 2
        share = stride * drawn * min(1.0, plan.clipping_norm / max(norm, 1e-12))
        with torch.no_grad():
            for parameter, g in zip(_trainable(module), gradient, strict=True):
                moved = share * g + deviation * torch.randn(g.shape, generator=noise)
                parameter.sub_(moved, alpha=lr / plan.expected_batch)
    return total / rehearsed


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _gradient(module: nn.Module, record: Records) -> list[Tensor]:
    logits = module(torch.from_numpy(record.features))
    loss = functional.cross_entropy(logits, torch.from_numpy(record.labels))
    return list(torch.autograd.grad(loss, _trainable(module)))


def scores(view: ParticipantView, canary: Records, clipping_norm: float) -> dict[str, np.ndarray]:
    """Return what a participant can say of the canary from the models it was sent, (1,) float64 each.

    clipped descent: Σ_t ⟨w_{t−1} − w_t, g_t min(1, C / ‖g_t‖)⟩ with g_t = ∇ℓ(w_{t−1}; z): the filter matched
    to what DP-SGD lets through of the canary. final loss: −ℓ(w_T; z).
    """
    loss = outputs.loss(outputs.logits(view.module(view.final_model), canary.features), canary.labels)
    descent = np.zeros(len(canary))
    for t in view.trained_rounds:
        if t - 1 in view.models:
            before = view.models[t - 1]
            step = {name: array - view.models[t][name] for name, array in before.items()}
            product, norm = gradient_products(view.module(before), canary, step)
            descent += product * np.minimum(1.0, clipping_norm / np.maximum(norm, 1e-12))
    return {"clipped descent": descent, "final loss": -loss}
