"""What does the in-process engine cost beside a plain PyTorch loop, and Flower's Ray simulation beside it?

    python experiments/benchmarks/engines.py                               # about two minutes
    python experiments/benchmarks/engines.py --clients 100 --hidden 512    # up to 1000 clients
    python experiments/benchmarks/engines.py --records 400                 # of each client, half held out
    python experiments/benchmarks/engines.py --quick                       # 15 rounds instead of 50

Runs the same federation (a random table, 40 records a client, one hidden layer) on each engine and as a plain
loop (`plain_loop.py`), each in a fresh process as a person would start it, and prints the wall time of
the job (start-up included), that of a steady round, and both over the in-process engine's; then the two
ratios that are aimed at. The in-process round measures loss, accuracy, AUC and Brier score at every party,
and so does the loop that evaluates: what it takes is the floor. Both engines must end with the same model,
bit for bit. pfl (pfl-research) takes part where it is installed (`pfl_loop.py`); BlazeFL 3 needs Python
3.12, and is left out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from random_table import write_scenario
from rich.console import Console
from rich.table import Table

from fedsim.core.run_directory import RunDirectory

QUICK_ROUNDS = 15
EVALUATING, RAY = "plain loop, evaluating", "ray (flwr run)"

MOST_OF_THE_LOOP, LEAST_OF_RAY = 1.3, 10.0
"""Aims of a steady round: at most so much of the loop that evaluates, and of Ray's at least so little."""


def measure(
    engine: str, clients: int, rounds: int, workers: int, folder: Path, hidden: int
) -> dict[str, float | str]:
    """Run the federation on an engine; return the seconds of the job and of a steady round, and the model."""
    out = folder / engine
    settings = [f"parties.count={clients}", f"federation.rounds={rounds}", f"model.hidden=[{hidden}]"]
    command = [sys.executable, "-m", "fedsim.cli", "run", str(folder / "s.toml"), "--out", str(out)]
    command += ["--engine", engine, "--workers", str(workers)]
    command += [part for setting in settings for part in ("--set", setting)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - started
    run = RunDirectory.open(out)
    rows = run.table("rounds")
    steady = rows[(rows["party"] == "all") & (rows["round"] > min(5, rounds - 1))]["seconds"].median()
    return {"whole": whole, "steady": float(steady), "sha": run.manifest["games"]["0"]["final_model_sha256"]}


def measure_loop(name: str, run: Path, rounds: int, *options: str) -> dict[str, float | str]:
    """Train on a run's records in another program; return the seconds of the job and of a steady round."""
    command = [
        sys.executable,
        str(Path(__file__).with_name(name)),
        str(run),
        "--rounds",
        str(rounds),
        *options,
    ]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])  # pfl says much before
    return {"whole": time.perf_counter() - started, "steady": float(found["steady"])}


@click.command()
@click.option("--clients", default=10, show_default=True)
@click.option("--rounds", default=50, show_default=True)
@click.option("--records", default=40, show_default=True, help="Records of each client.")
@click.option("--quick", is_flag=True, help=f"{QUICK_ROUNDS} rounds.")
@click.option("--hidden", default=64, show_default=True, help="Width of the model's hidden layer.")
@click.option("--ray-workers", default=1, show_default=True, help="Ray's CPUs; 1: all of the machine's.")
@click.option("--ray/--no-ray", default=True, show_default=True, help="Run Flower's Ray simulation too.")
def main(
    clients: int, rounds: int, records: int, quick: bool, hidden: int, ray_workers: int, ray: bool
) -> None:
    rounds = QUICK_ROUNDS if quick else rounds
    rows: dict[str, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "inprocess"
        write_scenario(folder, clients * records)
        ours = rows["inprocess, 1 process"] = measure("inprocess", clients, rounds, 1, folder, hidden)
        rows[EVALUATING] = measure_loop("plain_loop.py", run, rounds, "--evaluate")
        rows["plain loop"] = measure_loop("plain_loop.py", run, rounds)
        if importlib.util.find_spec("pfl"):
            rows["pfl"] = measure_loop("pfl_loop.py", run, rounds)
        else:
            click.echo("pfl is not installed: see pfl_loop.py", err=True)
        if ray:
            theirs = rows[RAY] = measure("ray", clients, rounds, ray_workers, folder, hidden)
            if ours["sha"] != theirs["sha"]:
                raise SystemExit("the two engines ended with different models")
    title = (
        f"{clients} clients of {records} records × {rounds} rounds, hidden layer of {hidden}, "
        f"final model {str(ours['sha'])[:12]}"
    )
    say(title, rows, ours)


def say(title: str, rows: dict[str, dict[str, float | str]], ours: dict[str, float | str]) -> None:
    """Print the table, and how far the aims are met."""
    table = Table(title=title)
    for heading in ("engine", "whole job, s", "over inprocess", "steady round, ms", "over inprocess"):
        table.add_column(heading, justify="right")
    for engine, row in rows.items():
        whole, steady = float(row["whole"]), float(row["steady"])
        ratios = [f"{float(row[key]) / float(ours[key]):.2f}×" for key in ("whole", "steady")]
        table.add_row(engine, f"{whole:.1f}", ratios[0], f"{1000 * steady:.1f}", ratios[1])
    console = Console()
    console.print(table)
    steady = {engine: float(row["steady"]) / float(ours["steady"]) for engine, row in rows.items()}
    console.print(
        f"ours over the loop that evaluates: {1 / steady[EVALUATING]:.2f} (aim: ≤ {MOST_OF_THE_LOOP})"
    )
    if RAY in steady:
        console.print(f"Ray over ours: {steady[RAY]:.1f} (aim: ≥ {LEAST_OF_RAY:.0f})")


if __name__ == "__main__":
    main()
