"""What a GPU would bring to stacked shadows: the same steps of many models on CPU and on CUDA, in one run.

    python experiments/benchmarks/gpu.py            # both devices, a few minutes
    python experiments/benchmarks/gpu.py --quick    # fewer models and repetitions
    python experiments/benchmarks/gpu.py --device cpu --device cpu    # without a GPU: the ratio is near 1

Models are those of the shadow federations: the hospitals' MLP 10-64-64-2, plain and with clipped gradients,
by written-out batched products, and a CNN on 28×28 images through torch.func. They make the steps of one
round (batch 16) on random records that already are on the device; drawing them, the server's mean and the
signals are left out, and so is DP's noise, which a CPU takes from a table. The CPU has one thread: what a
core does. The last column says how far the two devices' parameters are apart at the end, of the largest
change: float32 products are summed in another order.

fedsim trains shadows on the CPU whatever this prints; nothing depends on a GPU.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedsim.core.data.records import Records
from fedsim.core.models import weights, zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training.stacked.batches import Batches
from fedsim.core.training.stacked.optimizers import Penalties, optimizer
from fedsim.core.training.stacked.stack import layout_of

BATCH, LR, POOL = 16, 0.05, 440
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """M models that train together for so many steps, on records of this shape."""

    name: str
    model: ModelSettings
    shape: Shape
    classes: int
    models: int
    steps: int
    clipped: bool = False


def cases(quick: bool) -> list[Case]:
    mlp, cnn = ModelSettings(name="mlp", hidden=[64, 64]), ModelSettings(name="cnn", hidden=[16, 32])
    counts = (320, 1280) if quick else (320, 1280, 5120, 20_480)
    rows = [Case("MLP 10-64-64-2", mlp, (10,), 2, count, 15) for count in counts]
    rows += [Case("the same, clipped", mlp, (10,), 2, count, 15, clipped=True) for count in counts[:2]]
    images = (4, 16) if quick else (4, 16, 64)
    return rows + [Case("CNN 28×28", cnn, (1, 28, 28), 10, count, 4) for count in images]


def seconds_a_round(case: Case, device: str, repeats: int) -> tuple[float, list[Tensor]]:
    """Return the best of ``repeats`` rounds in seconds, and the parameters (M, …) after one round."""
    stream = np.random.default_rng(0)
    records = Records(
        stream.normal(size=(POOL, *case.shape)).astype(np.float32), stream.integers(0, case.classes, POOL)
    )
    torch.manual_seed(0)
    initial = weights.weights_of(zoo.build(case.model, case.shape, case.classes))
    drawn = stream.integers(0, POOL, size=(case.steps, case.models, BATCH))
    with torch.device(device), torch.no_grad():  # whatever the stack allocates is then on the device
        stack = layout_of(zoo.build(case.model, case.shape, case.classes), case.classes)
        pool, start, rows = stack.pool(records), stack.load(initial), torch.tensor(drawn)
        labels = pool.labels[rows]
        weight = torch.full((case.models, BATCH), 1 / BATCH)
        norm = torch.ones(case.models, 1) if case.clipped else None
        local = [p.repeat(case.models, *[1] * (p.dim() - 1)) for p in start]
        trainer, best = stack.trainer(local, pool), float("inf")
        for _ in range(repeats + 1):  # the first one warms up
            for p, sent in zip(local, start, strict=True):
                p.copy_(sent.expand_as(p))
            wait(device)
            began = time.perf_counter()
            update = optimizer(local, TrainingSettings(lr=LR, batch=BATCH), Penalties())
            for step in range(case.steps):
                update(trainer.gradient(Batches(rows[step], labels[step], weight, norm)), case.models)
            wait(device)
            best = min(best, time.perf_counter() - began)
        changes = [p - sent for p, sent in zip(local, start, strict=True)]
        return best, [change.cpu() for change in changes]


def wait(device: str) -> None:
    """Wait until the device has done what it was asked to."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def apart(first: list[Tensor], second: list[Tensor]) -> float:
    """Return the largest difference over the largest change."""
    largest = max(float(change.abs().max()) for change in first)
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) / largest


def comparison(devices: tuple[str, str], quick: bool) -> Table:
    table = Table(
        title=f"Stacked models on {devices[0]} and {devices[1]}: µs a model and step, batch {BATCH}"
    )
    for column in ("", "models", *devices, "ratio", "apart"):
        table.add_column(column, justify="right" if column else "left")
    for case in cases(quick):
        (one, there), (other, here) = (seconds_a_round(case, d, 1 if quick else 3) for d in devices)
        micro = 1e6 / (case.models * case.steps)
        shown = (f"{one * micro:.2f}", f"{other * micro:.2f}", f"{one / other:.1f}×")
        table.add_row(case.name, str(case.models), *shown, f"{apart(there, here):.0e}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer models, best of one")
    parser.add_argument("--device", action="append", help="twice: what is compared (default: cpu, cuda)")
    options = parser.parse_args()
    devices = tuple(options.device or ("cpu", "cuda"))
    if len(devices) != 2:
        parser.error("--device is given twice or not at all")
    console = Console(width=110)
    if "cuda" in devices and not torch.cuda.is_available():
        console.print("no CUDA device on this machine: nothing measured")
        return
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if "cuda" in devices else "no GPU"
    console.print(f"{name}; torch {torch.__version__}, {torch.get_num_threads()} CPU thread")
    console.print(comparison((devices[0], devices[1]), options.quick))


if __name__ == "__main__":
    main()
