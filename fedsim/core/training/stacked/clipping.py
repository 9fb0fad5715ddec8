"""What DP-SGD (`fedsim.core.training.dp`) adds to a step of M models: noise, and norms that may adapt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.core.privacy.plan import Plan
from fedsim.core.training.stacked.batches import Batches, Gradient, Noise, Stack
from fedsim.core.training.stacked.noise import NoiseSource


@dataclass(frozen=True, eq=False)
class StackedPlans:
    """The plans of M private models, a number for each, (M,) float32.

    deviation: of the noise on the mean gradient over C, z_Δ / (q n), float64
    adapts: (M,) bool, whether C moves
    """

    expected_batch: Tensor
    deviation: Tensor
    adapts: Tensor
    count_noise: Tensor
    quantile: Tensor
    rate: Tensor

    @staticmethod
    def of(plans: Sequence[Plan], counts: Sequence[int]) -> StackedPlans:
        """Return these plans, each for as many neighbouring models as ``counts`` says."""
        repeats = torch.tensor(counts)

        def per_model(numbers: Sequence[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float32).repeat_interleave(repeats)

        batch = per_model([plan.expected_batch for plan in plans])
        return StackedPlans(
            expected_batch=batch,
            deviation=per_model([plan.gradient_noise for plan in plans]).double() / batch,
            adapts=per_model([plan.clipping == "adaptive" for plan in plans]) > 0,
            count_noise=per_model([plan.count_noise for plan in plans]),
            quantile=per_model([plan.clipping_quantile for plan in plans]),
            rate=per_model([plan.clipping_rate for plan in plans]),
        )


class Clipping:
    """Clips and adds noise in every step of M models, as their plans say.

    norm: C of the next step, (M,) float64
    expected_batch: q n, (M,) float32
    """

    def __init__(
        self, plans: StackedPlans, norm: Tensor, stack: Stack, source: NoiseSource, flat: Tensor
    ) -> None:
        """Take C of the first step as ``norm``; write noise into ``flat``, (M, ``source.size``) float32."""
        self.norm = norm
        self.expected_batch = plans.expected_batch
        self._plans, self._source, self._flat = plans, source, flat
        self._any_adapts = bool(plans.adapts.any())
        self._any_noise = bool(plans.deviation.any()) or self._any_adapts
        # A number for every parameter, and the last one for the count.
        self._pieces = stack.split(flat[:, :-1])
        self._count = torch.empty(0)

    def applied_to(self, batches: Batches, numbers: np.ndarray) -> Batches:
        """Return a step's batches of the first n models with clipping norms and noise.

        numbers: (n,) uint64, from which the noise is made
        """
        n = len(batches.rows)
        batches = replace(batches, clipping_norm=self.norm[:n, None].float())
        if not self._any_noise:  # as where the adversary has the noise in its covariance instead
            return batches
        signs = self._source.draw(numbers, out=self._flat[:n])
        self._count = self._flat[:n, -1] * signs
        pieces = self._pieces if n == len(self._flat) else [piece[:n] for piece in self._pieces]
        noise = Noise(pieces, signs * (self._plans.deviation[:n] * self.norm[:n]).float())
        return replace(batches, noise=noise)

    def follow(self, gradient: Gradient, weight: Tensor, ended: Tensor) -> None:
        """Move the norms that adapt after a step (Andrew et al. 2021, algorithm 1), see `AdaptiveNorm`.

        weight: (n, B), 0 where there is no record; ended: (M,) bool, whose round has ended
        """
        if not self._any_adapts:
            return
        n, plans, present = len(weight), self._plans, weight > 0
        # (n, B); what pads a batch has a gradient too, and is not counted.
        shorter = (gradient.norms <= self.norm[:n, None].float()) & present
        count = shorter.sum(1) - present.sum(1) / 2 + plans.count_noise[:n] * self._count
        # b̃ of `Plan.next_clipping_norm`, (n,): noisy, so that it may leave [0, 1].
        share = (0.5 + count / plans.expected_batch[:n]).clamp(0, 1)
        moved = self.norm[:n] * torch.exp(-plans.rate[:n] * (share - plans.quantile[:n])).double()
        # A model that has stopped early makes its steps in vain: its C stays.
        self.norm[:n] = torch.where(plans.adapts[:n] & ~ended[:n], moved, self.norm[:n])


def noise_source(key: tuple[int, int], stack: Stack) -> NoiseSource:
    """Return the source of a step's noise: one number per parameter, and one for the count of gradients.

    key: (seed, game), see `NoiseSource`
    """
    return NoiseSource(key, stack.parameters + 1)
