"""A block of shadow federations trained together, and a single one trained the plain way.

`train_block` is the fast path: the models of all parties of all its shadows are stacked and make every step
together. `train_one` is the reference that it is tested against, and the path of the modules that cannot be
stacked: torch.nn and torch.optim, one party after another, with the same batches and the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.noise import NoiseSource
from attacks.shadow_plan import FederationPlan, Schedule, Streams, draw_schedule, poisson_width
from attacks.stacked import Batches, Noise, Parameters, Pool, Stack, Workspace, layout_of, optimizer, up
from fedsim import models
from fedsim.data.records import Records

Observe = Callable[[int, Tensor, Mapping[str, Tensor]], None]
"""Called with t, the logits of w_t, (S, n, classes) float32, and w_t, (S, …) by name."""


def train_block(
    plan: FederationPlan,
    stack: Stack,
    initial: Mapping[str, np.ndarray],
    pool: Pool,
    members: np.ndarray,
    signal_pool: Pool,
    rounds: Sequence[int],
    streams: Sequence[Streams],
    observe: Observe,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Tensor]:
    """Train S shadows from w_0 = ``initial``; return their w_T, (S, …) by name.

    members: (S, parties, largest size) int, rows of ``pool``, −1 after a smaller party's
    observe: is given the logits of ``signal_pool`` at w_t for every t of ``rounds``
    stop: asked before every round

    Raises:
        CancelledError: ``stop`` said so.
    """
    with torch.no_grad():
        current = [p.expand(len(streams), *p.shape[1:]).contiguous() for p in stack.load(initial)]
        block = _Block(plan, stack, pool, with_empty_row(members, len(pool)), streams, Workspace())
        aggregate = server(plan)
        for t in range(plan.rounds + 1):
            if stop():
                raise CancelledError
            if t in rounds:
                observe(t, stack.logits(current, signal_pool), stack.state(stack.pieces(current)))
            if t < plan.rounds:
                current = aggregate(current, _mean(block, current, draw_schedule(plan, streams)))
        return stack.state(stack.pieces(current))


@dataclass(frozen=True, eq=False)
class _Block:
    """What all rounds of a block share; members as `with_empty_row` returns them."""

    plan: FederationPlan
    stack: Stack
    pool: Pool
    members: np.ndarray
    streams: Sequence[Streams]
    scratch: Workspace


def _mean(block: _Block, current: Parameters, schedule: Schedule) -> Parameters:
    """Return the mean of the parties' answers in one round, weighted by their records, (S, …)."""
    plan = block.plan
    total = torch.from_numpy(schedule.active @ plan.sizes)
    mean = [torch.zeros_like(p) for p in current]
    for parties in (plan.plain, plan.private):
        cohort = gather(plan, parties, schedule, block.members, len(block.pool))
        if cohort.models == 0:
            continue
        answers = _train(block, current, cohort)
        for k, start, stop in cohort.spans():
            shadows = cohort.shadow[start:stop]
            share = (plan.parties[k].size / total[shadows]).float()
            for sum_, answer in zip(mean, answers, strict=True):
                _add_share(sum_, shadows, share, answer[start:stop])
    return mean


def _add_share(sum_: Tensor, shadows: Tensor, share: Tensor, answer: Tensor) -> None:
    """Add share·answer to the rows ``shadows`` of ``sum_`` in place; no shadow occurs twice."""
    share = share.view(-1, *[1] * (answer.dim() - 1))
    if len(shadows) == len(sum_):
        sum_.addcmul_(answer, share)
    else:
        sum_[shadows] = torch.addcmul(sum_[shadows], answer, share)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The M models that are trained together in a round: those with most steps first, then by party.

    parties: those of the models, in the models' order
    counts: models of each of these parties
    shadow: (M,) int64
    rows: (steps, M, width) int32, rows of the pool, the pool's empty last one where there is no record
    noise: (steps, M) uint64, from which the noise of a private party's step is made
    steps: per party
    widths: per step, the part of ``rows`` that is in use
    """

    parties: list[int]
    counts: list[int]
    shadow: Tensor
    rows: Tensor
    noise: np.ndarray
    steps: list[int]
    widths: list[int]

    @property
    def models(self) -> int:
        """M."""
        return len(self.shadow)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield (party, start, stop) of the parties' models."""
        stops = np.cumsum(self.counts).tolist()
        for k, count, stop in zip(self.parties, self.counts, stops, strict=True):
            yield k, stop - count, stop

    def training(self, step: int) -> int:
        """Return how many models make this step: always the first ones."""
        return sum(count for count, steps in zip(self.counts, self.steps, strict=True) if steps > step)

    def per_model(self, values: Sequence[float]) -> Tensor:
        """Return one value per party as (M, 1) float32."""
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(torch.tensor(self.counts))[:, None]


