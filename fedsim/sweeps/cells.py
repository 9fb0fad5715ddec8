"""A cell of a sweep: one ordinary run, kept in a folder named by a hash of all that decides its result.

Cells run in processes of one thread each, or as Ray tasks, here or on a cluster. A cell that was killed goes
on from its last whole round to the same result, bit for bit; a finished one is never run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

import attacks
import clients
import fedsim
from fedsim.core.errors import FedsimError
from fedsim.core.imports import is_reference, source_file
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario
from fedsim.engines.inprocess import environment
from fedsim.runs import play, prepare
from fedsim.runs.prepare import Prepared

LIBRARIES = ("dp-accounting", "flwr", "numpy", "opacus", "pandas", "scikit-learn", "scipy", "torch")
"""Packages whose version may change a figure."""

# What shows or orders runs, and changes none.
_PRESENTATION = ("cli.py", "live.py", "tables.py", "report", "sweep.py", "cells.py", "audit.py")

_SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# A killed process leaves a semaphore to Python's tracker, which removes it, and would complain.
_QUIET = {"PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"}


@dataclass(frozen=True)
class Cell:
    """One run to make.

    key: of `key_of`; scenario: checked, every choice filled in
    folder: where the cells are, each in a folder named by its key; data_dir: of the data sets
    """

    key: str
    scenario: Scenario
    folder: Path
    data_dir: Path | None

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder / self.key

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return bool(RunDirectory(self.path).manifest.get("complete"))


@dataclass(frozen=True)
class Report:
    """What has become of a cell; reason: why it failed, in one sentence."""

    key: str
    state: Literal["running", "done", "failed"]
    reason: str = ""


def key_of(prepared: Prepared) -> str:
    """Return a hash of all that decides the result: scenario, records, fedsim's code, library versions.

    The scenario's name decides nothing, nor does the way in which a party's DP or defences are written down.
    """
    scenario = prepared.scenario
    document = scenario.model_dump(mode="json", exclude={"name", "dp", "defences"})
    for section, settings_of in (("dp", scenario.dp_of), ("defences", scenario.defence_of)):
        settings = {name: settings_of(name) for name in prepared.rows}
        document[section] = {name: s and s.model_dump(mode="json") for name, s in settings.items()}
    decisive = [document, prepared.encoded.hashes, _own_code(scenario), code_version()]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:20]


def _own_code(scenario: Scenario) -> dict[str, str]:
    """Return a hash of each file that holds a 'module:callable' of the scenario, by its name."""
    model, federation, adversary = scenario.model, scenario.federation, scenario.adversary
    named = [(model.name, model.folder), (federation.strategy, federation.folder)]
    named += [(text, adversary.folder) for text in adversary.own_attacks]
    files = {text: source_file(text, folder) for text, folder in named if is_reference(text)}
    return {text: hashlib.sha256(file.read_bytes()).hexdigest() for text, file in files.items() if file}


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return a hash of the code that a run executes, and of the versions of the libraries beneath it."""
    digest = hashlib.sha256()
    for package in (attacks, clients, fedsim):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if package is not fedsim or relative.parts[0] not in _PRESENTATION:
                digest.update(f"{package.__name__}/{relative}\0".encode() + path.read_bytes() + b"\0")
    for name in LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\0".encode())
    return digest.hexdigest()


def run(cell: Cell) -> None:
    """Run the cell, go on with it where it was stopped, or do nothing where it is finished.

    Two sweeps may share a folder of cells: who comes second waits, and finds the cell finished.

    Raises:
        FedsimError: see `runner.check` and `runner.federate`; or the records are no longer the key's.
    """
    folder = RunDirectory(cell.path)
    if not folder.manifest.get("prepared"):
        shutil.rmtree(cell.path, ignore_errors=True)
        prepared = prepare.check(cell.scenario, cell.data_dir)
        if key_of(prepared) != cell.key:
            raise FedsimError("its records, or fedsim itself, changed since the sweep was started")
        folder = prepare.prepare(prepared, cell.path)
    if not folder.manifest.get("complete"):
        play.federate(folder)


def attempt(cell: Cell) -> Report:
    """Run the cell and say what became of it; what it prints goes to a log beside its folder.

    The log is also the lock, which the system lifts when the process ends, however it ends.
    """
    if not cell.folder.is_dir():
        where = f"there is no folder {cell.folder} on {os.uname().nodename}"
        return Report(cell.key, "failed", f"{where}; all nodes must share the sweep's folder")
    with (cell.folder / f"{cell.key}.log").open("a", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.truncate(0)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                run(cell)
            except FedsimError as error:
                return Report(cell.key, "failed", str(error))
            except Exception as error:
                traceback.print_exc()
                what = " ".join(str(error).split())[:300]
                return Report(cell.key, "failed", f"{type(error).__name__}: {what} (trace in {log.name})")
    return Report(cell.key, "done")


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        # Ctrl-C reaches the whole process group; a child that inherits the block leaves it to its parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with environment(**_SINGLE_THREAD, **_QUIET):
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.key = ""

    def give(self, cell: Cell) -> None:
        self.key = cell.key
        self.connection.send(cell)

    def answer(self) -> Report:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            ended = f"its process ended with code {self.process.exitcode}"
            return Report(self.key, "failed", f"{ended} (−9 is often too little memory: use fewer --workers)")


def _serve(connection: Connection) -> None:
    """Answer cells until the parent hangs up; end with the parent even in the middle of a cell."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        connection.send(attempt(cell))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def in_processes(cells: Sequence[Cell], workers: int) -> Generator[Report]:
    """Run the cells in ``workers`` processes; yield a report when one starts and when it ends.

    The processes end with the iterator: close it to stop.
    """
    waiting = deque(cells)
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker()
                busy.append(worker)
                worker.give(cell := waiting.popleft())
                yield Report(cell.key, "running")
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                report = worker.answer()
                busy.remove(worker)
                if worker.process.is_alive():
                    idle.append(worker)
                yield report
    finally:
        for worker in [*busy, *idle]:
            worker.process.kill()
