"""Stacked models against the same models one by one under autograd and torch.optim."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models import weights, zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training.stacked import batches as stacked_batches
from fedsim.core.training.stacked import optimizers
from fedsim.core.training.stacked.batches import Batches, Noise, Parameters, PoolTensors, Stack, single_thread
from fedsim.core.training.stacked.layers import StackedLayers
from fedsim.core.training.stacked.modules import StackedModule
from fedsim.core.training.stacked.optimizers import Penalties
from fedsim.core.training.stacked.stack import stack_of


def mlp(d: int, hidden: list[int], classes: int, seed: int = 0) -> nn.Module:
    return zoo.build(ModelSettings(name="mlp", hidden=hidden), (d,), classes, seed)


def cnn(seed: int = 0) -> nn.Module:
    return zoo.build(ModelSettings(name="cnn", hidden=[3, 4]), (1, 8, 8), 3, seed)


def some_records(shape: tuple[int, ...], classes: int, n: int = 30, seed: int = 0) -> Records:
    stream = np.random.default_rng(seed)
    return Records(stream.normal(size=(n, *shape)).astype(np.float32), stream.integers(0, classes, n))


def stacked_together(stack: Stack, modules: list[nn.Module]) -> Parameters:
    loaded = [stack.load(weights.weights_of(module)) for module in modules]
    return [torch.cat(parts) for parts in zip(*loaded, strict=True)]


def gradients(stack: Stack, parameters: Parameters, pool: PoolTensors, batches: Batches) -> dict:
    """The gradients by name, (M, …), read off what a gradient adds to zeros."""
    with torch.no_grad():
        gradient = stack.trainer(parameters, pool).gradient(batches)
        targets = [torch.zeros_like(p[: len(batches.rows)]) for p in parameters]
        for i, target in enumerate(targets):
            gradient.add_to(i, target, 0.0, 1.0)
        return stack.state(stack.pieces(targets))


def by_autograd(
    module: nn.Module, records: Records, rows: np.ndarray, weight: np.ndarray, clipping_norm: float | None
) -> dict:
    """Σ_i weight_i c_i ∇ℓ_i, a record at a time."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for row, w in zip(rows, weight, strict=True):
        if w == 0:
            continue
        x, y = torch.tensor(records.features[row : row + 1]), torch.tensor(records.labels[row : row + 1])
        module.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        grads = {name: p.grad for name, p in module.named_parameters()}
        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))  # type: ignore[union-attr,misc,arg-type]
        c = 1.0 if clipping_norm is None else min(1.0, clipping_norm / (norm.item() + 1e-6))
        for name, g in grads.items():
            total[name] += float(w) * c * g  # type: ignore[operator]
    return total


def some_batches(n: int, m: int, width: int, seed: int, clipping_norm: float | None) -> Batches:
    """Batches of at most ``width`` records of n, each of another size, the rest padding."""
    stream = np.random.default_rng(seed)
    rows = np.full((m, width), n)
    weight = np.zeros((m, width), np.float32)
    for i in range(m):
        size = int(stream.integers(1, width + 1))
        rows[i, :size] = stream.permutation(n)[:size]
        weight[i, :size] = stream.random(size) + 0.1
    norm = None if clipping_norm is None else torch.full((m, 1), clipping_norm)
    return Batches(torch.tensor(rows), torch.zeros(0), torch.tensor(weight), norm)


def check_gradients(
    stack: Stack, modules: list[nn.Module], records: Records, width: int, clipping_norm: float | None
) -> None:
    parameters = stacked_together(stack, modules)
    pool = stack.pool(records)
    b = some_batches(len(records), len(modules), width, 1, clipping_norm)
    batches = Batches(b.rows, pool.labels[b.rows], b.weight, b.clipping_norm)
    found = gradients(stack, parameters, pool, batches)
    for m, module in enumerate(modules):
        expected = by_autograd(module, records, b.rows[m].numpy(), b.weight[m].numpy(), clipping_norm)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name][m], gradient, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(1, 9),
    hidden=st.lists(st.integers(1, 13), max_size=3),
    classes=st.integers(2, 6),
    width=st.sampled_from([4, 8, 12]),
    clipping_norm=st.sampled_from([None, 0.3, 2.0, 1e6]),
)
def test_layers_have_autograds_gradients(
    d: int, hidden: list[int], classes: int, width: int, clipping_norm: float | None
) -> None:
    modules = [mlp(d, hidden, classes, seed) for seed in range(3)]
    records = some_records((d,), classes)
    check_gradients(StackedLayers(modules[0]), modules, records, width, clipping_norm)


@pytest.mark.parametrize("clipping_norm", [None, 0.5])
def test_any_module_has_autograds_gradients(clipping_norm: float | None) -> None:
    modules = [cnn(seed) for seed in range(2)]
    stack = stack_of(modules[0], (1, 8, 8), 3)
    assert isinstance(stack, StackedModule)
    check_gradients(stack, modules, some_records((1, 8, 8), 3), 4, clipping_norm)


