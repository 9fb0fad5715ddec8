"""The switch: a party's local training as DP-SGD (Abadi et al. 2016, algorithm 1), one round of a planned
run.

Each step draws a Poisson batch, clips every record's gradient to norm C, sums, adds N(0, (σC)²) and divides
by the expected batch size q·n. Whatever follows (momentum, Adam, weight decay, FedProx's proximal term) is
post-processing. The guarantee is `fedsim.privacy`'s; the ledger of what a party has spent is the caller's
to keep.

An empty batch is a step like any other: its noise is added and it is counted, since leaving it out would tell
that nobody was drawn.

Two paths lead to the same weights, up to float rounding, from the same streams: Opacus' per-sample
gradients for any module, and per-sample norms written out for plain stacks of linear layers and ReLU.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clients.training import (
    LinearStack,
    TrainingReport,
    add_proximal_gradient,
    for_stack,
    make_optimizer,
    seeded_globally,
    tensors,
)
from fedsim.data.records import Records
from fedsim.models import linear_stack
from fedsim.privacy import Plan
from fedsim.scenario import TrainingSettings

Batches = Iterator[tuple[Tensor, Tensor]]
Watch = Callable[[Sequence[Tensor]], object]


def train_private(
    module: nn.Module,
    records: Records,
    settings: TrainingSettings,
    plan: Plan,
    *,
    sampling: torch.Generator,
    noise: torch.Generator,
    proximal_mu: float = 0.0,
    device: str = "cpu",
    reference: bool = False,
    watch: Watch | None = None,
) -> TrainingReport:
    """Train ``module`` in place for one round of ``plan``; no loss is reported, it would not be private.

    Guarantee: the weights of all rounds together are (ε, δ)-DP with the ε of a ledger to which every round's
    steps were added, provided that ``noise`` never repeats: it is derived from (seed, party, round), as is
    ``sampling``, with a purpose of its own.

    reference: take Opacus' path whatever the module
    watch: called before the first step and after every one with the trainable parameters, in their order and
        as they are in that moment, for a white-box audit: all of them, not the last alone, are what the
        guarantee is about

    Raises:
        ValueError: there are no records, or one stream is given for both purposes.
    """
    if len(records) == 0:
        raise ValueError("a party without records cannot train")
    if sampling is noise:
        raise ValueError(
            "sampling and noise need a stream each: the batch drawn must not depend on the noise"
        )
    module.to(device).train()
    data, run = tensors(records, device), _opacus_steps
    layers = None if reference else linear_stack(module)
    if layers:
        data, run = for_stack(*data, layers[-1].out_features), _stack_steps
    batches = poisson_batches(data, plan, sampling)
    with seeded_globally(sampling):
        steps = run(module, batches, settings, plan, _on_device(noise, device), proximal_mu, watch)
    return TrainingReport(steps)


def poisson_batches(data: tuple[Tensor, Tensor], plan: Plan, sampling: torch.Generator) -> Batches:
    """Yield one round's batches: every record is in a batch with probability q, independently.

    In float64, since 24 random bits would bend a small q.
    """
    n = len(data[0])
    for _ in range(plan.steps_per_round):
        drawn = torch.rand(n, generator=sampling, dtype=torch.float64) < plan.sample_rate
        index = drawn.nonzero().squeeze(1).to(data[0].device)
        yield data[0].index_select(0, index), data[1].index_select(0, index)


def _opacus_steps(
    module: nn.Module,
    batches: Batches,
    settings: TrainingSettings,
    plan: Plan,
    noise: torch.Generator,
    proximal_mu: float,
    watch: Watch | None,
) -> int:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    # Opacus leaves its attributes on parameters and layers: they stay on a copy.
    private = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    parameters = [p for p in private.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters]
    optimizer = DPOptimizer(
        make_optimizer(settings, parameters),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clipping_norm,
        expected_batch_size=plan.expected_batch,
        generator=noise,
    )
    # Written into the loss, the proximal term would be clipped with it, or lost.
    optimizer.attach_step_hook(lambda _: add_proximal_gradient(parameters, anchor, proximal_mu))
    steps = 0
    if watch:
        watch(parameters)
    with warnings.catch_warnings(action="ignore"):  # its hooks make torch warn of inputs without gradient
        for x, y in batches:
            optimizer.zero_grad()
            if len(y):
                functional.cross_entropy(private(x), y, reduction="sum").backward()
            else:  # not every module takes an empty batch
                for p in parameters:
                    p.grad_sample = p.new_zeros((0, *p.shape))
            optimizer.step()
            steps += 1
            if watch:
                watch(parameters)
    module.load_state_dict(private.to_standard_module().state_dict())
    return steps


def _stack_steps(
    module: nn.Module,
    batches: Batches,
    settings: TrainingSettings,
    plan: Plan,
    noise: torch.Generator,
    proximal_mu: float,
    watch: Watch | None,
) -> int:
    steps = 0
    deviation = plan.noise_multiplier * plan.clipping_norm
    with torch.inference_mode():
        stack = LinearStack(module)
        update = stack.updater(settings, proximal_mu)
        # One draw per parameter and in their order, as Opacus does.
        noises = [torch.empty_like(p) for p in module.parameters()]
        if watch:
            watch(stack.parameters())
        for x, target in batches:
            write_clipped_sum(stack, x, target, plan.clipping_norm)
            for piece in noises:
                piece.normal_(0, deviation, generator=noise)
            update(stack.gradient.add_(stack.in_layout(noises)).div_(plan.expected_batch))
            steps += 1
            if watch:
                watch(stack.parameters())
        stack.store()
    return steps


def write_clipped_sum(stack: LinearStack, x: Tensor, target: Tensor, clipping_norm: float) -> None:
    """Write into ``stack.gradient`` the sum of the clipped gradients of a batch, see `for_stack`.

    Scaling a record's δ in every layer by c_i = min(1, C / ‖g_i‖) scales its gradient by c_i, so that no
    per-sample gradient is formed. The 1e-6 is Opacus' guard against a division by zero.
    """
    errors = stack.errors(torch.softmax(stack.forward(x), 1).sub_(target))
    factor = stack.gradient_norms(errors).add_(1e-6).reciprocal_().mul_(clipping_norm).clamp_(max=1.0)
    stack.accumulate([error * factor[:, None] for error in errors])


def _on_device(generator: torch.Generator, device: str) -> torch.Generator:
    """Return ``generator``, or on an accelerator, where a CPU stream cannot be used, one seeded from it."""
    if torch.device(device).type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
