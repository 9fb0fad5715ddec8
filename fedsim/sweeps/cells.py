"""A cell of a sweep: one ordinary run, kept in a folder named by a hash of all that decides its result.

Cells run in processes of one thread each, or as Ray tasks, here or on a cluster. A cell that was killed goes
on from its last whole round to the same result, bit for bit; a finished one is never run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from filelock import FileLock

import attacks
import clients
import fedsim
from fedsim.core.cluster import joined
from fedsim.core.errors import FedsimError, plainly
from fedsim.core.imports import is_reference, source_file
from fedsim.core.parallel import Outcome, Workers
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario
from fedsim.runs import play, prepare
from fedsim.runs.prepare import Prepared

LIBRARIES = (
    "dp-accounting", "flwr", "llvmlite", "numba", "numpy", "opacus", "pandas", "scikit-learn", "scipy",
    "torch",
)  # fmt: skip
"""Packages whose version may change a figure."""

# The folders whose code decides a run's result. That of the others (audit, cli, report, sweeps, terminal) may
# change without any cell being run again.
_DECISIVE = {
    attacks: (".",),
    clients: (".",),
    fedsim: ("core", "engines", "evaluation", "runs", "server", "serving"),
}


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
    for package, folders in _DECISIVE.items():
        root = Path(str(package.__file__)).parent
        for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
            relative = path.relative_to(root).as_posix()
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

    The system lifts the lock beside it when the process ends, however it ends.
    """
    if not cell.folder.is_dir():
        where = f"there is no folder {cell.folder} on {platform.node()}"
        return Report(cell.key, "failed", f"{where}; all nodes must share the sweep's folder")
    log_path = cell.folder / f"{cell.key}.log"
    with (
        FileLock(cell.folder / f"{cell.key}.lock"),
        log_path.open("w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            run(cell)
        except FedsimError as error:
            return Report(cell.key, "failed", str(error))
        except Exception as error:
            traceback.print_exc()
            return Report(cell.key, "failed", f"{plainly(error)} (trace in {log_path})")
    return Report(cell.key, "done")


def in_processes(cells: Sequence[Cell], workers: int) -> Generator[Report]:
    """Run the cells in ``workers`` processes; yield a report when one starts and when it ends.

    The processes end with the iterator: close it to stop.
    """
    with Workers(min(workers, len(cells)), _start_worker) as pool:
        yield from _reports(cells, pool.run(attempt, [(cell,) for cell in cells]))


def on_ray(cells: Sequence[Cell], workers: int, address: str | None) -> Generator[Report]:
    """Run the cells as Ray tasks of one core; yield reports as `in_processes` does.

    address: of a cluster, whose nodes share the sweep's folder and the data and have fedsim installed; None:
        a Ray of its own on this machine, with ``workers`` cores.

    Raises:
        InputError: there is no cluster at ``address``.
    """
    with joined(address, workers) as cluster:
        yield from _reports(cells, cluster.run(attempt, [(cell,) for cell in cells]))


def _reports(cells: Sequence[Cell], outcomes: Generator[Outcome]) -> Generator[Report]:
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            key = cells[outcome.number].key
            if outcome.state == "started":
                yield Report(key, "running")
            elif outcome.error is not None:
                yield Report(key, "failed", _why_it_ended(outcome.error))
            else:
                yield outcome.value


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)


def _why_it_ended(error: BaseException) -> str:
    advice = "; use fewer --workers" if "too little memory" in str(error) else ""
    return f"{plainly(error)}{advice}"
