"""The step of many small models in four ways: fused, batched products, torch.func, compiled.

    python experiments/benchmarks/kernels.py            # about a minute on one core
    python experiments/benchmarks/kernels.py --quick    # fewer repetitions

Each model of the hospitals' shape, 10-64-64-2, makes 15 steps of plain SGD on batches of 16 that are drawn
beforehand. 'Fused' and 'stacked' are what fedsim runs (`core.training.fused`, `core.training.stacked`).
'torch.func' is vmap(grad) of the same module, eager and under torch.compile. The sides take turns on one
thread; of each the least CPU time counts, compilation left out. 'Apart' is the largest difference of a weight
from the stacked one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models import weights, zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training.fused.rounds import Drawn, FusedLayers
from fedsim.core.training.stacked.batches import Batches
from fedsim.core.training.stacked.layers import StackedLayers, Workspace
from fedsim.core.training.stacked.optimizers import Penalties, optimizer
from fedsim.core.training.stacked.regularisation import Regularisation

FEATURES, HIDDEN, CLASSES, BATCH, STEPS, LR, POOL = 10, 64, 2, 16, 15, 0.1, 440
FLOPS = 2 * BATCH * (2 * FEATURES * HIDDEN + 3 * HIDDEN * HIDDEN + 3 * HIDDEN * CLASSES)
"""Of the products of a model's step: two for the first layer, three for each of the others."""


@dataclass(frozen=True)
class Problem:
    """What every way is given: records, initial weights, and the rows of each step, (STEPS, M, B) int64."""

    records: Records
    module: torch.nn.Module
    rows: np.ndarray

    @staticmethod
    def of(models: int) -> Problem:
        stream = np.random.default_rng(0)
        records = Records(
            stream.normal(size=(POOL, FEATURES)).astype(np.float32), stream.integers(0, CLASSES, POOL)
        )
        module = zoo.build(ModelSettings(name="mlp", hidden=[HIDDEN, HIDDEN]), (FEATURES,), CLASSES)
        return Problem(records, module, stream.integers(0, POOL, (STEPS, models, BATCH)))

    @property
    def models(self) -> int:
        return self.rows.shape[1]


Train = Callable[[], dict[str, np.ndarray]]
"""Trains all models from the start; returns their parameters by name, (M, …) in the module's shapes."""


def stacked(problem: Problem) -> Train:
    stack = StackedLayers(problem.module)
    pool, start = stack.pool(problem.records), stack.load(weights.weights_of(problem.module))
    rows = torch.from_numpy(problem.rows)
    labels, weight = pool.labels[rows], torch.full((problem.models, BATCH), 1 / BATCH)
    local = [torch.empty(problem.models, *p.shape[1:]) for p in start]
    trainer = stack.trainer(local, pool)

    def train() -> dict[str, np.ndarray]:
        for p, sent in zip(local, start, strict=True):
            p.copy_(sent.expand_as(p))
        update = optimizer(local, TrainingSettings(lr=LR, batch=BATCH), Penalties())
        with torch.no_grad():
            for x, y in zip(rows, labels, strict=True):
                update(trainer.gradient(Batches(x, y, weight)), problem.models)
        return {name: value.numpy() for name, value in stack.state(stack.pieces(local)).items()}

    return train


def by_torch_func(problem: Problem, compiled: bool) -> Train:
    features, labels = torch.tensor(problem.records.features), torch.tensor(problem.records.labels)
    rows = torch.from_numpy(problem.rows)
    start = {name: p.detach() for name, p in problem.module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(problem.module, parameters, (x,)), y)

    def step(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        gradients = torch.func.vmap(torch.func.grad(loss))(parameters, x, y)
        return {name: p - LR * gradients[name] for name, p in parameters.items()}

    run = torch.compile(step) if compiled else step

    def train() -> dict[str, np.ndarray]:
        parameters = {name: p.expand(problem.models, *p.shape).contiguous() for name, p in start.items()}
        with torch.no_grad():
            for row in rows:
                parameters = run(parameters, features[row], labels[row])
        return {name: p.numpy() for name, p in parameters.items()}

    return train


def fused(problem: Problem) -> Train:
    stack, models = StackedLayers(problem.module), problem.models
    layers, pool = FusedLayers(stack), stack.pool(problem.records)
    start = stack.load(weights.weights_of(problem.module))
    flat, local = layers.buffers(Workspace(), models)
    nothing, none = torch.zeros(models), np.empty((STEPS, 0), np.uint64)
    rows = torch.from_numpy(problem.rows.astype(np.int32))
    drawn = Drawn(rows, np.full(models, STEPS), None, None, none, none, (0, 0))
    settings, regularisation = (
        TrainingSettings(lr=LR, batch=BATCH),
        Regularisation(pool, CLASSES, nothing, nothing),
    )

    def train() -> dict[str, np.ndarray]:
        for p, sent in zip(local, start, strict=True):
            p.copy_(sent.expand_as(p))
        layers.train(flat, pool, drawn, settings, Penalties(), regularisation, None)
        return {name: value.numpy() for name, value in stack.state(stack.pieces(local)).items()}

    return train


def ways(problem: Problem) -> dict[str, Train]:
    """Return every way that this machine has, in the table's order."""
    all_ways = {
        "stacked (fedsim)": stacked(problem),
        "fused (fedsim)": fused(problem),
        "torch.func": by_torch_func(problem, compiled=False),
    }
    compiled = by_torch_func(problem, compiled=True)
    try:
        compiled()
        all_ways["torch.func, compiled"] = compiled
    except Exception as error:  # no C++ compiler: torch has its own errors for that
        print(f"torch.compile does not work here: {type(error).__name__}")
    return all_ways


def comparison(models: int, repeats: int) -> Table:
    table = Table(title=f"{models} models 10-64-64-2, batch {BATCH}, plain SGD: one core, CPU time")
    for column in ("", "µs a model and step", "GFLOP/s", "against stacked", "apart"):
        table.add_column(column, justify="right" if column else "left")
    run = ways(Problem.of(models))
    results = {name: train() for name, train in run.items()}  # warms up, and compiles
    best = dict.fromkeys(run, float("inf"))
    for _ in range(repeats):
        for name, train in run.items():
            began = time.process_time()
            train()
            best[name] = min(best[name], time.process_time() - began)
    first = next(iter(run))
    for name, seconds in best.items():
        micro = 1e6 * seconds / (models * STEPS)
        apart = max(float(np.abs(results[name][key] - w).max()) for key, w in results[first].items())
        cells = (f"{micro:.1f}", f"{FLOPS / micro / 1e3:.1f}", f"{seconds / best[first]:.2f}", f"{apart:.0e}")
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three repetitions instead of ten")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for models in (320, 1280):
        Console(width=110).print(comparison(models, 3 if options.quick else 10))


if __name__ == "__main__":
    main()
