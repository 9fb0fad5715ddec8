"""Shadow federations many at a time against one after another, on the same cores in one run.

    python experiments/benchmarks/shadows.py            # all tables, some minutes
    python experiments/benchmarks/shadows.py --quick    # once, 32 shadows, both cores for the first line only
    python experiments/benchmarks/shadows.py --large    # only: models that gain nothing from being stacked

The setting is that of experiments/hospitals.toml: 5 parties × 44 records, 40 rounds × 5 epochs, batch 16,
MLP 10-64-64-2; the records are random, which costs the same. The sides take turns, so that whatever else
the machine does hits all of them; of each the best time counts, and the least CPU time beside it. How the
cost grows is `growth.py`'s, how the step compares with other ways to write it `kernels.py`'s.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

# One torch thread a process, where no more are asked for.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from attacks.shadows import paths
from attacks.shadows.members import draw_members
from attacks.shadows.plan import FederationPlan, PartyTraining
from attacks.shadows.simulate import Laboratory, ShadowRequest, train_shadows
from fedsim.core.data.records import Records
from fedsim.core.models import weights, zoo
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

PARTIES, RECORDS, ROUNDS, EPOCHS, BATCH, LR = 5, 44, 40, 5, 16, 0.1
FEATURES, HIDDEN, CLASSES = 10, (64, 64), 2
NOISE, CLIPPING_NORM = 1.0, 1.0
ONE_BY_ONE_ROUNDS = ROUNDS // 8
"""Rounds that are measured where a federation is trained alone; each costs the same."""
CORES = min(4, os.cpu_count() or 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32 shadows, each side once")
    parser.add_argument("--large", action="store_true", help="a CNN and a wide MLP over cores, nothing else")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        print(peak_memory(options.memory_of))
        return
    console = Console(width=120)
    shadows, repeats = (32, 1) if options.quick else (64, 5)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    machine = platform.processor() or platform.machine()
    console.print(f"{machine}, {os.cpu_count()} cores, load before {load}; torch {torch.__version__}")
    if options.large:
        console.print(over_cores(repeats))
        return
    for private in (False, True):  # imports, and what has to be compiled
        stacked(federation_plan(private, rounds=1), 2, 1)
    console.print(against_one_by_one(shadows, repeats, options.quick))
    console.print(against_batched_products(shadows, max(3, repeats)))
    console.print(against_the_machine(shadows, repeats))
    console.print(memory(shadows))


# The two sides.


def federation_plan(
    private: bool = False, parties: int = PARTIES, records: int = RECORDS, rounds: int = ROUNDS
) -> FederationPlan:
    steps = EPOCHS * -(-records // BATCH)
    dp = Plan(
        BATCH / records, float(BATCH), steps, NOISE, rounds, 1e-5, CLIPPING_NORM, "rdp", 1.0, float("inf")
    )
    return FederationPlan(
        model=ModelSettings(name="mlp", hidden=list(HIDDEN)),
        input_shape=(FEATURES,), classes=CLASSES, rounds=rounds,
        training=TrainingSettings(lr=LR, batch=BATCH, epochs=EPOCHS),
        parties=(PartyTraining(records, dp if private else None),) * parties, participants=parties,
    )  # fmt: skip


def random_records(n: int) -> Records:
    stream = np.random.default_rng(0)
    return Records(stream.normal(size=(n, FEATURES)).astype(np.float32), stream.integers(0, CLASSES, n))


def stacked(plan: FederationPlan, shadows: int, workers: int) -> None:
    """Members drawn, all federations trained, the final models' outputs on all records."""
    sizes = plan.sizes.tolist()
    pool = random_records(2 * sum(sizes))
    membership = draw_members(shadows, sizes, np.repeat(np.arange(len(sizes)), 2 * plan.sizes), seed=0)
    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    request = ShadowRequest(plan, weights.weights_of(module), pool, membership, pool, (plan.rounds,), seed=0)
    train_shadows(request, Laboratory(workers))


def fresh_module() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )


Train = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]


def one_federation(train: Train, rounds: int = ROUNDS, threads: int = 1) -> float:
    """Do federated averaging as one would write it; return its CPU seconds."""
    torch.set_num_threads(threads)
    began = time.process_time()
    warnings.simplefilter("ignore")  # Opacus on its random number generator
    records = random_records(PARTIES * RECORDS)
    x, y = torch.tensor(records.features).split(RECORDS), torch.tensor(records.labels).split(RECORDS)
    module = fresh_module()
    state = copy.deepcopy(module.state_dict())
    for _ in range(rounds):
        answers = []
        for k in range(PARTIES):
            module.load_state_dict(state)
            train(module, x[k], y[k])
            answers.append(copy.deepcopy(module.state_dict()))
        state = {name: sum(answer[name] for answer in answers) / PARTIES for name in state}
    return time.process_time() - began


