"""From a scenario to a finished run: check, prepare, federate game by game, evaluate."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

from attacks.shadows import cache
from attacks.shadows.simulate import Laboratory
from fedsim.core.cluster import check_address
from fedsim.core.errors import FedsimError, InputError, suggestion
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.parallel import cores
from fedsim.core.run_directory import GameEntry, RunDirectory, runs_in
from fedsim.engines.settings import EngineOptions
from fedsim.runs import confidence, integrity, release
from fedsim.runs.attack import evaluate, observe

ENGINES = ("inprocess", "ray", "superlink")


def federate(
    run: RunDirectory,
    engine: str = "inprocess",
    workers: int | None = 1,
    options: EngineOptions | None = None,
) -> None:
    """Run every game that is not finished, then evaluate all of them.

    workers: processes for the parties, and cores for the shadows; None: 1 (for a language model
        `parallel.cores`), and `parallel.cores`.
    options: what only some engines heed

    Raises:
        FedsimError: the federation could not go on; what was done is kept, for ``--resume``.
    """
    if not run.manifest.get("prepared"):
        raise InputError(f"{run.path} was stopped before its records were dealt; start it anew")
    options = options or EngineOptions()
    cluster = options.ray_address if engine == "inprocess" else None
    laboratory = Laboratory(workers or cores(), cache=cache.cache_folder(), cluster=cluster)

    def run_game(game: int) -> None:
        _run_game(run, game, engine, workers or _processes(run, laboratory), options)

    with run.locked():
        play(run, engine, laboratory, run_game)


def play(run: RunDirectory, engine: str, laboratory: Laboratory, run_game: Callable[[int], None]) -> None:
    """Have ``run_game`` run every game that is not finished, then evaluate all of them.

    engine: what the manifest says of where it runs
    run_game: called with the number of a game; it has to leave the run's folder as `server_app.federate` does
    """
    integrity.verify(run)
    run.update_manifest(engine=engine, workers=laboratory.workers)
    for game in range(run.scenario.games):
        if _finished(run, game):
            continue
        integrity.verify_unfinished(run, game)
        started = time.monotonic()
        run_game(game)
        release.make(run, game)
        observe(run, game, laboratory)
        _note_game(run, game, time.monotonic() - started)
    confidence.write(run)
    evaluate(run)
    run.update_manifest(complete=True)


def _processes(run: RunDirectory, laboratory: Laboratory) -> int:
    """Return how many processes train the parties: one, unless the model is worth the start of more."""
    return laboratory.workers if run.scenario.model.name in LANGUAGE else 1


def _finished(run: RunDirectory, game: int) -> bool:
    return str(game) in run.manifest.get("games", {})


def _run_game(run: RunDirectory, game: int, engine: str, workers: int, options: EngineOptions) -> None:
    if engine == "inprocess":
        from fedsim.engines import inprocess

        inprocess.run_game(run, game, workers, options.ray_address)
    elif engine == "ray":
        from fedsim.engines import ray

        ray.run_game(run, game, workers, options)
    elif engine == "superlink":
        from fedsim.engines import superlink

        superlink.run_game(run, game)
    else:
        raise InputError(f"--engine {engine}: unknown engine{suggestion(engine, ENGINES)}")


def _note_game(run: RunDirectory, game: int, seconds: float) -> None:
    last = run.last_round(game)
    digest = hashlib.sha256(run.model_path(game, last).read_bytes()).hexdigest()
    entry: GameEntry = {"rounds": last, "final_model_sha256": digest, "seconds": round(seconds, 3)}
    integrity.note_game(run, game)
    run.update_manifest(games={**run.manifest.get("games", {}), str(game): entry})


def latest_unfinished(parent: Path, name: str) -> RunDirectory:
    """Return the newest run of scenario ``name`` below ``parent`` that is not complete.

    Raises:
        FedsimError: there is none, or it was written by another version.
    """
    for run in reversed(runs_in(parent)):
        if not run.manifest.get("complete") and run.scenario.name == name:
            return RunDirectory.open(run.path)
    raise FedsimError(f"no unfinished run of '{name}' in {parent}; start one without --resume")


def check_engine(engine: str, options: EngineOptions | None = None) -> None:
    """Refuse an unknown engine, or one that is not installed, before any work starts.

    Raises:
        InputError: so it is, an option is another engine's, or nothing answers at the address of a cluster,
            or of the store where shadows are kept.
    """
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: unknown engine{suggestion(engine, ENGINES)}")
    own = options or EngineOptions()
    if engine != "ray" and (own.cpus_per_client, own.gpus_per_client) != (1, 0.0):
        raise InputError(f"--ray-cpus and --ray-gpus are for --engine ray, not for '{engine}'")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray; install it with: pip install 'fedsim[ray]'")
    if own.ray_address is not None:
        if engine == "superlink":
            raise InputError("--ray-address is for --engine ray and inprocess, not for 'superlink'")
        check_address(own.ray_address)
    cache.cache_folder()
