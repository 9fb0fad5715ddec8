"""Canaries, and how an auditor scores them; nothing here knows which ones were put in.

Gradient canaries (Nasr et al. 2021, 2023) are the worst case that DP-SGD has to withstand. They are records
of an ordinary training run, whose gradients the run computes, clips and sums like any other's; only the model
has one more input for each of them, which is zero for all other records. A canary's gradient then lies along
an axis of its own (a Dirac canary) and is far longer than the clipping norm C, so that it counts exactly C
after clipping, and not C where clipping is wrong. The learning rate is so small that the weights, and with
them the gradients, stay where they are: it is post-processing, and does not touch ε.

Who sees every step reads off it, in units of C, x_ti = b_ti + N(0, σ²), with b_ti = 1 where canary i is in
the data and in the batch of step t.

A lone canary, for runs that hold no other, is an extreme record of the party's own kind, mislabelled: its
gradient is spread over all layers, so that clipping each for itself, or leaving out the noise of one, shows.

Where the unit of DP-SGD is a person, a canary is one: she has ``each`` records alike, which would count for
more than one where they are clipped, or drawn, one by one.

A participant sees the released models alone. Its canaries are records at the edges of what the party's
columns hold, with labels drawn at random: only having been trained on them explains a model that knows them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.signals import outputs
from attacks.signals.gradients import gradient_products
from fedsim.core.data.records import Records
from fedsim.core.models.layers import linear_stack
from fedsim.core.scenario.training import TrainingSettings

if TYPE_CHECKING:
    from attacks.views.participant import ParticipantView
    from fedsim.core.privacy.plan import Plan

LENGTH = 100.0
"""How many times longer than the clipping norm, and than its other parts, a gradient canary's is."""

ROOM = 100.0
"""How many times more, where the clipping norm adapts and may grow."""

LONE_LENGTH = 3.0
"""How many times longer than the clipping norm a lone canary's is at least; more would starve the biases."""

STILL = 1e-3
"""How far at most, in units of a hidden unit's input, a whole run moves what a canary's gradient rests on."""

NEARLY_STILL = 1e-5
"""Noise of one step over the mean weight, beside a lone canary: hundreds of times what float32 rounds off."""

DRAWS = 8
"""Lone canaries to choose from."""


@dataclass(frozen=True)
class GradientCanaries:
    """A training run with canaries.

    module: the party's model with an input for each canary, whose weights are zero at first
    records: the party's own, the new inputs zero
    canaries: m records, to be added to those or not
    settings: local SGD with a learning rate that keeps the weights where they are
    direction: (h,) float32, the unit vector along which a canary's gradient lies in its own input's column
    position: index in ``module.parameters()`` of the matrix (h, inputs) of that column; the canaries' inputs
        are its last m columns
    each: records of a canary, more than one only where it is a person
    """

    module: nn.Module
    records: Records
    canaries: Records
    settings: TrainingSettings
    direction: Tensor
    position: int
    each: int = 1

    def with_canaries(self, inside: np.ndarray) -> Records:
        """Return the run's records, and then those of the canaries of ``inside`` (m,) bool."""
        return Records.concatenate([self.records, self.canaries.take(planted(inside, self.each))])

    def look(self, parameters: Sequence[Tensor]) -> np.ndarray:
        """Return what is looked at of the parameters: ⟨w, u_i⟩ for every canary's direction u_i, (m,)."""
        columns = parameters[self.position][:, -len(self.canaries) :].detach()
        return (self.direction.to(columns.device) @ columns).cpu().numpy()

    def read(self, moved: np.ndarray) -> np.ndarray:
        """Return the x of a step, but for its scale, from how far what was looked at moved."""
        return moved


def planted(inside: np.ndarray, each: int) -> np.ndarray:
    """Return the canary that every planted record is of, (n,) int, ``each`` times; inside: (m,) bool."""
    return np.repeat(np.flatnonzero(inside), each)