def with_empty_row(members: np.ndarray, empty: int) -> np.ndarray:
    """Return (S, parties, L) rows of a pool as (S, parties, L + 1), ending with its empty row.

    Then position −1, no record, leads to the empty row, in the flattened array too.
    """
    padded = np.pad(members, ((0, 0), (0, 0), (0, 1)), constant_values=-1)
    return np.where(padded < 0, empty, padded).astype(np.int32)


def gather(
    plan: FederationPlan, parties: Sequence[int], schedule: Schedule, members: np.ndarray, empty: int
) -> Cohort:
    """Collect the models of these parties that train in the round.

    members: as `with_empty_row` returns them; empty: the pool's empty row
    """
    order = sorted(parties, key=lambda k: -plan.steps(k))
    steps = [plan.steps(k) for k in order]
    widths = _widths(plan, order, schedule)
    taking_part = [np.flatnonzero(schedule.active[:, k]) for k in order]
    counts = [len(shadows) for shadows in taking_part]
    widest = max([*widths, *(schedule.batches[k].shape[2] for k in order)], default=0)
    longest = max(steps, default=0)
    rows = np.full((longest, sum(counts), widest), empty, np.int32)
    noise = np.zeros((longest, sum(counts)), np.uint64)
    flat, firsts = members.ravel(), np.arange(0, members.size, members.shape[2]).reshape(members.shape[:2])
    start = 0
    for k, shadows, count in zip(order, taking_part, counts, strict=True):
        position = schedule.batches[k][shadows] + firsts[shadows, k, None, None]  # (shadows, steps, width)
        part = np.s_[: position.shape[1], start : start + count]
        rows[part][..., : position.shape[2]] = flat[position].swapaxes(0, 1)
        drawn = schedule.noise[shadows, k].T[: position.shape[1]]
        noise[part][: len(drawn)] = drawn
        start += count
    shadow = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *taking_part]))
    return Cohort(order, counts, shadow, torch.from_numpy(rows), noise, steps, widths)


def _widths(plan: FederationPlan, parties: Sequence[int], schedule: Schedule) -> list[int]:
    """Return the width of every step's batches: of the largest batch there can be, up to a multiple of 4.

    Parties that do not take part count too: it must not matter which shadows are trained together.
    """
    widths = np.zeros(max((plan.steps(k) for k in parties), default=0), int)
    for k in parties:
        steps, size = np.arange(plan.steps(k)), plan.parties[k].size
        if plan.parties[k].dp is None:
            places = steps % plan.batches_per_epoch(k) * plan.training.batch
            largest = np.minimum(plan.training.batch, size - places)
        else:
            drawn = (schedule.batches[k] >= 0).sum(axis=2).max(axis=0)
            largest = np.maximum(drawn, poisson_width(size, plan.dp(k).sample_rate))
        widths[steps] = np.maximum(widths[steps], largest)
    return [up(width) for width in widths.tolist()]


def _train(block: _Block, current: Parameters, cohort: Cohort) -> Parameters:
    """Return the models of the cohort after a round's local training, (M, …), valid until the next call."""
    plan, stack, pool = block.plan, block.stack, block.pool
    local = [block.scratch(f"local {i}", cohort.models, *p.shape[1:]) for i, p in enumerate(current)]
    for p, start in zip(local, current, strict=True):
        torch.index_select(start, 0, cohort.shadow, out=p)
    trainer = stack.trainer(local, pool)
    update = optimizer(local, plan.training, plan.proximal_mu)
    private = _Private(block, cohort) if plan.parties[cohort.parties[0]].dp else None
    labels, present = pool.labels[cohort.rows], (cohort.rows != len(pool)).float()
    size = present.sum(2, keepdim=True).clamp_(min=1) if private is None else private.expected_batch
    weight = present / size
    for step, width in enumerate(cohort.widths):
        n = cohort.training(step)
        rows, y, w = (part[step, :n, :width] for part in (cohort.rows, labels, weight))
        batches = Batches(rows, y, w)
        if private is not None:
            batches = replace(batches, clipping_norm=private.clipping_norm[:n], noise=private.noise(step, n))
        update(trainer.gradient(batches), n)
    return local


