"""The switch: a party's local training as DP-SGD (Abadi et al. 2016, algorithm 1), one round of a planned
run.

Each step draws a Poisson batch, clips every record's gradient to norm C, sums, adds N(0, (σC)²) and divides
by the expected batch size q·n. Whatever follows (momentum, Adam, weight decay, L1, FedProx's proximal term)
is post-processing. Where C adapts (`AdaptiveNorm`), z_Δ stands for σ. The guarantee is that of
`fedsim.core.privacy`; the ledger of what a party has spent is the caller's to keep.

An empty batch is a step like any other: its noise is added and it is counted, since leaving it out would tell
that nobody was drawn.

There is one such step, and three ways to the clipped sum in it (`fedsim.core.training.clipping`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.core.data.records import Records
from fedsim.core.models.layers import dropout, linear_stack, move
from fedsim.core.models.private import constant_buffers
from fedsim.core.privacy.plan import Plan
from fedsim.core.training.clipping import ByOpacus, ClippedSum, WrittenOut, takes_ghost
from fedsim.core.training.draws import Draws
from fedsim.core.training.linear_stack import for_stack
from fedsim.core.training.metrics import tensors
from fedsim.core.training.regularisation import targets_for
from fedsim.core.training.steps import Batches, LocalTraining, TrainingReport, make_steps
from fedsim.core.training.stopping import early_stopping

Watch = Callable[[Sequence[Tensor], float], object]


def train_private(
    module: nn.Module,
    records: Records,
    local: LocalTraining,
    plan: Plan,
    draws: Draws,
    *,
    clipping_norm: float | None = None,
    watch: Watch | None = None,
) -> TrainingReport:
    """Train ``module`` in place for one round of ``plan``; no loss is reported, it would not be private.

    clipping_norm: C to go on with where clipping adapts, default the plan's
    watch: called before the first step and after every step with the trainable parameters, in the module's
        order, and with C of the next step. It serves a white-box audit: the guarantee covers the weights
        after every step, not the last ones alone

    Formal guarantee:
        The weights after every step of all rounds together are (ε, δ)-DP for one record added or taken away,
        ε being that of a ledger to which every round's steps were added (`Plan.spend`), if

        - the module treats records one by one (`core.models.private.check_dp_ready`) and does not remember
          them but in its trained parameters;
        - ``draws`` are independent of the records and never repeat: a party derives them from (seed, party,
          round), each purpose with a stream of its own;
        - nobody can predict them. Seeded streams are for simulations; `PartyDraws(None, None)` draws from
          the operating system's cryptographic source.

        Not covered: numbers of records, the choice of hyperparameters, floating-point attacks on seeded
        noise (Mironov 2012), and how long a step takes.

        Early stopping decides by noisy weights how many steps there are: what then holds strictly is the
        plan's ε, of all steps that could have been made; the ledger's, of those that were, is for a number
        fixed beforehand (Rogers et al. 2016, on odometers). It looks at public records only.

    Raises:
        ValueError: there are no records, or the defence mixes records.

    Example: three rounds of a party with 100 records, whose whole run is to cost ε = 2.

    >>> import numpy as np
    >>> from fedsim.core import rng
    >>> from fedsim.core.privacy.ledger import Ledger
    >>> from fedsim.core.privacy.plan import make_plan
    >>> from fedsim.core.scenario.protection import DPSettings
    >>> from fedsim.core.scenario.training import TrainingSettings
    >>> from fedsim.core.training.draws import PartyDraws
    >>> settings = TrainingSettings(batch=10, epochs=1)
    >>> plan = make_plan(DPSettings(epsilon=2.0), settings, n=100, rounds=3)
    >>> stream = np.random.default_rng(0)
    >>> records = Records(stream.normal(size=(100, 4)).astype("float32"), stream.integers(0, 2, 100))
    >>> module, ledger = nn.Linear(4, 2), Ledger()
    >>> for round in (1, 2, 3):
    ...     sampling = rng.torch_generator(7, "poisson sampling", round=round)
    ...     noise = rng.torch_generator(7, "dp noise", round=round)
    ...     local = LocalTraining(settings)
    ...     report = train_private(module, records, local, plan, PartyDraws(sampling, noise))
    ...     ledger = plan.spend(ledger, report.steps)
    >>> ledger.entries[0][2], 1.98 <= ledger.epsilon(plan.delta) <= 2.0
    (30, True)
    """
    if len(records) == 0:
        raise ValueError("a party without records cannot train")
    if local.defence.mixes_records:
        raise ValueError(f"{local.defence.mixes_records[0]}: no gradient would be of one record alone")
    move(module, local.device)
    norm = AdaptiveNorm(plan, clipping_norm or plan.clipping_norm)
    round = _Round(local, plan, draws, norm, watch, epoch=-(-len(records) // local.settings.batch))
    data = tensors(records, local.device)
    layers = None if local.gradients == "per-sample" else linear_stack(module)
    if layers:
        data = for_stack(*data, layers[-1].out_features, local.defence.smoothing_of(layers[-1].out_features))
        steps = _stack_steps(module, data, round)
    else:
        module.train()
        ghost = takes_ghost(module, records.shape, plan.expected_batch, local.gradients)
        data = data[0], targets_for(module, data, local.defence)
        with constant_buffers(module):
            steps = _opacus_steps(module, data, round, ghost)
    return TrainingReport(steps, clipping_norm=norm.value if plan.clipping == "adaptive" else None)


def poisson_batches(data: tuple[Tensor, Tensor], plan: Plan, draws: Draws) -> Batches:
    """Yield one round's batches, as `Draws.poisson` draws the records (n, …) of ``data``."""
    for positions in draws.poisson(len(data[0]), plan):
        index = positions.to(data[0].device)
        yield data[0].index_select(0, index), data[1].index_select(0, index)