def gradient_canaries(
    module: nn.Module, records: Records, m: int, plan: Plan, each: int = 1
) -> GradientCanaries:
    """Return ``m`` gradient canaries for a run of ``plan`` on ``records``; ``module`` is left as it is.

    Plain stacks of linear layers stay such, and take the same path; any other module gets one linear layer
    beside it, from the canaries' inputs straight to the logits.

    Raises:
        ValueError: the module's gradient does not depend on its inputs.
    """
    d = int(np.prod(records.shape))
    wide, position = _widened(module, records.shape, m)
    label, direction, rest = _gradient_of_one(wide, position, d, m)
    size = LENGTH * max(_room(plan) * plan.clipping_norm, rest) / float(direction.norm())
    features = np.zeros((m, d + m), dtype=np.float32)
    features[:, d:] = size * np.eye(m, dtype=np.float32)
    own = np.pad(records.features.reshape(len(records), d), ((0, 0), (0, m)))
    # All steps together, were each to move a weight by C plus three deviations of its noise.
    steps = plan.rounds * plan.steps_per_round
    far = steps * plan.clipping_norm * (1 + 3 * plan.noise_multiplier) / plan.expected_batch
    return GradientCanaries(
        module=wide,
        records=Records(own.astype(np.float32), records.labels),
        canaries=Records(features, np.full(m, label, dtype=np.int64)),
        settings=TrainingSettings(lr=STILL / (size * far)),
        direction=direction / direction.norm(),
        position=position,
        each=each,
    )


class _Beside(nn.Module):
    """A module on the first inputs, plus a linear layer on the others."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...], classes: int, m: int) -> None:
        super().__init__()
        self.canaries = nn.Linear(m, classes, bias=False)
        self.module, self.shape = module, shape

    def forward(self, x: Tensor) -> Tensor:
        d = math.prod(self.shape)
        return self.module(x[:, :d].reshape(-1, *self.shape)) + self.canaries(x[:, d:])


def _widened(module: nn.Module, shape: tuple[int, ...], m: int) -> tuple[nn.Module, int]:
    """Return a copy of ``module`` with ``m`` more inputs, and the position of the parameter they meet."""
    module = copy.deepcopy(module).cpu()
    layers = linear_stack(module)
    if layers is None:
        with torch.no_grad():
            classes = module.eval()(torch.zeros(2, *shape)).shape[1]
        beside = _Beside(module, shape, classes, m)
        nn.init.zeros_(beside.canaries.weight)
        return beside, 0
    first, rest = layers[0], [layer for layer in module.children() if type(layer) is not nn.Flatten][1:]
    wide = nn.Linear(first.in_features + m, first.out_features)
    with torch.no_grad():
        wide.weight.copy_(functional.pad(first.weight, (0, m)))
        wide.bias.copy_(first.bias)
    return nn.Sequential(wide, *rest), 0


def _gradient_of_one(module: nn.Module, position: int, d: int, m: int) -> tuple[int, Tensor, float]:
    """Return, of a canary of input 1: the best label, the gradient (h,) in its column, its whole norm."""
    x = torch.zeros(1, d + m)
    x[0, d] = 1.0
    by_label = []
    for label in range(module.eval()(x).shape[1]):
        gradients = _gradient(module, x, label)
        column = gradients[position][:, -m].clone()
        by_label.append((float(column.norm()), label, column, _norm(gradients)))
    length, label, column, total = max(by_label, key=lambda entry: entry[0])
    if length == 0:
        raise ValueError("no gradient canaries: the model's gradient does not depend on its inputs")
    return label, column, total


def _gradient(module: nn.Module, x: Tensor, label: int) -> list[Tensor]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    loss = functional.cross_entropy(module(x), torch.tensor([label], device=x.device))
    return list(torch.autograd.grad(loss, parameters))


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


@dataclass(frozen=True)
class LoneCanary:
    """A training run with one canary, or without.

    module: the party's model
    records: one record whose gradient is zero, since a party without records does not train
    canaries: the canary
    settings: local SGD with a learning rate that all but keeps the weights where they are
    direction: the canary's gradient as a unit vector, cut into the trainable parameters
    each: as of `GradientCanaries`
    """

    module: nn.Module
    records: Records
    canaries: Records
    settings: TrainingSettings
    direction: tuple[Tensor, ...]
    each: int = 1

    def with_canaries(self, inside: np.ndarray) -> Records:
        """Return the run's record, and then those of the canary where ``inside`` (1,) bool says so."""
        return Records.concatenate([self.records, self.canaries.take(planted(inside, self.each))])

    @cached_property
    def signals(self) -> np.ndarray:
        """Return what the canary adds to every x of `read`, in units of C: 1, then the norm of each part."""
        return np.array([1.0, *(float(part.norm()) for part in self.direction)])

    def look(self, parameters: Sequence[Tensor]) -> np.ndarray:
        """Return all parameters as one vector (p,): next to them a step is small, so it is taken first."""
        return torch.cat([p.detach().flatten() for p in parameters]).cpu().numpy()

    def read(self, moved: np.ndarray) -> np.ndarray:
        """Return ⟨moved, u⟩, and for each parameter the same with its part of u, scaled to norm 1."""
        parts = np.add.reduceat(moved * self._flat, self._starts)
        return np.concatenate([[parts.sum()], parts / np.maximum(self.signals[1:], 1e-12)])

    @cached_property
    def _flat(self) -> np.ndarray:
        return self.look(self.direction)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(part.numel() for part in self.direction[:-1])])


