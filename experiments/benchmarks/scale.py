"""What a round costs in one process, against clients, records, model and rounds, and how it grows.

    python experiments/benchmarks/scale.py --quick           # about a minute
    python experiments/benchmarks/scale.py                   # also 1000 clients × 100 rounds
    python experiments/benchmarks/scale.py --page            # and write results/scale.md

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from random_table import write_scenario
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

PAGE = Path(__file__).resolve().parents[1] / "results" / "scale.md"
HEADINGS = ("axis", "clients", "records each", "width", "rounds", "game, s", "round, ms", "MiB", "p")


@dataclass(frozen=True)
class Size:
    """A federation: clients, records of each, width and number of hidden layers, rounds."""

    clients: int = 10
    records: int = 40
    width: int = 64
    rounds: int = 10
    layers: int = 1


def million(clients: int) -> Size:
    """Return a federation of a model with 1.05 million weights, 4.0 MiB, for what memory it takes."""
    return Size(clients, records=20, width=1024, rounds=2, layers=2)


QUICK = {
    "clients": [Size(), Size(clients=40), Size(clients=160)],
    "records": [Size(), Size(records=400)],
    "width": [Size(), Size(width=1024)],
    "rounds": [Size(), Size(rounds=40)],
    "a million weights": [million(10), million(40)],
}
WHOLE = {
    "clients": [Size(), Size(clients=100), Size(clients=1000)],
    "records": [Size(), Size(records=400), Size(records=4000)],
    "width": [Size(), Size(width=512), Size(width=4096)],
    "rounds": [Size(), Size(rounds=100), Size(rounds=1000)],
    "a million weights": [million(10), million(100), million(1000)],
    "clients and rounds": [Size(), Size(clients=1000, rounds=100)],
}


def measure(size: Size) -> tuple[float, float, float]:
    """Return the seconds of the game, of its median round, and the process' peak memory in MiB."""
    settings = [
        f"parties.count={size.clients}",
        f"federation.rounds={size.rounds}",
        f"model.hidden={[size.width] * size.layers}",
    ]
    with tempfile.TemporaryDirectory() as name:
        write_scenario(Path(name), size.clients * size.records)
        command = [sys.executable, "-c", CHILD, json.dumps(settings), name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole, round, memory = json.loads(done.stdout)
    return whole, round, memory


def rows_of(axes: dict[str, list[Size]]) -> Iterator[list[str]]:
    """Measure all sizes; yield a row of each: axis, its numbers, seconds, milliseconds, MiB, exponent."""
    for axis, sizes in axes.items():
        first: tuple[int, float] | None = None
        for size in sizes:
            click.echo(f"{axis}: {size}", err=True)
            whole, round, memory = measure(size)
            extent = math.prod((size.clients, size.records, size.width, size.rounds))
            power = "" if first is None else f"{math.log(whole / first[1]) / math.log(extent / first[0]):.2f}"
            first = first or (extent, whole)
            model = "×".join([str(size.width)] * size.layers)
            numbers = (str(size.clients), str(size.records), model, str(size.rounds))
            yield [axis, *numbers, f"{whole:.1f}", f"{1000 * round:.0f}", f"{memory:.0f}", power]


def page(rows: list[list[str]], command: str) -> str:
    lines = [
        "# What a federation costs, and how it grows", "",
        "In one process, with one cheap attack (`loss`), on a table of random numbers: wall time of the game",
        "and of its median round, on a machine that others used too, and the most memory that the process",
        "ever held. p is the exponent between an axis' first line and this one, game ~ size^p: 1 is linear.",
        "The server holds a round's answers, one model a client, until it has judged them. Made by",
        f"`{command}`.", "",
        "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|",
        *("| " + " | ".join(row) + " |" for row in rows), "",
    ]  # fmt: skip
    return "\n".join(lines)


@click.command()
@click.option("--quick", is_flag=True, help="Smaller sizes, a minute.")
@click.option("--page", "write_page", is_flag=True, help=f"Write results/{PAGE.name}.")
def main(quick: bool, write_page: bool) -> None:
    command = " ".join(["python experiments/benchmarks/scale.py", *(["--quick"] if quick else []), "--page"])
    rows = []
    for row in rows_of(QUICK if quick else WHOLE):
        rows.append(row)
        if write_page:  # as it goes: an hour that is cut short keeps what it has
            PAGE.write_text(page(rows, command), encoding="utf-8")
    shown = Table()
    for heading in HEADINGS:
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(*row)
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
