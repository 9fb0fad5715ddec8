"""The switch: a party's local training as DP-SGD (Abadi et al. 2016, algorithm 1), one round of a planned
run.

Each step draws a Poisson batch, clips every record's gradient to norm C, sums, adds N(0, (σC)²) and divides
by the expected batch size q·n. Whatever follows (momentum, Adam, weight decay, L1, FedProx's proximal term)
is post-processing. Where C adapts (`AdaptiveNorm`), z_Δ stands for σ. The guarantee is that of
`fedsim.core.privacy`; the ledger of what a party has spent is the caller's to keep.

An empty batch is a step like any other: its noise is added and it is counted, since leaving it out would tell
that nobody was drawn.

Three paths lead to the same weights, up to float rounding, from the same streams: norms written out for plain
stacks of linear layers and ReLU; and for any module Opacus' per-sample gradients, or only their norms ('ghost
clipping', Lee & Kifer 2021, Li et al. 2022), for which a batch is differentiated twice.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models.layers import dropout, linear_stack
from fedsim.core.models.private import ghost_problem
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import secure
from fedsim.core.training.linear_stack import LinearStack, for_stack
from fedsim.core.training.metrics import tensors
from fedsim.core.training.regularisation import Batches, dropout_stream, seeded_globally, targets_for
from fedsim.core.training.sgd import TrainingReport, add_penalties, make_optimizer, make_steps
from fedsim.core.training.stopping import EarlyStopping, early_stopping

Watch = Callable[[Sequence[Tensor], float], object]
Gradients = Literal["auto", "ghost", "per-sample"]

LARGE = 2**20
"""Numbers in a batch's per-sample gradients of linear layers from which on 'auto' does not form them.