def lone_canary(
    module: nn.Module, shape: tuple[int, ...], plan: Plan, stream: np.random.Generator, each: int = 1
) -> LoneCanary:
    """Return a lone canary for a run of ``plan``; ``module`` is left as it is.

    Of several drawn, the one whose gradient is spread most evenly over the parameters: Σ_l ‖g_l‖ / ‖g‖ is
    what clipping each for itself would let through.
    """
    module = copy.deepcopy(module).cpu().eval()
    drawn = []
    for _ in range(DRAWS):
        unit = stream.normal(size=(1, *shape)).astype(np.float32)
        x, label = _extreme(module, unit, LONE_LENGTH * _room(plan) * plan.clipping_norm)
        gradients = _gradient(module, torch.from_numpy(x), label)
        spread = sum(_norm([g]) for g in gradients) / max(_norm(gradients), 1e-12)
        drawn.append((spread, x, label, gradients))
    _, x, label, gradients = max(drawn, key=lambda entry: entry[0])
    weights = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])
    step = max(plan.noise_multiplier, 0.1) * plan.clipping_norm / plan.expected_batch
    return LoneCanary(
        module=module,
        records=_silent(module, stream.normal(size=(1, *shape)).astype(np.float32)),
        canaries=Records(x, np.array([label])),
        settings=TrainingSettings(lr=NEARLY_STILL * float(weights.abs().mean()) / step),
        direction=tuple(g / _norm(gradients) for g in gradients),
        each=each,
    )


def _room(plan: Plan) -> float:
    return ROOM if plan.clipping == "adaptive" else 1.0


def _extreme(module: nn.Module, unit: np.ndarray, length: float) -> tuple[np.ndarray, int]:
    """Return ``unit`` times what makes its gradient as long as ``length``, and its least likely label."""
    for size in 2.0 ** np.arange(-3, 30):
        x = (size * unit).astype(np.float32)
        with torch.no_grad():
            label = int(module(torch.from_numpy(x)).argmin())
        if _norm(_gradient(module, torch.from_numpy(x), label)) >= length:
            break
    return x, label


def _silent(module: nn.Module, unit: np.ndarray) -> Records:
    """Return ``unit`` times what makes the model so sure of its label that the gradient is zero."""
    for size in 2.0 ** np.arange(30):
        x = (size * unit).astype(np.float32)
        with torch.no_grad():
            label = int(module(torch.from_numpy(x)).argmax())
        if _norm(_gradient(module, torch.from_numpy(x), label)) == 0:
            break
    return Records(x, np.array([label]))