class _Private:
    """What DP-SGD adds: clipping norms and expected batches, (M, 1), and noise on the averaged gradient."""

    def __init__(self, block: _Block, cohort: Cohort) -> None:
        plan = block.plan
        plans = [plan.dp(k) for k in cohort.parties]
        self.clipping_norm = cohort.per_model([dp.clipping_norm for dp in plans])
        self.expected_batch = cohort.per_model([dp.expected_batch for dp in plans])
        self._deviation = cohort.per_model([noise_deviation(plan, k) for k in cohort.parties])[:, 0]
        self._numbers = cohort.noise
        self._stack = block.stack
        self._source = NoiseSource(block.streams[0].key, block.stack.parameters)

    def noise(self, step: int, n: int) -> Noise:
        """Return a step's noise for the first ``n`` models."""
        flat, signs = self._source.draw(self._numbers[step, :n])
        return Noise(self._stack.split(flat), signs.mul_(self._deviation[:n]))


def noise_deviation(plan: FederationPlan, party: int) -> float:
    """Return σC / (q n), the standard deviation of the noise on the averaged gradient."""
    dp = plan.dp(party)
    return dp.noise_multiplier * dp.clipping_norm / dp.expected_batch


def server(plan: FederationPlan) -> Callable[[Parameters, Parameters], Parameters]:
    """Return ``step(current, mean)``, w_{t−1} and the mean of the answers → w_t, to be called once a round.

    FedAvg and FedProx; FedAvgM (Hsu, Qi & Brown 2019); FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021,
    algorithm 2), FedAdam with the bias correction that Flower gives it.
    """
    if plan.strategy in ("fedavg", "fedprox"):
        return lambda current, mean: mean
    return _server_momentum(plan) if plan.strategy == "fedavgm" else _adaptive_server(plan)


def _server_momentum(plan: FederationPlan) -> Callable[[Parameters, Parameters], Parameters]:
    lr, momentum = plan.option("server_learning_rate"), plan.option("server_momentum")
    velocities: Parameters = []

    def step(current: Parameters, mean: Parameters) -> Parameters:
        nonlocal velocities
        pulls = [old - new for old, new in zip(current, mean, strict=True)]
        before = velocities or [torch.zeros_like(pull) for pull in pulls]
        velocities = [momentum * v + pull for v, pull in zip(before, pulls, strict=True)]
        return [old - lr * v for old, v in zip(current, velocities, strict=True)]

    return step


def _adaptive_server(plan: FederationPlan) -> Callable[[Parameters, Parameters], Parameters]:
    eta, tau = plan.option("eta"), plan.option("tau")
    beta1, beta2 = plan.option("beta_1"), plan.option("beta_2")
    first: Parameters = []
    second: Parameters = []
    t = 0

    def second_moment(v: Tensor, square: Tensor) -> Tensor:
        if plan.strategy == "fedadagrad":
            return v + square
        if plan.strategy == "fedadam":
            return beta2 * v + (1 - beta2) * square
        return v - (1 - beta2) * square * torch.sign(v - square)

    def step(current: Parameters, mean: Parameters) -> Parameters:
        nonlocal first, second, t
        t += 1
        moves = [new - old for old, new in zip(current, mean, strict=True)]
        zeros = [torch.zeros_like(move) for move in moves]
        first = [beta1 * m + (1 - beta1) * d for m, d in zip(first or zeros, moves, strict=True)]
        second = [second_moment(v, d * d) for v, d in zip(second or zeros, moves, strict=True)]
        rate = eta
        if plan.strategy == "fedadam":
            rate *= math.sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1))
        moments = zip(current, first, second, strict=True)
        return [w + rate * m / (v.sqrt() + tau) for w, m, v in moments]

    return step