Measured on a CPU (one thread, best of six): at 10⁵ forming them was a quarter quicker, at 6·10⁵ as quick, at
10⁶ to 4·10⁷ ghost clipping was 1.7 to 28 times as quick. Convolutions gain nothing (0.75 to 1.0).
"""


def train_private(
    module: nn.Module,
    records: Records,
    settings: TrainingSettings,
    plan: Plan,
    *,
    sampling: torch.Generator | None,
    noise: torch.Generator | None,
    proximal_mu: float = 0.0,
    device: str = "cpu",
    gradients: Gradients = "auto",
    clipping_norm: float | None = None,
    defence: DefenceSettings = NO_DEFENCE,
    stop_on: Records | None = None,
    watch: Watch | None = None,
) -> TrainingReport:
    """Train ``module`` in place for one round of ``plan``; no loss is reported, it would not be private.

    Guarantee: the weights of all rounds together are (ε, δ)-DP with the ε of a ledger to which every round's
    steps were added, provided that ``noise`` never repeats: it is derived from (seed, party, round), as is
    ``sampling``, with a purpose of its own. None instead of a stream: the operating system's source
    (`core.training.secure`).

    Early stopping decides by noisy weights how many steps there are: what then holds strictly is the plan's
    ε, of all steps that could have been made; the ledger's, of those that were, is for a number fixed
    beforehand (Rogers et al. 2016, on odometers).

    settings, defence: as `fedsim.core.training.sgd.train` has them
    stop_on: public records, where the defence has a patience
    gradients: 'per-sample' takes Opacus' per-sample gradients whatever the module, 'ghost' and 'auto' see
        `DPSettings`
    clipping_norm: C to go on with where clipping adapts, default the plan's
    watch: called before the first step and after every one with the trainable parameters, in their order and
        as they are in that moment, and with the C of the next step, for a white-box audit: all of them, not
        the last alone, are what the guarantee is about

    Raises:
        ValueError: there are no records, one stream is given for both purposes, or the defence mixes records.
    """
    if len(records) == 0:
        raise ValueError("a party without records cannot train")
    if sampling is noise and sampling is not None:
        raise ValueError(
            "sampling and noise need a stream each: the batch drawn must not depend on the noise"
        )
    if defence.mixup:
        raise ValueError("mixup mixes records: no gradient would be of one record alone")
    module.to(device).train()
    data = tensors(records, device)
    norm = AdaptiveNorm(plan, clipping_norm or plan.clipping_norm)
    epoch = -(-len(records) // settings.batch)
    round = _Round(
        settings=settings,
        plan=plan,
        norm=norm,
        noise=_on_device(noise, device),
        proximal_mu=proximal_mu,
        defence=defence,
        stream=sampling or secure.torch_generator(),
        stopping=lambda trained: early_stopping(trained, stop_on, defence, epoch, device),
        watch=watch,
    )
    layers = None if gradients == "per-sample" else linear_stack(module)
    if layers:
        data = for_stack(*data, layers[-1].out_features, defence.label_smoothing)
        steps = _stack_steps(module, poisson_batches(data, plan, sampling), round)
    else:
        ghost = takes_ghost(module, records.shape, plan.expected_batch, gradients)
        data = data[0], targets_for(module, data, defence)
        with seeded_globally(round.stream), dropout(module, defence.dropout):
            steps = _opacus_steps(module, poisson_batches(data, plan, sampling), round, ghost)
    return TrainingReport(steps, clipping_norm=norm.value if plan.clipping == "adaptive" else None)


def poisson_batches(data: tuple[Tensor, Tensor], plan: Plan, sampling: torch.Generator | None) -> Batches:
    """Yield one round's batches: every record is in a batch with probability q, independently.

    In float64, since 24 random bits would bend a small q.
    """
    n = len(data[0])
    for _ in range(plan.steps_per_round):
        coins = (
            secure.uniform(n) if sampling is None else torch.rand(n, generator=sampling, dtype=torch.float64)
        )
        index = (coins < plan.sample_rate).nonzero().squeeze(1).to(data[0].device)
        yield data[0].index_select(0, index), data[1].index_select(0, index)


class AdaptiveNorm:
    """The clipping norm C as the steps go: the plan's, or moving towards a quantile of the gradients' norms.

    Adaptive clipping is Andrew et al. 2021 (algorithm 1) with a party's records for its users.
    """

    def __init__(self, plan: Plan, value: float) -> None:
        self._plan = plan
        self.value = value

    def follow(self, norms: Tensor, noise: torch.Generator | None) -> None:
        """Move C after a step whose gradients had these norms (B,), by a noisy count of the shorter ones."""
        if self._plan.clipping == "flat":
            return
        count = (norms <= self.value).sum() - len(norms) / 2
        noisy = count + normal_(norms.new_empty(1), self._plan.count_noise, noise)
        self.value = self._plan.next_clipping_norm(self.value, float(noisy))


@dataclass(frozen=True, eq=False)
class _Round:
    """What every path is given of one round.

    noise: the stream of the noise, None for the operating system's
    stream: from whose seed dropout's is derived
    stopping: makes the early stopping of the module that is trained
    """

    settings: TrainingSettings
    plan: Plan
    norm: AdaptiveNorm
    noise: torch.Generator | None
    proximal_mu: float
    defence: DefenceSettings
    stream: torch.Generator
    stopping: Callable[[nn.Module], EarlyStopping | None]
    watch: Watch | None

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on this step's sum."""
        return self.plan.gradient_noise * self.norm.value

    def watched(self, parameters: Callable[[], Sequence[Tensor]]) -> Callable[[], object]:
        """Return what `make_steps` calls after every step."""
        return lambda: self.watch(parameters(), self.norm.value) if self.watch else None


def _opacus_steps(module: nn.Module, batches: Batches, round: _Round, ghost: bool) -> int:
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    # Opacus leaves its attributes on parameters and layers: they stay on a copy.
    wrap = GradSampleModuleFastGradientClipping if ghost else GradSampleModule
    private = wrap(copy.deepcopy(module), loss_reduction="sum")
    write_sum = write_ghost_clipped_sum if ghost else write_per_sample_clipped_sum
    parameters = [p for p in private.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters]
    optimizer = make_optimizer(round.settings, parameters)

    def step(x: Tensor, target: Tensor) -> None:
        norms = write_sum(private, parameters, x, target, round.norm.value)
        for p in parameters:
            noise = normal_(torch.empty_like(p), round.deviation, round.noise)
            p.grad = (p.grad + noise).div_(round.plan.expected_batch)
        # Written into the loss, the proximal term and L1 would be clipped with it, or lost.
        add_penalties(parameters, anchor, round.proximal_mu, round.defence.l1)
        optimizer.step()
        round.norm.follow(norms, round.noise)

    with warnings.catch_warnings(action="ignore"):  # its hooks make torch warn of inputs without gradient
        watch = round.watched(lambda: parameters)
        steps = make_steps(batches, step, round.stopping(private), watch=watch)
    module.load_state_dict(private.to_standard_module().state_dict())
    return steps