class Readout:
    """What the white box reads off a run, step by step; a party hands it its parameters as `watch`."""

    def __init__(self, world: GradientCanaries | LoneCanary, plan: Plan) -> None:
        self.world, self.plan = world, plan
        self._before: tuple[np.ndarray, float] | None = None
        self._rounds: list[list[np.ndarray]] = []

    def start_round(self) -> None:
        """Tell that the next parameters are those before a round's first step."""
        self._before = None
        self._rounds.append([])

    def watch(self, parameters: Sequence[Tensor], next_norm: float) -> None:
        """Read one step: x_t = ⟨w_{t−1} − w_t, u⟩ (q·n) / (lr C_t) for every direction u of the world."""
        now = self.world.look(parameters)
        if self._before is not None:
            before, norm = self._before
            gain = self.plan.expected_batch / (self.world.settings.lr * norm)
            self._rounds[-1].append(self.world.read(before - now) * gain)
        self._before = now, next_norm

    def steps(self) -> np.ndarray:
        """Return x, (rounds, steps, directions) float64."""
        return np.array(self._rounds, dtype=np.float64)


def likelihood_ratio(
    x: np.ndarray, sample_rate: float, noise_multiplier: float, signal: float | np.ndarray = 1.0
) -> np.ndarray:
    """Return log p(x | in) − log p(x | out) of one step, elementwise: no score beats it (Neyman & Pearson).

    log(1 − q + q exp((2xs − s²) / 2σ²)), the privacy loss of the Poisson-subsampled Gaussian, s being what
    the canary adds to x where it is drawn. Without noise σ is taken to be 1e-3, or all scores were infinite.
    """
    sigma = max(noise_multiplier, 1e-3)
    exponent = (2 * x * signal - np.square(signal)) / (2 * sigma**2)
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-sample_rate), np.log(sample_rate) + exponent)


def repetition(x: np.ndarray) -> np.ndarray:
    """Return a score (m,) that is of use where noise repeats: between rounds, or between a round's steps.

    x: (rounds, steps, m). The log variances between the rounds, at the same step, and between the steps of a
    round; where the noise of one is always the same, its variance is that of the canary's own contributions.
    """
    between_rounds, between_steps = x.var(axis=0).mean(axis=0), x.var(axis=1).mean(axis=0)
    return np.log(between_rounds + 1e-9) + np.log(between_steps + 1e-9)


def edge_records(like: Records, classes: int, m: int, stream: np.random.Generator) -> Records:
    """Return ``m`` canaries for a party: every value close to its column's least or greatest, any label.

    like: records whose ranges are taken; they are copied nowhere
    """
    low, high = like.features.min(axis=0), like.features.max(axis=0)
    # Beta(.3, .3) lies next to 0 or 1, but no two canaries are the same.
    share = stream.beta(0.3, 0.3, size=(m, *like.shape))
    features = np.clip((low + share * (high - low)).astype(np.float32), low, high)
    return Records(features, stream.integers(0, classes, m))


def participant_scores(view: ParticipantView, records: Records) -> dict[str, np.ndarray]:
    """Return what a participant can say of each canary from the models it was sent, (n,) float64 each.

    final loss: −ℓ(w_T; z). descent: Σ_t ⟨w_{t−1} − w_t, ∇ℓ(w_{t−1}; z)⟩, by how much the steps went down the
    canary's loss, over the rounds whose two models it saw.
    """
    loss = outputs.loss(outputs.logits(view.module(view.final_model), records.features), records.labels)
    descent = np.zeros(len(records))
    for t in view.trained_rounds:
        if t - 1 in view.models:
            before = view.models[t - 1]
            step = {name: array - view.models[t][name] for name, array in before.items()}
            descent += gradient_products(view.module(before), records, step)[0]
    return {"final loss": -loss, "descent": descent}
