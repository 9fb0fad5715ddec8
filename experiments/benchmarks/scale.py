"""What a round costs in one process, against clients, records, model and rounds, and how it grows.

    python experiments/benchmarks/scale.py --quick      # about a minute
    python experiments/benchmarks/scale.py              # also 1000 clients × 100 rounds

Each line is a federation of its own in a fresh process, with one cheap attack (loss), on a table of random
numbers. The last column is the exponent p between the first line of an axis and this one, of cost ~ size^p of
the whole game: 1 is linear. Memory is the most that the process ever held.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

CHILD = """
import json, resource, sys, time
from pathlib import Path
from fedsim.core.scenario.reading import load
from fedsim.engines import inprocess
from fedsim.runs import prepare
settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
run = prepare.prepare(prepare.check(load(folder / "s.toml", settings), None), folder / "run")
started = time.perf_counter()
inprocess.run_game(run, 0)
whole = time.perf_counter() - started
rounds = run.table("rounds").query("party == 'all' and round > 0")["seconds"]
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([whole, float(rounds.median()), memory]))
"""

SCENARIO = """
[data]
path = "t.csv"
label = "y"
bounds = {a = [0, 1], b = [0, 1], c = [0, 1], d = [0, 1]}
categories = {y = ["no", "yes"]}
[training]
epochs = 1
batch = 16
[adversary]
attacks = ["loss"]
worlds = ["all"]
"""


@dataclass(frozen=True)
class Size:
    """A federation: clients, records of each, width of the hidden layer, rounds."""

    clients: int = 10
    records: int = 40
    width: int = 64
    rounds: int = 10


QUICK = {
    "clients": [Size(), Size(clients=40), Size(clients=160)],
    "records": [Size(), Size(records=400)],
    "width": [Size(), Size(width=1024)],
    "rounds": [Size(), Size(rounds=40)],
}
WHOLE = {
    "clients": [Size(), Size(clients=100), Size(clients=1000)],
    "records": [Size(), Size(records=400), Size(records=4000)],
    "width": [Size(), Size(width=512), Size(width=4096)],
    "rounds": [Size(), Size(rounds=100), Size(rounds=1000)],
    "clients and rounds": [Size(), Size(clients=1000, rounds=100)],
}


def measure(size: Size) -> tuple[float, float, float]:
    """Return the seconds of the game, of its median round, and the process' peak memory in MiB."""
    stream, n = np.random.default_rng(0), size.clients * size.records
    frame = pd.DataFrame(stream.uniform(size=(n, 4)), columns=list("abcd"))
    frame["y"] = stream.choice(["no", "yes"], n)
    settings = [
        f"parties.count={size.clients}",
        f"federation.rounds={size.rounds}",
        'model.name="mlp"',
        f"model.hidden=[{size.width}]",
    ]
    with tempfile.TemporaryDirectory() as name:
        frame.to_csv(Path(name) / "t.csv", index=False)
        (Path(name) / "s.toml").write_text(SCENARIO)
        command = [sys.executable, "-c", CHILD, json.dumps(settings), name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole, round, memory = json.loads(done.stdout)
    return whole, round, memory


@click.command()
@click.option("--quick", is_flag=True, help="Smaller sizes, a minute.")
def main(quick: bool) -> None:
    table = Table()
    for heading in ("axis", "clients", "records each", "width", "rounds", "game, s", "round, ms", "MiB", "p"):
        table.add_column(heading, justify="right")
    for axis, sizes in (QUICK if quick else WHOLE).items():
        first: tuple[int, float] | None = None
        for size in sizes:
            click.echo(f"{axis}: {size}", err=True)
            whole, round, memory = measure(size)
            extent = math.prod((size.clients, size.records, size.width, size.rounds))
            power = "" if first is None else f"{math.log(whole / first[1]) / math.log(extent / first[0]):.2f}"
            first = first or (extent, whole)
            numbers = (size.clients, size.records, size.width, size.rounds)
            measured = f"{whole:.1f}", f"{1000 * round:.0f}", f"{memory:.0f}", power
            table.add_row(axis, *map(str, numbers), *measured)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