def train_plainly(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    criterion = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            criterion(module(x[index]), y[index]).backward()
            optimizer.step()


def train_from_loader(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """The same with torch's own loader of batches, as tutorials and Flower's examples have it."""
    from torch.utils.data import DataLoader, TensorDataset

    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    for _ in range(EPOCHS):
        for batch, labels in loader:
            optimizer.zero_grad()
            criterion(module(batch), labels).backward()
            optimizer.step()


def train_with_opacus(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    private = copy.deepcopy(module)
    wrapped, optimizer, loader = PrivacyEngine().make_private(
        module=private, optimizer=torch.optim.SGD(private.parameters(), lr=LR),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=BATCH),
        noise_multiplier=NOISE, max_grad_norm=CLIPPING_NORM,
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for batch, labels in loader:
            optimizer.zero_grad()
            criterion(wrapped(batch), labels).backward()
            optimizer.step()
    module.load_state_dict(wrapped._module.state_dict())


# The tables.


@dataclass
class Times:
    """Seconds a federation, of every repetition: wall alone, in a process a core, stacked; CPU."""

    alone: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    stacked: list[float] = field(default_factory=list)
    alone_cpu: list[float] = field(default_factory=list)
    stacked_cpu: list[float] = field(default_factory=list)


def against_one_by_one(shadows: int, repeats: int, quick: bool) -> Table:
    table = Table(title=f"{shadows} shadow federations against one after another (seconds a federation)")
    columns = ("", "cores", "alone", "a process a core", "fedsim", "ratio", "a core", "CPU alone",
               "CPU fedsim", "CPU ratio")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    cases: list[tuple[str, bool, Train]] = [
        ("torch.nn, torch.optim.SGD", False, train_plainly),
        ("the same from a DataLoader", False, train_from_loader),
        ("Opacus DP-SGD", True, train_with_opacus),
    ]
    for name, private, train in cases:
        plan = federation_plan(private)
        for cores in dict.fromkeys((1, 1 if quick and train is not train_plainly else CORES)):
            times = side_by_side(train, plan, shadows, cores, repeats, quick)
            one, each, many = min(times.alone), min(times.each), min(times.stacked)
            cpu, ours = min(times.alone_cpu), min(times.stacked_cpu)
            shown = (f"{one:.3f}", f"{each:.3f}", f"{many:.4f}", f"{one / many:.0f}×", f"{each / many:.0f}×")
            table.add_row(name, str(cores), *shown, f"{cpu:.3f}", f"{ours:.4f}", f"{cpu / ours:.0f}×")
    table.caption = (
        f"Best of {repeats}. Alone: one federation after another in one process, of one thread"
        f"{'' if quick else ' or of one per core, whichever is quicker'}; beside it, one federation in each"
        f" of as many processes of one thread, already running. fedsim: {shadows}, as many workers,"
        " all included. Ratio: alone over fedsim; 'a core': processes over stacked. CPU: of one thread."
    )
    return table


def side_by_side(
    train: Train, plan: FederationPlan, shadows: int, cores: int, repeats: int, quick: bool
) -> Times:
    """Measure the three in turns; a federation that is trained alone makes an eighth of the rounds."""
    times, scale = Times(), ROUNDS / ONE_BY_ONE_ROUNDS
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        list(pool.map(one_federation, [train] * cores, [1] * cores))  # start, import, warm up

        def alone(threads: int) -> None:
            cpu = pool.submit(one_federation, train, ONE_BY_ONE_ROUNDS, threads).result()
            if threads == 1:
                times.alone_cpu.append(cpu * scale)

        for _ in range(repeats):
            # With other work on the machine, threads that wait for each other at every step take minutes.
            walls = [timed(lambda n=n: alone(n)) for n in ({1} if quick else {1, cores})]  # type: ignore[misc]
            times.alone.append(min(walls) * scale)
            each = timed(lambda: list(pool.map(one_federation, [train] * cores, [ONE_BY_ONE_ROUNDS] * cores)))
            times.each.append(each / cores * scale)
            began = time.process_time()
            times.stacked.append(timed(lambda: stacked(plan, shadows, cores)) / shadows)
            times.stacked_cpu.append((time.process_time() - began) / shadows)
    return times


def against_batched_products(shadows: int, repeats: int) -> Table:
    """The path that is taken against the other one: models one after the other in the cache, or together."""
    table = Table(title=f"{shadows} shadow federations, fused against stacked (ms a federation)")
    for column in ("", "cores", "CPU stacked", "CPU fused", "ratio", "wall stacked", "wall fused", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    walls: dict[tuple[bool, int], float] = {}
    for private in (False, True):
        plan = federation_plan(private)
        for cores in dict.fromkeys((1, min(2, CORES))):
            best = {"stacked": (math.inf, math.inf), "fused": (math.inf, math.inf)}
            for _ in range(repeats):
                for path, least in (("stacked", math.inf), ("fused", 0)):
                    with mock.patch.object(paths, "LEAST_WORK", least):
                        began = time.process_time()
                        wall = timed(lambda n=cores, p=plan: stacked(p, shadows, n))  # type: ignore[misc]
                        used = (time.process_time() - began, wall)
                    best[path] = min(best[path][0], used[0]), min(best[path][1], used[1])
            walls[private, cores] = best["fused"][1]
            cells = []
            for measure in (0, 1):
                one, other = (1e3 * best[path][measure] / shadows for path in ("stacked", "fused"))
                cells += [f"{one:.1f}", f"{other:.1f}", f"{other / one:.2f}"]
            table.add_row("DP-SGD" if private else "plain", str(cores), *cells)
    gains = [f"{walls[p, 1] / walls[p, min(2, CORES)]:.2f}×" for p in (False, True)]
    table.caption = f"Best of {repeats}. A second core brings the fused path {gains[0]}, with DP {gains[1]}."
    return table


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cpu_timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def against_the_machine(shadows: int, repeats: int) -> Table:
    """GFLOP/s of a whole simulation, and of the same products of matrices alone."""
    table = Table(title="Arithmetic reached, GFLOP/s of one core's CPU time")
    for column in ("models", "simulation", "torch.baddbmm alone", "share"):
        table.add_column(column, justify="right")
    plan = federation_plan(rounds=ROUNDS // 4)
    for count in (shadows // 4, shadows):
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(flops(plan) * count / cpu_timed(lambda n=count: stacked(plan, n, 1)) / 1e9)
            theirs.append(matrix_products(count * PARTIES) / 1e9)
        us, them = max(ours), max(theirs)
        table.add_row(str(count * PARTIES), f"{us:.1f}", f"{them:.1f}", f"{us / them:.0%}")
    table.caption = (
        "Counted: the products of forward and backward pass, on records that are there (no padding)."
    )
    return table


def layer_shapes() -> list[tuple[int, int]]:
    widths = (FEATURES, *HIDDEN, CLASSES)
    return list(pairwise(widths))


def flops(plan: FederationPlan) -> float:
    """Floating-point operations of one federation: two products a layer and one more below the first."""
    a_record = sum(2 * a * b * (2 if i == 0 else 3) for i, (a, b) in enumerate(layer_shapes()))
    return a_record * plan.rounds * EPOCHS * float(plan.sizes.sum())


def matrix_products(count: int) -> float:
    """FLOP/s of the same products, in the same proportions, with nothing in between."""
    calls = []
    for i, (a, b) in enumerate(layer_shapes()):
        x, delta, weight = (
            torch.randn(count, BATCH, a),
            torch.randn(count, BATCH, b),
            torch.randn(count, a, b),
        )
        calls.append((delta.clone(), x, weight))
        calls.append((weight.clone(), x.mT, delta))
        if i:
            calls.append((x.clone(), delta, weight.mT))

    def products() -> None:
        for _ in range(20):
            for out, left, right in calls:
                torch.baddbmm(out, left, right, beta=0, out=out)

    products()
    work = 20 * sum(
        2 * count * BATCH * a * b * (2 if i == 0 else 3) for i, (a, b) in enumerate(layer_shapes())
    )
    return work / min(cpu_timed(products) for _ in range(3))


def memory(shadows: int) -> Table:
    """Peak memory, each figure from a process of its own."""
    table = Table(title="Peak memory of a process, MiB")
    table.add_column("shadows", justify="right")
    table.add_column("MiB", justify="right")
    for count in (0, shadows, 4 * shadows):
        command = [sys.executable, __file__, "--memory-of", str(count)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        table.add_row(str(count) if count else "none, imports only", f"{int(peak) / 1024:.0f}")
    return table


def peak_memory(shadows: int) -> int:
    """Return KiB. Linux hands a parent's peak on to its children in getrusage, but not in /proc."""
    if shadows:
        stacked(federation_plan(rounds=2), shadows, 1)
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def over_cores(repeats: int) -> Table:
    """Models that fill a core alone: what more cores bring, in one run."""
    table = Table(title="Large models over cores")
    for column in ("", "workers", "seconds a federation", "speed-up", "the machine's", "start included"):
        table.add_column(column, justify="right" if column else "left")
    for name, plan, shadows in large_plans():
        best: dict[int, tuple[float, float]] = {}
        plain: dict[int, float] = {}
        for _ in range(repeats):
            for workers in (n for n in (1, 2, 4) if n <= CORES):
                times = running_and_in_all(plan, shadows, workers)
                best[workers] = min(best.get(workers, times), times)
                plain[workers] = max(plain.get(workers, 0.0), plain_training(plan, workers))
        for workers, (running, whole) in best.items():
            ratios = (best[1][0] / running, plain[workers] / plain[1])
            shown = (f"{running:.3f}", *(f"{ratio:.2f}×" for ratio in ratios), f"{whole:.3f}")
            table.add_row(name, str(workers), *shown)
    table.caption = (
        f"Best of {repeats}; 4 parties × 64 records, one epoch. Seconds: while all workers are running, over "
        "the shadows finished in that time; 'start included': all of a short run, with the workers' start. "
        "The machine's: what as many processes bring that have nothing to do with each other, each training "
        "such a model in plain PyTorch."
    )
    return table


def plain_training(plan: FederationPlan, processes: int) -> float:
    """Return steps a second of as many processes, each of which trains a model of its own on one thread."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(plain_rate, [plan] * processes, [0.1] * processes))  # start, import, warm up
        return sum(pool.map(plain_rate, [plan] * processes, [3.0] * processes))


def plain_rate(plan: FederationPlan, seconds: float) -> float:
    torch.set_num_threads(1)
    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    x, y = torch.randn(BATCH, *plan.input_shape), torch.randint(plan.classes, (BATCH,))
    steps, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        train_plainly(module, x, y)  # one batch an epoch
        steps += EPOCHS
    return steps / (time.perf_counter() - start)


def large_plans() -> list[tuple[str, FederationPlan, int]]:
    """Name, plan and shadows: a CNN on 28×28 images, and the MLP 600-1024-512-256-100."""
    cnn = ModelSettings(name="cnn", hidden=[16, 32])
    wide = ModelSettings(name="mlp", hidden=[1024, 512, 256])
    cases = [
        ("CNN 28×28, 16 and 32 channels", cnn, (1, 28, 28), 10, 96),
        ("MLP 600-1024-512-256-100", wide, (600,), 100, 64),
    ]
    return [
        (
            name,
            FederationPlan(
                model=model, input_shape=shape, classes=classes, rounds=1,
                training=TrainingSettings(lr=LR, batch=BATCH, epochs=1),
                parties=(PartyTraining(64),) * 4, participants=4,
            ),
            shadows,
        )
        for name, model, shape, classes, shadows in cases
    ]  # fmt: skip


def running_and_in_all(plan: FederationPlan, shadows: int, workers: int) -> tuple[float, float]:
    """Return seconds a federation, once every worker has finished something, and in all."""
    stream, sizes = np.random.default_rng(0), plan.sizes.tolist()
    n = 2 * sum(sizes)
    features = stream.normal(size=(n, *plan.input_shape)).astype(np.float32)
    pool = Records(features, stream.integers(0, plan.classes, n))
    membership = draw_members(shadows, sizes, np.repeat(np.arange(len(sizes)), 2 * plan.sizes), seed=0)
    initial = weights.weights_of(zoo.build(plan.model, plan.input_shape, plan.classes))
    finished: list[tuple[int, float]] = []
    start = time.perf_counter()
    request = ShadowRequest(plan, initial, pool, membership, pool.take(np.arange(16)), (1,), seed=0)
    note = lambda done, total: finished.append((done, time.perf_counter()))  # noqa: E731
    train_shadows(request, Laboratory(workers, progress=note))
    (before, first), (after, last) = finished[workers - 1], finished[-1]
    return (last - first) / (after - before), (time.perf_counter() - start) / shadows


if __name__ == "__main__":
    main()