def write_per_sample_clipped_sum(
    private: Any, parameters: list[Any], x: Tensor, target: Tensor, clipping_norm: float
) -> Tensor:
    """Write into ``grad`` the sum of the clipped gradients of a batch; return their norms (B,) before it.

    private: an opacus.GradSampleModule, which forms each record's gradient, (B, …) a parameter
    """
    for p in parameters:
        p.grad, p.grad_sample = torch.zeros_like(p), None
    if not len(x):  # not every module takes an empty batch
        return x.new_zeros(0)
    functional.cross_entropy(private(x), target, reduction="sum").backward()
    parts = [torch.linalg.vector_norm(p.grad_sample.flatten(1), dim=1) for p in parameters]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    factor = clipping_factors(norms, clipping_norm)
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
    """
    for p in parameters:
        p.grad = torch.zeros_like(p)
    if not len(x):
        return x.new_zeros(0)
    losses = functional.cross_entropy(private(x), target, reduction="none")
    losses.sum().backward(retain_graph=True)
    norms = private.get_norm_sample()
    private.zero_grad()
    private.disable_hooks()
    losses.mul(clipping_factors(norms, clipping_norm)).sum().backward()
    private.enable_hooks()
    return norms


def _stack_steps(module: nn.Module, batches: Batches, round: _Round) -> int:
    with torch.inference_mode():
        device = next(module.parameters()).device
        stack = LinearStack(module, round.defence.dropout, dropout_stream(round.stream, device))
        update = stack.updater(round.settings, round.proximal_mu, round.defence.l1)
        # One draw per parameter and in their order, as on the other paths.
        noises = [torch.empty_like(p) for p in module.parameters()]

        def step(x: Tensor, target: Tensor) -> None:
            norms = write_clipped_sum(stack, x, target, round.norm.value)
            for piece in noises:
                normal_(piece, round.deviation, round.noise)
            update(stack.gradient.add_(stack.in_layout(noises)).div_(round.plan.expected_batch))
            round.norm.follow(norms, round.noise)

        stop, watch = round.stopping(module), round.watched(stack.parameters)
        return make_steps(batches, step, stop, store=stack.store, watch=watch)


def write_clipped_sum(stack: LinearStack, x: Tensor, target: Tensor, clipping_norm: float) -> Tensor:
    """Write into ``stack.gradient`` the sum of the clipped gradients of a batch, see `for_stack`.

    Scaling a record's δ in every layer by c_i scales its gradient by c_i, so that no per-sample gradient is
    formed. Returned are the gradients' norms (B,) before it.
    """
    errors = stack.errors(torch.softmax(stack.forward(x), 1).sub_(target))
    norms = stack.gradient_norms(errors)
    factor = clipping_factors(norms, clipping_norm)
    stack.accumulate([error * factor[:, None] for error in errors])
    return norms


def clipping_factors(norms: Tensor, clipping_norm: float) -> Tensor:
    """Return c_i = min(1, C / ‖g_i‖), (B,); 1e-6 is Opacus' guard against a division by zero."""
    return (norms + 1e-6).reciprocal_().mul_(clipping_norm).clamp_(max=1.0)


def normal_(tensor: Tensor, deviation: float, noise: torch.Generator | None) -> Tensor:
    """Fill ``tensor`` in place with N(0, deviation²) and return it; None: from the operating system."""
    if noise is None:
        return secure.normal_(tensor, deviation)
    return tensor.normal_(0, deviation, generator=noise)


def takes_ghost(
    module: nn.Module, input_shape: tuple[int, ...], expected_batch: float, gradients: Gradients
) -> bool:
    """Return whether Opacus' path for ``module`` is that of two backward passes.

    'auto' takes it where it gains: most parameters are of linear layers and embeddings, whose norms need no
    gradients, and these would be `LARGE`; and where it is right.
    """
    if gradients != "auto":
        return gradients == "ghost"
    sizes = {p: p.numel() for p in module.parameters() if p.requires_grad}
    layers = [layer for layer in module.modules() if type(layer) in (nn.Linear, nn.Embedding)]
    spared = sum(sizes[p] for p in {p for layer in layers for p in layer.parameters()} & set(sizes))
    gains = 2 * spared > sum(sizes.values()) and spared * expected_batch >= LARGE
    return gains and ghost_problem(module, input_shape) == ""


def _on_device(generator: torch.Generator | None, device: str) -> torch.Generator | None:
    """Return ``generator``, or on an accelerator, where a CPU stream cannot be used, one seeded from it."""
    if generator is None or torch.device(device).type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
