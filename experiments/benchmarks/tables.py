"""How long it takes to read, encode and deal a large table of one's own, and how much memory.

    python experiments/benchmarks/tables.py                       1,000,000 rows x 30 columns, 20 parties
    python experiments/benchmarks/tables.py --quick               100,000 rows
    python experiments/benchmarks/tables.py --rows 2000 --columns 10000 --parties 4

Each measurement is a process of its own; its peak memory is what the system counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

QUICK_ROWS = 100_000


def write(path: Path, rows: int, columns: int, parties: int) -> None:
    """Write numbers, categories, a party and a label as CSV, a block of rows at a time."""
    draw = np.random.default_rng(0)
    for start in range(0, rows, 50_000):
        n = min(50_000, rows - start)
        numbers = pd.DataFrame(draw.normal(50, 10, (n, columns - 4)).round(3)).add_prefix("x")
        words = {
            "ward": draw.choice(["med", "surg", "icu"], n),
            "sex": draw.choice(["F", "M"], n),
            "site": [f"site {k}" for k in draw.integers(parties, size=n)],
            "y": draw.choice(["no", "yes"], n),
        }
        block = pd.concat([numbers, pd.DataFrame(words)], axis=1)
        block.to_csv(path, mode="a", header=start == 0, index=False)


def measure(path: str, natural: bool, parties: int, queue: multiprocessing.Queue) -> None:
    from fedsim.core.scenario.reading import parse
    from fedsim.runs import prepare

    document = {
        "data": {"path": path, "label": "y", **({"party": "site"} if natural else {"ignore": ["site"]})},
        "parties": {} if natural else {"count": parties},
        "model": {"name": "logistic"},
        "adversary": {"attacks": ["loss"]},
    }
    start = time.perf_counter()
    prepared = prepare.check(parse(document), None)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time()
    queue.put(
        (seconds, cpu, peak, len(prepared.encoded), prepared.encoded.features.shape[1], len(prepared.rows))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--parties", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows")
    options = parser.parse_args()
    options.rows = QUICK_ROWS if options.quick else options.rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, options.rows, options.columns, options.parties)
        print(
            f"{options.rows} rows x {options.columns} columns, {path.stat().st_size / 1e6:.0f} MB of CSV",
            flush=True,
        )
        context = multiprocessing.get_context("spawn")
        for natural in (True, False):
            queue = context.Queue()
            process = context.Process(target=measure, args=(str(path), natural, options.parties, queue))
            process.start()
            seconds, cpu, peak, n, width, parties = queue.get(timeout=1800)
            process.join()
            kind = "natural" if natural else "iid"
            print(f"{kind:8} {seconds:6.1f} s ({cpu:.1f} s of CPU)  {peak:5.2f} GiB", flush=True)
            print(f"         {n} records x {width} features, {parties} parties", flush=True)


if __name__ == "__main__":
    main()