class AdaptiveNorm:
    """The clipping norm C as the steps go: the plan's, or moving towards a quantile of the gradients' norms.

    Adaptive clipping is Andrew et al. 2021 (algorithm 1) with a party's records for its users.

    Formal guarantee:
        C is a function of noisy counts, and so as private as these: a count changes by ½ with one record and
        carries N(0, σ_b²). A step's gradients (noise z_Δ C) and count together cost what σ alone does
        (theorem 1), which is how `Plan.gradient_noise` is set and what the ledger adds. It holds of C after
        any step, not of the norms that it follows.
    """

    def __init__(self, plan: Plan, value: float) -> None:
        self._plan = plan
        self.value = value

    def follow(self, norms: Tensor, draws: Draws, number: int) -> None:
        """Move C after step ``number``, whose gradients had these norms (B,).

        What moves it is Σ_i (1[‖g_i‖ ≤ C] − ½) and noise.
        """
        if self._plan.clipping == "flat":
            return
        # Centred, so that one record moves it by ½ and not by 1.
        count = (norms <= self.value).sum() - len(norms) / 2
        noise = norms.new_empty(1)
        draws.count_noise(number, noise, self._plan.count_noise)
        self.value = self._plan.next_clipping_norm(self.value, float(count + noise))


@dataclass(frozen=True, eq=False)
class _Round:
    """What the ways to a round's steps have in common; epoch: steps between two looks of early stopping."""

    local: LocalTraining
    plan: Plan
    draws: Draws
    norm: AdaptiveNorm
    watch: Watch | None
    epoch: int

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on this step's sum."""
        return self.plan.gradient_noise * self.norm.value


def _stack_steps(module: nn.Module, data: tuple[Tensor, Tensor], round: _Round) -> int:
    with torch.inference_mode():
        return _make_steps(WrittenOut(module, round.local, round.draws), data, round)


def _opacus_steps(module: nn.Module, data: tuple[Tensor, Tensor], round: _Round, ghost: bool) -> int:
    hidden_dropout = dropout(module, round.local.defence.dropout)
    # Opacus' hooks make torch warn of inputs without gradient.
    with round.draws.global_stream(), hidden_dropout, warnings.catch_warnings(action="ignore"):
        private = ByOpacus(module, round.local, ghost)
        steps = _make_steps(private, data, round)
        private.finish()
    return steps


def _make_steps(clipped: ClippedSum, data: tuple[Tensor, Tensor], round: _Round) -> int:
    plan, draws, norm = round.plan, round.draws, round.norm

    def step(number: int, x: Tensor, target: Tensor) -> None:
        norms = clipped.write(number, x, target, norm.value)
        # Whatever was drawn, be it nothing: a step without noise would tell that the batch was empty.
        draws.noise(number, clipped.noise, round.deviation)
        # Not by the number drawn, which is private.
        clipped.step(plan.expected_batch)
        norm.follow(norms, draws, number)

    def watch() -> None:
        if round.watch:
            round.watch(clipped.parameters(), norm.value)

    local = round.local
    stop = early_stopping(clipped.trained, local.stop_on, local.defence, round.epoch, local.device)
    batches = poisson_batches(data, plan, draws)
    return make_steps(batches, step, stop, store=clipped.store, watch=watch)
