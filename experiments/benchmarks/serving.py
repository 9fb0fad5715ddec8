"""What do keys, budgets, policies and the audit log cost, beside a plain FastAPI app with the same model?

    python experiments/benchmarks/serving.py runs/hospitals     # about half a minute

Both are processes of their own under uvicorn on this machine, asked in turn by the same threads, so that a
busy machine slows both. It prints requests per second, median and 99th percentile and their ratios; what a
line of the log costs by how often it is flushed; and how long a refused key takes by the reason. It serves a
copy of the run.
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving import keys, log, release, state
from fedsim.serving.keys import Limits
from fedsim.serving.openapi import example

PLAIN = """
import sys
from pathlib import Path
import torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from fedsim.core.run_directory import RunDirectory
from fedsim.serving import release
torch.set_num_threads(1)
model = release.load(RunDirectory.open(Path(sys.argv[1])))
app = FastAPI()
class Ask(BaseModel):
    records: list[dict[str, float | str | None]]
@app.post("/predict")
def predict(ask: Ask) -> dict:
    return {"probabilities": model.probabilities(model.encode(ask.records)).tolist()}
config = uvicorn.Config(app, port=0, http="h11", access_log=False, log_level="error", lifespan="off")
socket = config.bind_socket()
print("x http://127.0.0.1:%d" % socket.getsockname()[1], flush=True)
uvicorn.Server(config).run(sockets=[socket])
"""

Ask = Callable[[int], bytes]


def start(*command: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline().rsplit(":", 1)[1])


def seconds_of(port: int, body: Ask, key: str, threads: int, lasting: float) -> np.ndarray:
    """Seconds of each request of so many threads, each on a connection of its own."""
    taken: list[float] = []
    end = time.perf_counter() + lasting

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        while time.perf_counter() < end:
            began = time.perf_counter()
            connection.request("POST", "/predict", body(number), headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            taken.append(time.perf_counter() - began)
        connection.close()

    clients = [threading.Thread(target=client, args=(number,)) for number in range(threads)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return np.array(taken)


def end(process: subprocess.Popen[str]) -> None:
    """Wait for a process that was told to stop; a starved machine must not leave it behind."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()


def bodies(row: dict[str, Any], batch: int) -> Ask:
    """Requests about records that differ in a number, so that a budget of ε is charged each time."""
    name = next(name for name, value in row.items() if isinstance(value, float))

    def body(_: int) -> bytes:
        start = secrets.randbelow(10**6) / 1e6
        return json.dumps(
            {"records": [row | {name: row[name] + start + i / 1e3} for i in range(batch)]}
        ).encode()

    return body


def compare(ports: dict[str, tuple[int, str]], row: dict[str, Any], batch: int, threads: int) -> Table:
    """Ask every service in turn, in three rounds, and compare each with the first."""
    taken: dict[str, list[np.ndarray]] = {name: [] for name in ports}
    lasting, body = 1.0, bodies(row, batch)
    for turn in range(4):
        for name, (port, key) in ports.items():
            measured = seconds_of(port, body, key, threads, lasting)
            if turn:  # the first warms up
                taken[name].append(measured)
    table = Table(title=f"{batch} record(s) a request, {threads} connections")
    for heading in ("service", "requests/s", "median, ms", "99 %, ms", "rate", "99 % ratio"):
        table.add_column(heading, justify="right")
    plain = np.concatenate(taken["plain FastAPI"])
    for name, parts in taken.items():
        whole = np.concatenate(parts)
        high = np.percentile(whole, 99)
        cells = (len(whole) / (3 * lasting), 1e3 * np.median(whole), 1e3 * high)
        ratios = (len(whole) / len(plain), high / np.percentile(plain, 99))
        table.add_row(name, *(f"{cell:.1f}" for cell in cells), *(f"{ratio:.2f}×" for ratio in ratios))
    return table


def log_costs(folder: Path) -> Table:
    table = Table(title="one line of the log, 2,000 lines")
    for heading in ("flushed", "median, µs", "99 %, µs"):
        table.add_column(heading, justify="right")
    for words, sync in (("once a second", 1.0), ("every line", 0.0)):
        place = state.folder(Path(tempfile.mkdtemp(dir=folder)))
        audit, taken = log.AuditLog(place, state.secret(place), sync), []
        for number in range(2000):
            began = time.perf_counter()
            audit.append({"key": "0123abcd", "records": 1, "digests": ["0" * 32], "number": number})
            taken.append(time.perf_counter() - began)
        table.add_row(words, *(f"{1e6 * np.percentile(taken, q):.0f}" for q in (50, 99)))
    return table


def refusals(database: state.Database, secret: state.Secret) -> Table:
    """How long a key takes to be refused, in turns; a difference would tell which keys there once were."""
    now = time.time()
    made = {
        name: keys.add(database, secret, name, OutputPolicy(), Limits(), now, expires=now + 1e-3)[1].encode()
        for name in ("revoked", "expired")
    }
    with database.transaction() as connection:
        connection.execute("UPDATE keys SET revoked = ?, expires = NULL WHERE name = 'revoked'", (now,))
    made |= {"wrong": b"fedsim_" + b"x" * 43, "none": b""}
    taken: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(3000):
        for name, text in made.items():
            began = time.perf_counter()
            assert keys.authenticate(database, secret, text, now + 1) is None
            taken[name].append(time.perf_counter() - began)
    table = Table(title="a key that is refused, 3,000 times each")
    for heading in ("key", "median, µs", "25 to 75 %, µs"):
        table.add_column(heading, justify="right")
    for name, seconds in taken.items():
        low, middle, high = (1e6 * np.percentile(seconds, q) for q in (25, 50, 75))
        table.add_row(name, f"{middle:.1f}", f"{low:.1f} to {high:.1f}")
    return table


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--threads", default=4, show_default=True)
def main(folder: Path, threads: int) -> None:
    console = Console(width=100)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        run = RunDirectory.open(Path(shutil.copytree(folder, Path(name) / "run")))
        place = state.folder(run.path)
        database, secret = state.Database(place / "keys.sqlite"), state.secret(place)
        policies = {"full": OutputPolicy(), "laplace": OutputPolicy(policy="laplace", epsilon=1e-6)}
        texts = {
            name: keys.add(
                database, secret, name, stated, Limits(None, None, 1e6 if name == "laplace" else None), 0.0
            )[1]
            for name, stated in policies.items()
        }
        began = time.perf_counter()
        serving = ["-m", "fedsim.cli", "serve", str(run.path), "--port", "0"]
        ours, port = start(*serving)
        console.print(f"`fedsim serve` listens after {time.perf_counter() - began:.1f} s")
        careful, careful_port = start(*serving, "--sync", "0")
        plain, plain_port = start("-c", PLAIN, str(run.path))
        ports = {
            "plain FastAPI": (plain_port, ""),
            "fedsim, full": (port, texts["full"]),
            "fedsim, laplace": (port, texts["laplace"]),
            "fedsim, full, every line flushed": (careful_port, texts["full"]),
        }
        row = example(release.load(run).schema)
        try:
            for batch in (1, 50):
                console.print(compare(ports, row, batch, threads))
        finally:
            for process in (ours, careful, plain):
                process.terminate()
            for process in (ours, careful, plain):
                end(process)
        console.print(log_costs(run.path))
        console.print(refusals(database, secret))


if __name__ == "__main__":
    main()
