"""Canaries, and how an auditor scores them; nothing here knows which ones were put in.

Gradient canaries (Nasr et al. 2021, 2023) are the worst case that DP-SGD has to withstand. They are records
of an ordinary training run, whose gradients the run computes, clips and sums like any other's; only the model
has one more input for each of them, which is zero for all other records. A canary's gradient then lies along
an axis of its own (a Dirac canary) and is far longer than the clipping norm C, so that it counts exactly C
after clipping, and not C where clipping is wrong. The learning rate is so small that the weights, and with
them the gradients, stay where they are: it is post-processing, and does not touch ε.

Who sees every step reads off it, in units of C, x_ti = b_ti + N(0, σ²), with b_ti = 1 where canary i is in
the data and in the batch of step t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.records import Records
from fedsim.models import linear_stack
from fedsim.scenario import TrainingSettings

if TYPE_CHECKING:
    from fedsim.privacy import Plan

Score = Literal["likelihood ratio", "repetition"]

LENGTH = 100.0
"""How many times longer than the clipping norm, and than its other parts, a canary's own gradient is."""

STILL = 1e-3
"""How far at most, in units of a hidden unit's input, a whole run moves what a canary's gradient rests on."""


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
    """

    module: nn.Module
    records: Records
    canaries: Records
    settings: TrainingSettings
    direction: Tensor
    position: int

    def with_canaries(self, inside: np.ndarray) -> Records:
        """Return the run's records, the canaries of ``inside`` (m,) bool among them."""
        return Records.concatenate([self.records, self.canaries.take(inside)])


def gradient_canaries(module: nn.Module, records: Records, m: int, plan: Plan) -> GradientCanaries:
    """Return ``m`` gradient canaries for a run of ``plan`` on ``records``; ``module`` is left as it is.

    Plain stacks of linear layers stay such, and take the same path; any other module gets one linear layer
    beside it, from the canaries' inputs straight to the logits.

    Raises:
        ValueError: the module's gradient does not depend on its inputs.
    """
    d = int(np.prod(records.shape))
    wide, position = _widened(module, records.shape, m)
    label, direction, rest = _gradient_of_one(wide, position, d, m)
    size = LENGTH * max(plan.clipping_norm, rest) / float(direction.norm())
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
    import copy

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
    """Return, of a canary of input 1: the best label, the gradient (h,) in its column, the whole one's norm."""
    x = torch.zeros(1, d + m)
    x[0, d] = 1.0
    found = []
    logits = module.eval()(x)
    parameters = [p for p in module.parameters() if p.requires_grad]
    for label in range(logits.shape[1]):
        loss = functional.cross_entropy(logits, torch.tensor([label]))
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        column = gradients[position][:, -m].clone()
        total = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        found.append((float(column.norm()), label, column, total))
    length, label, column, total = max(found, key=lambda entry: entry[0])
    if length == 0:
        raise ValueError("no gradient canaries: the model's gradient does not depend on its inputs")
    return label, column, total


class Readout:
    """What the white box reads off a run, step by step; a party hands it its parameters as `watch`.

    m: canaries. The scores take memory for one round's steps, not for all.
    """

    def __init__(self, world: GradientCanaries, plan: Plan) -> None:
        self.world, self.plan = world, plan
        self.m = len(world.canaries)
        self._before: Tensor | None = None
        self._ratio = np.zeros(self.m)
        self._steps: list[list[np.ndarray]] = []  # a round's x, each (m,)

    def start_round(self) -> None:
        """Tell that the next parameters are those before a round's first step."""
        self._before = None
        self._steps.append([])

    def watch(self, parameters: Sequence[Tensor]) -> None:
        """Read one step: x_ti = ⟨w_{t−1} − w_t, u_i⟩ (q·n) / (lr C)."""
        now = parameters[self.world.position][:, -self.m :].detach().cpu().clone()
        if self._before is not None:
            gain = self.plan.expected_batch / (self.world.settings.lr * self.plan.clipping_norm)
            moved = (self.world.direction @ (self._before - now)).double().numpy() * gain
            self._ratio += likelihood_ratio(moved, self.plan.sample_rate, self.plan.noise_multiplier)
            self._steps[-1].append(moved)
        self._before = now

    def scores(self) -> dict[Score, np.ndarray]:
        """Return each score of the canaries, (m,) float64, higher means 'in'."""
        return {"likelihood ratio": self._ratio, "repetition": repetition(np.array(self._steps))}


def likelihood_ratio(x: np.ndarray, sample_rate: float, noise_multiplier: float) -> np.ndarray:
    """Return log p(x | in) − log p(x | out) of one step, elementwise: no score beats it (Neyman & Pearson).

    log(1 − q + q exp((2x − 1) / 2σ²)), the privacy loss of the Poisson-subsampled Gaussian. Without noise σ
    is taken to be 1e-3, or every score would be infinite.
    """
    sigma = max(noise_multiplier, 1e-3)
    exponent = (2 * x - 1) / (2 * sigma**2)
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-sample_rate), np.log(sample_rate) + exponent)


def repetition(x: np.ndarray) -> np.ndarray:
    """Return a score (m,) that is of use where noise repeats: between rounds, or between a round's steps.

    x: (rounds, steps, m). The log variances between the rounds, at the same step, and between the steps of a
    round; where the noise of one is always the same, its variance is that of the canary's own contributions.
    """
    between_rounds, between_steps = x.var(axis=0).mean(axis=0), x.var(axis=1).mean(axis=0)
    return np.log(between_rounds + 1e-9) + np.log(between_steps + 1e-9)
