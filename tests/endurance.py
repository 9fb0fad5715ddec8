"""Kill, start at once, and hang on purpose, and print counts: `python -m tests.endurance`, in the checkout.

    python -m tests.endurance --kills 30 --starts 10 --clients 20     # half an hour on two cores

Kills: a run is killed (SIGKILL) at a moment drawn over its whole length, and resumed; the models, scores and
leakage must be those of a run that nobody touched. Starts: so many runs of one scenario are started together;
each must have a folder of its own and the same result. Clients: one of three hangs, exits or is killed in
every round, on one to three workers and on Ray; the run must end, and the others be unhurt.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Last, so that `attacks` stays the package and does not become the tests of it.
sys.path.append(str(Path(__file__).resolve().parent))

from engines.test_faults import FAULTS, faulty_run, statuses
from support.runs import document

from fedsim.core.errors import FedsimError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario import reading
from fedsim.runs import play

TABLES = ("rounds", "scores", "leakage")
UNLIKE = ("seconds",)
"""Columns that hold how long it took."""


def started(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `fedsim run` in a session of its own, so that all its processes can be ended together."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": root,
        "FEDSIM_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "fedsim", "run", *arguments, "--workers", "1"]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )


def result(path: Path) -> list[bytes]:
    """Return what a finished run must agree on with another, bit for bit: its models and its tables."""
    run = RunDirectory.open(path)
    if not run.manifest.get("complete"):
        raise FedsimError(f"{path}: not complete")
    models = [file.read_bytes() for file in sorted((path / "models").rglob("*.safetensors"))]
    tables = [run.table(name).drop(columns=list(UNLIKE), errors="ignore") for name in TABLES]
    return models + [table.to_csv(index=False).encode() for table in tables]


def scenario(folder: Path) -> str:
    path = folder / "tiny.toml"
    described = document(folder, federation={"rounds": 30}, adversary={"attacks": ["loss", "update-cosine"]})
    reading.save(reading.parse(described), path)
    return str(path)


def kills(folder: Path, number: int) -> Iterator[str]:
    """Yield what became of each killed run: 'same', or what is wrong."""
    file = scenario(folder)
    begin = time.monotonic()
    if started(folder, file, "--out", str(folder / "whole")).wait():
        raise SystemExit((folder / "said").read_text(encoding="utf-8", errors="replace"))
    whole, seconds = result(folder / "whole"), time.monotonic() - begin
    for k, share in enumerate(np.random.default_rng(0).permutation(number) / number):
        path = folder / f"killed-{k}"
        process = started(folder, file, "--out", str(path))
        time.sleep(seconds * float(share))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        again = ["--resume"] if path.exists() else []
        code = started(folder, *([str(path)] if again else [file, "--out", str(path)]), *again).wait()
        yield f"exit code {code}" if code else "same" if result(path) == whole else "another result"


def starts(folder: Path, number: int) -> Iterator[str]:
    """Yield what became of each of ``number`` runs that were started together."""
    file = scenario(folder)
    processes = [started(folder, file) for _ in range(number)]
    codes = [process.wait() for process in processes]
    paths = sorted(path for path in (folder / "runs").iterdir() if path.is_dir())
    yield from (f"exit code {code}" for code in codes if code)
    if len(paths) != number:
        yield f"{len(paths)} folders for {number} runs"
    results = [result(path) for path in paths]
    yield from ("same" if each == results[0] else "another result" for each in results)


def clients(folder: Path, number: int) -> Iterator[str]:
    """Yield what became of each run with a faulty client: 'as documented', or who was said to be what."""
    late = ("no reply", "nothing came within federation.timeout")
    expected = FAULTS | {"hang": late}
    faults = ("hang", "exit", "kill", "sys.exit", "interrupt", "huge", "address")
    ways = [("inprocess", 1), ("inprocess", 2), ("inprocess", 3), ("ray", 2)]
    tried = itertools.islice(zip(itertools.cycle(faults), itertools.cycle(ways), strict=False), number)
    for k, (fault, (engine, workers)) in enumerate(tried):
        (folder / str(k)).mkdir()
        run = faulty_run(folder / str(k), fault, **({"timeout": 8} if fault == "hang" else {}))
        play.federate(run, engine=engine, workers=workers)
        told = statuses(run)
        right = told == {"s0": {("ok", "")}, "s1": {expected[fault]}, "s2": {("ok", "")}}
        yield "as documented" if right else f"{fault} on {workers} workers, {engine}: {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("kills", "starts", "clients"):
        parser.add_argument(f"--{name}", type=int, default=10)
    numbers = parser.parse_args()
    wrong = 0
    for part, right in ((kills, "same"), (starts, "same"), (clients, "as documented")):
        number = getattr(numbers, part.__name__)
        if not number:
            continue
        with tempfile.TemporaryDirectory() as name:
            said = list(part(Path(name), number))
        print(f"{part.__name__}: {number} tried; {said.count(right)} {right}", flush=True)
        for each in (outcome for outcome in said if outcome != right):
            print(f"  {each}")
            wrong += 1
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
