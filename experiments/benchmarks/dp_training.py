"""What does a step of local training cost, with and without DP-SGD, against torch and Opacus as they come?

    python experiments/benchmarks/dp_training.py            # some minutes on one core
    python experiments/benchmarks/dp_training.py --quick    # fewer repetitions, never more than 512 records

One thread, random records, CPU time, which is all of the wall time where nothing else runs. Every way is
timed in the same process on the same data, the best of several rounds; Opacus' own figures leave out its
set-up (engine, wrapping, loader), which fedsim's include. Printed as µs a step and as multiples of torch's
plain loop; the last line is the ratio to beat: Opacus over fedsim under DP.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.privacy.plan import make_plan
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import dp, metrics, sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.optimizers import torch_optimizer
from fedsim.core.training.steps import Gradients, LocalTraining

Case = tuple[str, tuple[int, ...], int, list[int], int, int, int, int]
# (model, shape of a record, classes, hidden, records, batch, epochs, repetitions)
CASES: list[Case] = [
    ("mlp", (10,), 2, [64, 64], 44, 16, 5, 20),
    ("mlp", (30,), 2, [64, 32], 2000, 32, 1, 5),
    ("mlp", (600,), 100, [1024, 512, 256], 512, 256, 1, 2),
    ("cnn", (1, 28, 28), 10, [16, 32], 256, 64, 1, 2),
]


class Unknown(torch.nn.Module):
    """A module whose layers fedsim does not look for: what any custom module is to it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def best(work: Callable[[], float], repetitions: int) -> float:
    """Fewest seconds a step of several calls of ``work``, after one to warm up."""
    work()
    return min(work() for _ in range(repetitions))


def timed(round_of_training: Callable[[], int]) -> Callable[[], float]:
    def work() -> float:
        started = time.process_time()
        steps = round_of_training()
        return (time.process_time() - started) / steps

    return work


def torch_loop(module: torch.nn.Module, records: Records, settings: TrainingSettings) -> int:
    optimizer = torch_optimizer(settings, list(module.parameters()))
    draws, steps = PartyDraws(rng.torch_generator(0, "training"), None), 0
    for x, y in sgd.minibatches(metrics.tensors(records), settings, draws):
        optimizer.zero_grad()
        functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        steps += 1
    return steps


def opacus_loop(module: torch.nn.Module, records: Records, settings: TrainingSettings, mode: str) -> float:
    """Seconds a step of PrivacyEngine.make_private's loop, without its set-up."""
    from opacus import PrivacyEngine

    module = copy.deepcopy(module).train()
    wrapped = PrivacyEngine().make_private(
        module=module,
        optimizer=torch_optimizer(settings, list(module.parameters())),
        criterion=torch.nn.CrossEntropyLoss(),
        data_loader=DataLoader(TensorDataset(*metrics.tensors(records)), batch_size=settings.batch),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
    )
    private, optimizer, loader = wrapped[0], wrapped[1], wrapped[-1]
    criterion = wrapped[2] if mode == "ghost" else torch.nn.CrossEntropyLoss()
    started, steps = time.process_time(), 0
    for _ in range(settings.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(private(x), y).backward()
            optimizer.step()
            steps += 1
    return (time.process_time() - started) / steps


def measure(name: str, shape: tuple[int, ...], classes: int, hidden: list[int], n: int, batch: int,
            epochs: int, repetitions: int) -> dict[str, float]:  # fmt: skip
    stream = np.random.default_rng(0)
    records = Records(stream.normal(size=(n, *shape)).astype(np.float32), stream.integers(0, classes, n))
    settings = TrainingSettings(batch=batch, epochs=epochs, lr=0.01)
    plan = make_plan(DPSettings(noise_multiplier=1.0, accountant="rdp"), settings, n, 1)
    module = zoo.build(ModelSettings(name=name, hidden=hidden), shape, classes)

    def plain() -> int:
        draws = PartyDraws(rng.torch_generator(0, "training"), None)
        return sgd.train(module, records, LocalTraining(settings), draws).steps

    def private(module: torch.nn.Module, gradients: Gradients) -> Callable[[], int]:
        def run() -> int:
            draws = PartyDraws(*(rng.torch_generator(0, purpose) for purpose in ("sampling", "noise")))
            local = LocalTraining(settings, gradients=gradients)
            return dp.train_private(module, records, local, plan, draws).steps

        return run

    few = max(1, repetitions // 4)
    return {
        "torch": best(timed(lambda: torch_loop(module, records, settings)), repetitions),
        "fedsim": best(timed(plain), repetitions),
        "fedsim, DP": best(timed(private(module, "auto")), repetitions),
        "fedsim, DP, ghost": best(timed(private(Unknown(module), "ghost")), few),
        "fedsim, DP, per-sample": best(timed(private(module, "per-sample")), few),
        "Opacus, hooks": best(lambda: opacus_loop(module, records, settings, "hooks"), few),
        "Opacus, ghost": best(lambda: opacus_loop(module, records, settings, "ghost"), few),
    }


def cases(quick: bool) -> list[Case]:
    """Return the cases; per-sample gradients of the wide MLP take some seconds a step."""
    if not quick:
        return CASES
    return [(*case[:4], min(case[4], 512), *case[5:7], max(2, case[7] // 4)) for case in CASES]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = Table("CPU µs a step (× torch)")
    columns = []
    for case in cases(quick):
        name, shape, classes, hidden, n, batch, *_ = case
        widths = "-".join(map(str, (*shape, *hidden, classes)))
        table.add_column(f"{name} {widths}\nn={n}, batch {batch}", justify="right")
        columns.append(measure(*case))
    for way in columns[0]:
        cells = [f"{times[way] * 1e6:.0f} ({times[way] / times['torch']:.2f})" for times in columns]
        table.add_row(way, *cells)
    ratios = [min(times["Opacus, hooks"], times["Opacus, ghost"]) / times["fedsim, DP"] for times in columns]
    table.add_row("Opacus' better / fedsim, DP", *[f"{ratio:.2f}" for ratio in ratios])
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
