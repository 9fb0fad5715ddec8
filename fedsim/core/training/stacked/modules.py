"""Any module without batch statistics and randomness, through `torch.func`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models.weights import exchanged
from fedsim.core.training import losses
from fedsim.core.training.stacked.batches import SIGNAL_ROWS, Batches, Noise, Parameters, PoolTensors


class StackedModule:
    """Any module without batch statistics and randomness, through `torch.func`.

    Parameters are (M, …) in the module's shapes; those that are frozen, and buffers, are shared constants.
    """

    rounds_alike = False

    def __init__(self, module: nn.Module, classes: int) -> None:
        self.module = module.train()
        self.hidden_widths: list[int] = []
        self._classes = classes
        self._trained = [name for name, p in module.named_parameters() if p.requires_grad]
        self._shapes = [module.get_parameter(name).shape for name in self._trained]
        self._constants = {k: v.detach() for k, v in exchanged(module).items() if k not in self._trained}
        self.parameters = sum(shape.numel() for shape in self._shapes)

    def load(self, state: Mapping[str, np.ndarray]) -> Parameters:
        """Return the trained parameters of one model, M = 1; keep the others as constants."""
        self._constants = {
            name: torch.as_tensor(state[name]).to(value.dtype) for name, value in self._constants.items()
        }
        return [torch.tensor(state[name], dtype=torch.float32)[None] for name in self._trained]

    def pieces(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the parameters themselves."""
        return list(parameters)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut (M, parameters) into pieces of the parameters' shapes."""
        pieces = flat.split([shape.numel() for shape in self._shapes], dim=1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def state(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return (M, …) by name, constants repeated."""
        trained = dict(zip(self._trained, pieces, strict=True))
        models = len(pieces[0])
        return {
            name: trained.get(name, value.detach().expand(models, *value.shape))
            for name, value in (exchanged(self.module) | self._constants).items()
        }

    def pool(self, records: Records) -> PoolTensors:
        """Return features (n + 1, …)."""
        features = torch.tensor(records.features, dtype=torch.float32)
        empty = torch.zeros_like(features[:1])
        return PoolTensors(torch.cat([features, empty]), functional.pad(torch.tensor(records.labels), (0, 1)))

    def logits(self, parameters: Parameters, pool: PoolTensors) -> Tensor:
        """Return (M, n, classes) float32, in evaluation mode, model after model."""
        parts = pool.features[:-1].split(SIGNAL_ROWS)
        self.module.eval()
        models = zip(*parameters, strict=True)  # one model's parameters at a time
        answers = [torch.cat([self.call(list(model), x) for x in parts]) for model in models]
        self.module.train()
        return torch.stack(answers)

    def logits_of(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return (M, R, classes) float32, in evaluation mode, model after model."""
        self.module.eval()
        models = zip(zip(*parameters, strict=True), features, strict=True)
        answers = [self.call(list(model), x) for model, x in models]
        self.module.train()
        return torch.stack(answers)

    def call(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """Return the logits of one model."""
        weights_of = dict(zip(self._trained, parameters, strict=True))
        return torch.func.functional_call(self.module, {**self._constants, **weights_of}, (x,))

    def trainer(self, parameters: Parameters, pool: PoolTensors) -> ModuleTrainer:
        """Return gradients by vmap(grad)."""
        return ModuleTrainer(self, parameters, pool)

    def floats(self, width: int, private: bool) -> int:
        """A guess, since activations are the module's own affair: 16 Ki per record."""
        return width * (2**14 + (self.parameters if private else 0)) + 2 * self.parameters


@dataclass(frozen=True)
class ModuleTrainer:
    """Gradients of M models of a `StackedModule`."""

    stack: StackedModule
    parameters: Parameters
    pool: PoolTensors

    def gradient(self, batches: Batches) -> ModuleGradient:
        """Return the gradients; see `Trainer`."""
        parameters = [p[: len(batches.rows)] for p in self.parameters]
        x, weight = self.pool.features[batches.rows], batches.weight  # (M, B, …), (M, B)
        if batches.mixed is not None:
            x = batches.mixed.apply(x, self.pool)
        # The cross-entropy takes labels, (B,), or targets, (B, classes).
        y = batches.labels if batches.targets is None else batches.targets
        if batches.clipping_norm is None:
            # Over models: parameters (M, …), x (M, B, …).
            gradients = torch.func.vmap(torch.func.grad(self._loss))(parameters, x, y, weight)
            return ModuleGradient(list(gradients), batches.noise, torch.empty(0))
        clipped = torch.func.vmap(self._clipped)
        gradients, norms = clipped(parameters, x, y, weight, batches.clipping_norm)
        return ModuleGradient(list(gradients), batches.noise, norms)

    def _loss(self, parameters: list[Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return (losses.per_record(self.stack.call(parameters, x), y) * weight).sum()

    def _clipped(
        self, parameters: list[Tensor], x: Tensor, y: Tensor, weight: Tensor, clipping_norm: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return one model's sum of clipped gradients, formed record by record, and their norms (B,)."""
        one = torch.ones(1)
        single = torch.func.grad(lambda p, a, b: self._loss(p, a[None], b[None], one))
        # Inside the vmap over models this one runs over records: (B, …) a parameter.
        gradients = torch.func.vmap(single, in_dims=(None, 0, 0))(parameters, x, y)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (clipping_norm / (norms + 1e-6)).clamp(max=1.0) * weight  # (B,)
        return [torch.tensordot(factor, g, dims=1) for g in gradients], norms


@dataclass(frozen=True)
class ModuleGradient:
    """Gradients of `StackedModule`, formed."""

    gradients: list[Tensor]
    noise: Noise | None
    norms: Tensor

    def add_to(self, i: int, target: Tensor, beta: float, alpha: float) -> None:
        """Set ``target`` to β·target + α·(gradient of the i-th parameter + its noise)."""
        _scale(target, beta).add_(self.gradients[i], alpha=alpha)
        if self.noise is not None:
            self.noise.add_to(target, i, alpha)


def _scale(target: Tensor, beta: float) -> Tensor:
    # As in BLAS, β = 0 overwrites whatever was there, NaN included.
    return target.zero_() if beta == 0 else target.mul_(beta) if beta != 1 else target
