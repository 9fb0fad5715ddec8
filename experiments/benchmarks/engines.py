"""How much faster is the in-process engine than the same apps under Flower's Ray simulation?

    python experiments/benchmarks/engines.py            # about a minute and a half

Runs `experiments/hospitals.toml` with 10 hospitals and 50 rounds once on each engine, each in a fresh
process as a person would start it, and prints both wall times (start-up included), the time of a steady
round, and their ratios. Both must end with the same model, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from fedsim.core.run_directory import RunDirectory

SCENARIO = Path(__file__).resolve().parents[1] / "hospitals.toml"


def measure(engine: str, clients: int, rounds: int, workers: int, folder: Path) -> dict[str, float | str]:
    out = folder / engine
    settings = [f"parties.count={clients}", f"federation.rounds={rounds}", "adversary.attacks=['loss']"]
    command = [sys.executable, "-m", "fedsim.cli", "run", str(SCENARIO), "--out", str(out)]
    command += ["--engine", engine, "--workers", str(workers)]
    command += [part for setting in settings for part in ("--set", setting)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - started
    run = RunDirectory.open(out)
    rows = run.table("rounds")
    steady = rows[(rows["party"] == "all") & (rows["round"] > 5)]["seconds"].median()
    return {"whole": whole, "steady": float(steady), "sha": run.manifest["games"]["0"]["final_model_sha256"]}


@click.command()
@click.option("--clients", default=10, show_default=True)
@click.option("--rounds", default=50, show_default=True)
@click.option("--ray-workers", default=1, show_default=True, help="Ray's CPUs; 1: all of the machine's.")
def main(clients: int, rounds: int, ray_workers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = measure("inprocess", clients, rounds, 1, folder)
        theirs = measure("ray", clients, rounds, ray_workers, folder)
    if ours["sha"] != theirs["sha"]:
        raise SystemExit("the two engines ended with different models")
    table = Table(title=f"{clients} clients × {rounds} rounds, same final model {str(ours['sha'])[:12]}")
    for heading in ("engine", "whole job, s", "steady round, ms"):
        table.add_column(heading, justify="right")
    for engine, row in {"inprocess, 1 process": ours, "ray (flwr run)": theirs}.items():
        table.add_row(engine, f"{row['whole']:.1f}", f"{1000 * float(row['steady']):.0f}")
    ratios = [float(theirs[key]) / float(ours[key]) for key in ("whole", "steady")]
    table.add_row("ratio", *(f"{ratio:.1f}×" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
