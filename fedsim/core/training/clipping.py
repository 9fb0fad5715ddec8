"""The sum of a batch's clipped per-record gradients, in three ways that agree up to float rounding.

Written out for plain stacks of linear layers and ReLU; and for any module Opacus' per-sample gradients, or
only their norms ('ghost clipping', Lee & Kifer 2021, Li et al. 2022), for which a batch is differentiated
twice.

All of a step of DP-SGD that sees a record is here; the noise is `core.training.dp`'s. The three ways have the
same methods (`ClippedSum`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsim.core.models.language import LanguageModel
from fedsim.core.models.layers import linear_stack
from fedsim.core.models.private import ghost_problem
from fedsim.core.training import losses
from fedsim.core.training.draws import Draws
from fedsim.core.training.linear_stack import LinearStack
from fedsim.core.training.optimizers import add_penalties, flat_optimizer, torch_optimizer
from fedsim.core.training.steps import Gradients, LocalTraining

LARGE = 2**20
"""Numbers in a batch's per-sample gradients of linear layers from which on 'auto' does not form them.

Measured on a CPU (one thread, best of six): at 10⁵ forming them was a quarter quicker, at 6·10⁵ as quick, at
10⁶ to 4·10⁷ ghost clipping was 1.7 to 28 times as quick. Convolutions gain nothing (0.75 to 1.0).
"""


class ClippedSum(Protocol):
    """A module in training: the clipped sum of a batch, and the step made with it.

    trained: the module as it is after every step, once `store` was called, for early stopping to measure
    noise: one tensor per trained parameter, to be filled with the step's noise
    """

    trained: nn.Module
    noise: list[Tensor]

    def write(self, number: int, x: Tensor, target: Tensor, clipping_norm: float) -> Tensor:
        """Form the clipped sum of step ``number``; return the gradients' norms (B,) before clipping."""

    def step(self, expected_batch: float) -> None:
        """Step along (sum + `noise`) / ``expected_batch``, penalties added."""

    def parameters(self) -> Sequence[Tensor]:
        """Return the trained parameters as they are now, in the module's order."""

    def store(self) -> None:
        """Write the parameters into `trained`, where they live elsewhere."""


class WrittenOut:
    """A linear stack: see `LinearStack`."""

    def __init__(self, module: nn.Module, local: LocalTraining, draws: Draws) -> None:
        self._stack = LinearStack(linear_stack(module) or (), local.defence.dropout)
        self._local, self._draws = local, draws
        self._start = self._stack.flat.clone()
        self._update = flat_optimizer(self._stack.flat, local.settings)
        self.trained = module
        self.noise = [torch.empty_like(p) for p in module.parameters()]
        self.parameters = self._stack.parameters
        self.store = self._stack.store

    def write(self, number: int, x: Tensor, target: Tensor, clipping_norm: float) -> Tensor:
        """Form the clipped sum; see `ClippedSum`."""
        masks = self._stack.masks(self._draws, number, len(x))
        return write_clipped_sum(self._stack, x, target, clipping_norm, masks)

    def step(self, expected_batch: float) -> None:
        """Step; see `ClippedSum`."""
        stack, local = self._stack, self._local
        # Flat, in the stack's own order of numbers. Penalties come after the noise: they see no record.
        gradient = stack.gradient.add_(stack.in_layout(self.noise)).div_(expected_batch)
        add_penalties(gradient, stack.flat, self._start, local.proximal_mu, local.defence.l1)
        self._update(gradient)