def train_one(
    plan: FederationPlan,
    initial: Mapping[str, np.ndarray],
    pool: Records,
    members: np.ndarray,
    signal_records: Records,
    rounds: Sequence[int],
    streams: Streams,
    observe: Observe,
) -> dict[str, Tensor]:
    """Train one shadow: `train_block` with S = 1, but for ``members`` (parties, largest size)."""
    module = models.build(plan.model, plan.input_shape, plan.classes)
    features, labels = torch.tensor(pool.features), torch.tensor(pool.labels)
    names = list(module.state_dict())
    current = [torch.tensor(initial[name], dtype=torch.float32) for name in names]
    aggregate = server(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.seed)
        for t in range(plan.rounds + 1):
            module.load_state_dict(dict(zip(names, current, strict=True)))
            if t in rounds:
                weights = {name: w[None] for name, w in zip(names, current, strict=True)}
                observe(t, _answers(module, signal_records)[None], weights)
            if t == plan.rounds:
                break
            schedule = draw_schedule(plan, [streams])
            mean = [torch.zeros_like(w) for w in current]
            total = int(schedule.active[0] @ plan.sizes)
            for k in np.flatnonzero(schedule.active[0]).tolist():
                module.load_state_dict(dict(zip(names, current, strict=True)))
                own = torch.from_numpy(members[k][members[k] >= 0].astype(np.int64))
                data = features[own], labels[own]
                noise = schedule.noise[0, k]
                _train_party(plan, k, module, data, schedule.batches[k][0], noise, streams)
                for sum_, answer in zip(mean, module.state_dict().values(), strict=True):
                    sum_ += plan.parties[k].size / total * answer
            current = aggregate(current, mean)
    return {name: w[None] for name, w in zip(names, current, strict=True)}


def _answers(module: nn.Module, records: Records) -> Tensor:
    """Return logits (n, classes) in evaluation mode."""
    module.eval()
    with torch.no_grad():
        parts = [module(x) for x in torch.tensor(records.features).split(4096)]
    module.train()
    return torch.cat(parts)


def _train_party(
    plan: FederationPlan,
    party: int,
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    batches: np.ndarray,
    noise: np.ndarray,
    streams: Streams,
) -> None:
    """Train ``module`` in place for one round.

    batches: (steps, width) positions, −1 for no record; noise: (steps,) uint64, see `Schedule`
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in trained]
    step = _torch_optimizer(plan, trained)
    layout = layout_of(module, plan.classes)
    source = NoiseSource(streams.key, layout.parameters)
    for i, batch in enumerate(batches):
        index = torch.from_numpy(batch[batch >= 0])
        x, y = data[0][index], data[1][index]
        step.zero_grad()
        if plan.parties[party].dp is None:
            functional.cross_entropy(module(x), y).backward()
        else:
            flat, sign = source.draw(noise[i : i + 1])
            pieces = layout.state(layout.split(flat * sign))
            _write_private_gradient(plan, party, module, x, y, pieces)
        for p, anchor in zip(trained, anchors, strict=True):
            if p.grad is not None:
                p.grad += plan.proximal_mu * (p.detach() - anchor)
        step.step()


def _torch_optimizer(plan: FederationPlan, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    settings = plan.training
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.l2)
    return torch.optim.SGD(parameters, settings.lr, settings.momentum, weight_decay=settings.l2)


def _write_private_gradient(
    plan: FederationPlan, party: int, module: nn.Module, x: Tensor, y: Tensor, noise: Mapping[str, Tensor]
) -> None:
    """Write (Σ_i min(1, C / ‖g_i‖) g_i + N(0, (σC)²)) / (q n) into ``grad`` (Abadi et al. 2016, alg. 1).

    noise: standard normal, (1, …) by parameter
    """
    dp = plan.dp(party)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, p in trained.items():
        p.grad = noise_deviation(plan, party) * noise[name][0]
    for i in range(len(y)):
        loss = functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(trained.values()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        factor = min(1.0, dp.clipping_norm / (norm.item() + 1e-6)) / dp.expected_batch
        for p, g in zip(trained.values(), gradients, strict=True):
            assert p.grad is not None
            p.grad += factor * g