def test_padding_contributes_exactly_nothing() -> None:
    module, records = mlp(5, [6], 3), some_records((5,), 3)
    stack = StackedLayers(module)
    parameters, pool = stacked_together(stack, [module, module]), stack.pool(records)
    rows = torch.arange(8).view(2, 4)
    weight = torch.tensor([[0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    other = torch.where(weight > 0, rows, torch.tensor(29))
    for norm in (None, torch.ones(2, 1)):
        one = gradients(stack, parameters, pool, Batches(rows, pool.labels[rows], weight, norm))
        two = gradients(stack, parameters, pool, Batches(other, pool.labels[other], weight, norm))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_noise_is_added_in_the_modules_shapes() -> None:
    module, records = mlp(5, [6], 3), some_records((5,), 3)
    stack = StackedLayers(module)
    parameters, pool = stacked_together(stack, [module]), stack.pool(records)
    rows = torch.arange(4)[None]
    noise = torch.randn(1, stack.parameters, generator=torch.Generator().manual_seed(0))
    quiet = Batches(rows, pool.labels[rows], torch.ones(1, 4))
    loud = Batches(rows, pool.labels[rows], torch.ones(1, 4), noise=Noise(stack.split(noise), torch.ones(1)))
    before, after = (gradients(stack, parameters, pool, b) for b in (quiet, loud))
    added = torch.cat([(after[name] - before[name]).flatten() for name in after])
    assert stack.parameters == sum(p.numel() for p in module.parameters()) == len(added)
    torch.testing.assert_close(added.sort().values, noise[0].sort().values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("d", "hidden", "classes"), [(1, [1], 2), (10, [64, 64], 2), (7, [], 5), (4, [33], 30)]
)
def test_weights_survive_stacking(d: int, hidden: list[int], classes: int) -> None:
    modules = [mlp(d, hidden, classes, seed) for seed in range(3)]
    stack = StackedLayers(modules[0])
    state = stack.state(stack.pieces(stacked_together(stack, modules)))
    for m, module in enumerate(modules):
        assert list(state) == list(module.state_dict())
        assert all(torch.equal(state[name][m], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("shape", [(7,), (2, 3, 3)])
def test_logits_are_the_modules(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_batches, "SIGNAL_ROWS", 13)  # several pieces, the last one odd
    modules = [zoo.build(ModelSettings(name="mlp", hidden=[9, 5]), shape, 3, seed) for seed in range(3)]
    records = some_records(shape, 3)
    for stack in (StackedLayers(modules[0]), StackedModule(copy.deepcopy(modules[0]), 3)):
        with torch.no_grad():
            found = stack.logits(stacked_together(stack, modules), stack.pool(records))
            for m, module in enumerate(modules):
                torch.testing.assert_close(
                    found[m], module(torch.tensor(records.features)), rtol=1e-5, atol=1e-6
                )


OPTIMIZERS = [
    {},
    {"l2": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.5, "l2": 0.1},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adam", "lr": 0.01, "l2": 0.1},
]


@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("choice", OPTIMIZERS, ids=str)
def test_optimizers_are_torchs(choice: dict, mu: float) -> None:
    """Two models make three steps, the first of them two more alone."""
    training = TrainingSettings(**choice)
    modules, records = [mlp(4, [5], 2, seed) for seed in range(2)], some_records((4,), 2)
    stack = StackedLayers(modules[0])
    parameters, pool = stacked_together(stack, modules), stack.pool(records)
    rows = torch.arange(8).view(2, 4)
    with torch.no_grad():
        trainer = stack.trainer(parameters, pool)
        update = optimizers.optimizer(parameters, training, Penalties(mu, 0.0, training.l2))
        for n in (2, 2, 2, 1, 1):
            batches = Batches(rows[:n], pool.labels[rows[:n]], torch.full((n, 4), 0.25))
            update(trainer.gradient(batches), n)
    state = stack.state(stack.pieces(parameters))
    for m, (module, steps) in enumerate(zip(modules, (5, 3), strict=True)):
        train_by_torch(module, records, rows[m], training, mu, steps)
        for name, value in module.state_dict().items():
            torch.testing.assert_close(state[name][m], value, rtol=1e-4, atol=1e-5)


def train_by_torch(
    module: nn.Module, records: Records, rows: torch.Tensor, training: TrainingSettings, mu: float, steps: int
) -> None:
    start = [p.detach().clone() for p in module.parameters()]
    kind = (
        torch.optim.Adam(module.parameters(), lr=training.lr, weight_decay=training.l2)
        if training.optimizer == "adam"
        else torch.optim.SGD(module.parameters(), training.lr, training.momentum, weight_decay=training.l2)
    )
    x, y = torch.tensor(records.features)[rows], torch.tensor(records.labels)[rows]
    for _ in range(steps):
        kind.zero_grad()
        distance = sum((p - w).square().sum() for p, w in zip(module.parameters(), start, strict=True))
        (functional.cross_entropy(module(x), y) + mu / 2 * distance).backward()
        kind.step()


class Meeting(nn.Module):
    """Standardises a batch by hand: the records of a batch meet."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x - x.mean(0))


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 2)),
        Meeting(),
    ],
    ids=["dropout", "batchnorm", "batchnorm without statistics", "by hand"],
)
def test_modules_that_cannot_be_stacked_are_told(module: nn.Module) -> None:
    assert stack_of(module, (4,), 2) is None


def test_frozen_parameters_and_buffers_stay() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    module[0].weight.requires_grad_(False)
    module.register_buffer("scale", torch.tensor([1.0, 2.0]))
    stack = stack_of(module, (4,), 2)
    assert isinstance(stack, StackedModule)
    assert stack.parameters == 5 + 10 + 2
    state = stack.state(stack.pieces(stacked_together(stack, [module, module])))
    assert list(state) == list(module.state_dict())
    assert torch.equal(state["0.weight"][1], module[0].weight)
    assert torch.equal(state["scale"][0], torch.tensor([1.0, 2.0]))


def test_one_thread_for_a_while() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