class ByOpacus:
    """Any module, on a copy that Opacus has wrapped, since it leaves attributes on layers and parameters.

    trained: that copy; `finish` copies its state into the module itself
    """

    def __init__(self, module: nn.Module, local: LocalTraining, ghost: bool) -> None:
        from opacus import GradSampleModule
        from opacus.grad_sample import GradSampleModuleFastGradientClipping

        wrap = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
        self._module, self._local = module, local
        self._write_sum = write_ghost_clipped_sum if ghost else write_per_sample_clipped_sum
        self.trained: Any = wrap(copy.deepcopy(module), loss_reduction="sum")
        self._parameters = [p for p in self.trained.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch_optimizer(local.settings, self._parameters)
        self.noise = [torch.empty_like(p) for p in self._parameters]

    def write(self, number: int, x: Tensor, target: Tensor, clipping_norm: float) -> Tensor:
        """Form the clipped sum; see `ClippedSum`."""
        return self._write_sum(self.trained, self._parameters, x, target, clipping_norm)

    def step(self, expected_batch: float) -> None:
        """Step; see `ClippedSum`."""
        mu, l1 = self._local.proximal_mu, self._local.defence.l1
        for p, noise, start in zip(self._parameters, self.noise, self._start, strict=True):
            p.grad = (p.grad + noise).div_(expected_batch)
            # Written into the loss, the proximal term and L1 would be clipped with it, or lost.
            add_penalties(p.grad, p.detach(), start, mu, l1)
        self._optimizer.step()

    def parameters(self) -> Sequence[Tensor]:
        """Return the parameters of the copy."""
        return self._parameters

    def store(self) -> None:
        """Do nothing: the parameters live in the copy."""

    def finish(self) -> None:
        """Copy the state into the module and take Opacus' hooks off the copy, which would keep it alive."""
        self._module.load_state_dict(self.trained.to_standard_module().state_dict())


def write_clipped_sum(
    stack: LinearStack, x: Tensor, target: Tensor, clipping_norm: float, masks: Sequence[Tensor] = ()
) -> Tensor:
    """Write into ``stack.gradient`` the sum of the clipped gradients of a batch; return their norms before.

    Scaling a record's δ in every layer by c_i scales its gradient by c_i, so that no per-sample gradient is
    formed.

    x, target: (B, d + 1) and (B, K), see `for_stack`; what is returned is (B,)
    masks: dropout's, see `LinearStack.masks`

    Formal guarantee:
        The sum changes by at most C = ``clipping_norm`` in Euclidean norm when one record is added or taken
        away (Abadi et al. 2016, section 3.1), whatever its features; up to float32 rounding. It is not
        private by itself: it needs noise, and the norms returned need noise of their own.
    """
    errors = stack.errors(losses.slope(stack.forward(x, masks), target))  # (B, width) per layer
    norms = stack.gradient_norms(errors)
    factor = clipping_factors(norms, clipping_norm)  # (B,)
    stack.accumulate([error * factor[:, None] for error in errors])
    return norms


def write_per_sample_clipped_sum(
    private: Any, parameters: list[Any], x: Tensor, target: Tensor, clipping_norm: float
) -> Tensor:
    """Write into ``grad`` the sum of the clipped gradients of a batch; return their norms (B,) before it.

    private: an opacus.GradSampleModule, which forms each record's gradient, (B, …) a parameter

    Formal guarantee:
        As `write_clipped_sum`'s, for modules in which a record's output does not depend on the other
        records of its batch; `core.models.private.check_dp_ready` refuses those that it knows to be none.
    """
    for p in parameters:
        p.grad, p.grad_sample = torch.zeros_like(p), None
    if not len(x):  # not every module takes an empty batch
        return x.new_zeros(0)
    losses.total(private(x), target).backward()
    parts = [torch.linalg.vector_norm(p.grad_sample.flatten(1), dim=1) for p in parameters]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)  # of (parameters, B)
    factor = clipping_factors(norms, clipping_norm)
    # Σ_i c_i g_i: (B,)(B, …) → (…), parameter by parameter, with one factor for the whole gradient.
    for p in parameters:
        p.grad = torch.einsum("i,i...->...", factor, p.grad_sample)
    return norms


def write_ghost_clipped_sum(
    private: Any, parameters: list[Any], x: Tensor, target: Tensor, clipping_norm: float
) -> Tensor:
    """Do what `write_per_sample_clipped_sum` does, by two backward passes (Lee & Kifer 2021, section 3).

    The first finds the norms, layer by layer, for linear layers and embeddings without forming a gradient;
    the second differentiates Σ_i c_i ℓ_i.

    private: an opacus.grad_sample.GradSampleModuleFastGradientClipping

    Formal guarantee:
        As `write_per_sample_clipped_sum`'s, if the norms that Opacus finds are the gradients': they are not
        where a layer is used twice, see `core.models.private.ghost_problem`.
    """
    for p in parameters:
        p.grad = torch.zeros_like(p)
    if not len(x):
        return x.new_zeros(0)
    of_records = losses.per_record(private(x), target)  # (B,)
    of_records.sum().backward(retain_graph=True)
    norms = private.get_norm_sample()
    # In the second pass the hooks would add to the norms, and p.grad is to hold its result alone.
    private.zero_grad()
    private.disable_hooks()
    of_records.mul(clipping_factors(norms, clipping_norm)).sum().backward()
    private.enable_hooks()
    return norms


def clipping_factors(norms: Tensor, clipping_norm: float) -> Tensor:
    """Return c_i = min(1, C / ‖g_i‖), (B,); 1e-6 is Opacus' guard against a division by zero."""
    return (norms + 1e-6).reciprocal_().mul_(clipping_norm).clamp_(max=1.0)


def takes_ghost(
    module: nn.Module, input_shape: tuple[int, ...], expected_batch: float, gradients: Gradients
) -> bool:
    """Return whether Opacus' path for ``module`` is that of two backward passes.

    'auto' takes it where it gains: most parameters are of linear layers and embeddings, whose norms need no
    gradients, and these would be `LARGE`; and where it is right.
    """
    if gradients != "auto":
        return gradients == "ghost"
    if isinstance(module, LanguageModel) and input_shape[0] > module.embedding.embedding_dim:
        return False  # the norms of a long letter cost T² (Li et al. 2022, section 4): measured 1.6 to 1.9 ×
    sizes = {p: p.numel() for p in module.parameters() if p.requires_grad}
    layers = [layer for layer in module.modules() if type(layer) in (nn.Linear, nn.Embedding)]
    # Numbers whose per-sample gradients need not be formed; a shared parameter counts once.
    spared = sum(sizes[p] for p in {p for layer in layers for p in layer.parameters()} & set(sizes))
    gains = 2 * spared > sum(sizes.values()) and spared * expected_batch >= LARGE
    return gains and ghost_problem(module, input_shape) == ""
