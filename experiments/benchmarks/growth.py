"""How the cost of shadow federations grows with shadows, parties, records, rounds and candidates.

    python experiments/benchmarks/growth.py            # up to 4096 shadows and 50 000 candidates
    python experiments/benchmarks/growth.py --quick    # up to 1024 shadows and 10 000 candidates

The hospitals' setting (`shadows.py`) with two rounds, one axis at a time, on one thread. Counted is the
CPU time of everything: members drawn, all federations trained, the records' outputs. An exponent is the
slope of the logarithms over all sizes: 1 is linear, below 1 a part of the cost is fixed; beside it the
exponent between the two largest sizes. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import shadows as setting
import torch
from rich.console import Console
from rich.table import Table

from attacks.shadows.members import draw_members
from attacks.shadows.simulate import Laboratory, ShadowRequest, train_shadows
from fedsim.core.models import weights, zoo

ROUNDS, SHADOWS = 2, 16


def simulate(shadows: int = SHADOWS, parties: int = setting.PARTIES, records: int = setting.RECORDS,
             rounds: int = ROUNDS, candidates: int = 100) -> None:  # fmt: skip
    """Train so many shadows and keep the outputs of so many records, at the last round."""
    plan = setting.federation_plan(parties=parties, records=records, rounds=rounds)
    sizes = plan.sizes.tolist()
    pool = setting.random_records(2 * sum(sizes))
    membership = draw_members(shadows, sizes, np.repeat(np.arange(parties), 2 * plan.sizes), seed=0)
    initial = weights.weights_of(zoo.build(plan.model, plan.input_shape, plan.classes))
    asked = setting.random_records(candidates)
    train_shadows(ShadowRequest(plan, initial, pool, membership, asked, (rounds,), seed=0), Laboratory(1))


def axes(quick: bool) -> dict[str, tuple[list[int], Callable[[int], None]]]:
    """Return of each axis its sizes, and what is done for one of them."""
    return {
        "shadows": (
            [16, 64, 256, 1024] if quick else [16, 64, 256, 1024, 4096],
            lambda n: simulate(shadows=n),
        ),
        "parties": ([5, 20, 80] if quick else [5, 20, 80, 320], lambda n: simulate(parties=n)),
        "records a party": ([44, 176, 704], lambda n: simulate(records=n)),
        "rounds": ([2, 8, 32], lambda n: simulate(rounds=n)),
        "candidates": (
            [100, 1000, 10_000] if quick else [100, 1000, 10_000, 50_000],
            lambda n: simulate(candidates=n),
        ),
    }


def cpu_seconds(work: Callable[[], None], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def exponents(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Return the slope of log seconds over log size: over all sizes, and between the two largest."""
    x, y = np.log(sizes), np.log(seconds)
    return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


def growth(quick: bool) -> Table:
    table = Table(title="CPU seconds on one core, and how they grow")
    for column in ("", "sizes", "seconds", "exponent", "of the largest", "peak MiB"):
        table.add_column(column, justify="left" if not column else "right")
    simulate()  # warms up
    for name, (sizes, work) in axes(quick).items():
        seconds = [cpu_seconds(partial(work, n), 1 if quick else 2) for n in sizes]
        overall, last = exponents(sizes, seconds)
        peaks = [peak_memory(name, n) for n in (sizes[0], sizes[-1])]
        table.add_row(
            name, ", ".join(map(str, sizes)), ", ".join(f"{value:.2f}" for value in seconds),
            f"{overall:.2f}", f"{last:.2f}", f"{peaks[0]} to {peaks[1]}",
        )  # fmt: skip
    table.caption = (
        f"16 shadows, {ROUNDS} rounds, 5 parties of 44 records and 100 candidates, where not varied."
    )
    return table


def peak_memory(axis: str, size: int) -> int:
    """Return MiB, of a process that does nothing else."""
    command = [sys.executable, __file__, "--memory-of", axis, str(size)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(answer) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller largest sizes, each once")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        axis, size = options.memory_of
        axes(quick=False)[axis][1](int(size))
        print(setting.peak_memory(0))
        return
    simulate()  # imports, and what has to be compiled
    Console(width=120).print(growth(options.quick))


if __name__ == "__main__":
    main()
