"""From a scenario to a finished run: check, prepare, federate game by game, evaluate."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks import active, evaluation, shadow, simulation, source_evaluation, suite, trajectory
from clients.sectors import SECTORS
from fedsim import checks, observers, rng, strategy
from fedsim.data import catalogue, membership, parties
from fedsim.data import encode as encoding
from fedsim.data.store import AUXILIARY, TARGETS, write_party, write_pool, write_public
from fedsim.errors import FedsimError, InputError, suggestion
from fedsim.results import RunDirectory, runs_in, scores_table
from fedsim.scenario import Scenario

ENGINES = ("inprocess", "ray")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A scenario whose every choice has been checked against the data, before anything is written.

    rows: party name → row indices in ``encoded``
    """

    scenario: Scenario
    encoded: encoding.Encoded
    rows: dict[str, np.ndarray]
    adversary: str


def with_sector_defaults(scenario: Scenario) -> Scenario:
    """Fill in what the sector decides: its first table and its model, where the scenario is silent."""
    sector = SECTORS[scenario.parties.sector]
    changes: dict[str, Any] = {}
    if scenario.data.name is None and scenario.data.path is None:
        changes["data"] = scenario.data.model_copy(update={"name": sector.tables[0]})
    if "model" not in scenario.model_fields_set:
        changes["model"] = sector.model
    return scenario.model_copy(update=changes)


def check(scenario: Scenario, data_dir: Path | None, encoded: encoding.Encoded | None = None) -> Prepared:
    """Read the data and check all that only the data can tell.

    encoded: the scenario's records, where they have been read before.

    Raises:
        InputError: in one sentence, what is wrong and what would be valid.
    """
    scenario = with_sector_defaults(scenario)
    suite.attacks_of(scenario)
    active.check(scenario.adversary, scenario.federation.rounds)
    strategy.build(scenario.federation, scenario.training)
    encoded = read_records(scenario, data_dir) if encoded is None else encoded
    rows = parties.deal(encoded, scenario.parties, scenario.seed)
    dealt = sum(map(len, rows.values()))
    if dealt < len(encoded):
        partition = scenario.parties.partition
        notice = f"{len(encoded) - dealt} of {len(encoded)} records are in no party: partition '{partition}'"
        encoded = dataclasses.replace(encoded, notices=(*encoded.notices, notice))
    scenario = scenario.model_copy(
        update={"parties": scenario.parties.model_copy(update={"count": len(rows)})}
    )
    adversary = scenario.adversary.party or next(iter(rows))
    _check_names(scenario, rows, adversary)
    observers.check(scenario, list(rows), adversary)
    checks.private_training(scenario, encoded, rows)
    checks.defences(scenario, encoded, rows)
    notices = *checks.notices(scenario, rows), *observers.notices(scenario)
    encoded = dataclasses.replace(encoded, notices=(*encoded.notices, *notices))
    natural = scenario.parties.partition == "natural" or (
        scenario.parties.partition == "auto" and encoded.party is not None
    )
    knows = scenario.adversary.knows_party
    told = {"party": adversary, "knows_party": natural if knows is None else knows}
    told["candidates"] = active.candidates(scenario.adversary)
    scenario = scenario.model_copy(update={"adversary": scenario.adversary.model_copy(update=told)})
    return Prepared(scenario, encoded, rows, adversary)


def read_records(scenario: Scenario, data_dir: Path | None) -> encoding.Encoded:
    """Read and encode the scenario's records, each once; nothing is learnt from private ones (DESIGN §7)."""
    data = scenario.data
    source = catalogue.open_table(data, data_dir)
    stream = rng.generator(scenario.seed, "public records")
    bounds = SECTORS[scenario.parties.sector].bounds
    return encoding.deduplicate(encoding.encode(source, data, stream, sector_bounds=bounds))


def _check_names(scenario: Scenario, rows: dict[str, np.ndarray], adversary: str) -> None:
    if adversary not in rows:
        raise InputError(f"adversary.party = '{adversary}': no such party{suggestion(adversary, rows)}")
    for section, names in (("dp", scenario.dp), ("defences", scenario.defences)):
        for name in names:
            if name != "all" and name not in rows:
                raise InputError(f"{section}.{name}: no such party{suggestion(name, ['all', *rows])}")


def prepare(prepared: Prepared, path: Path) -> RunDirectory:
    """Create the run's folder: each party's own records of every game, the candidates, the truth."""
    scenario, encoded = prepared.scenario, prepared.encoded
    games = [
        membership.draw_game(
            encoded,
            prepared.rows,
            seed=scenario.seed,
            game=game,
            member_share=scenario.parties.member_share,
            adversary=prepared.adversary,
            settings=scenario.adversary,
        )
        for game in range(scenario.games)
    ]
    run = RunDirectory.create(path, scenario)
    for number, game in enumerate(games):
        _write_game(run, prepared, number, game)
    membership.write_truth(run.path, games)
    run.update_manifest(
        adversary=prepared.adversary,
        parties={name: len(index) for name, index in prepared.rows.items()},
        input_shape=list(encoded.features.shape[1:]),
        classes=list(encoded.classes),
        notices=list(encoded.notices),
        data_sha256=encoded.hashes,
        seed=scenario.seed,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        prepared=True,
        **_machine(),
    )
    return run


def _write_game(run: RunDirectory, prepared: Prepared, number: int, game: membership.Game) -> None:
    run.write_candidates(number, game.candidates)
    settings = run.scenario.adversary
    sizes = {name: len(records.train) for name, records in game.parties.items()}
    if settings.active == "poisoning":  # what it tells the others counts its poison
        sizes[prepared.adversary] += settings.poison_copies * len(game.candidates.first(settings.targets))
    for partition, (name, records) in enumerate(game.parties.items()):
        info = {
            "partition": partition,
            "sector": run.scenario.parties.sector,
            "malicious": name == prepared.adversary,
            "accomplice": name in settings.coalition,
            "classes": len(prepared.encoded.classes),
            "names": list(game.parties),
            "sizes": list(sizes.values()),
        }
        folder = run.party_folder(number, partition, name)
        write_party(folder, records, info)
        defence = run.scenario.defence_of(name)
        if prepared.encoded.public is not None and defence is not None and defence.stop_on == "public":
            write_public(folder, prepared.encoded.public)
        if name == prepared.adversary:
            write_pool(folder, AUXILIARY, game.auxiliary)
            if settings.active:
                write_pool(folder, TARGETS, game.candidates.first(settings.targets))


def _machine() -> dict[str, Any]:
    packages = ("fedsim", "flwr", "torch", "opacus", "numpy", "pandas", "safetensors")
    return {
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "machine": {"system": platform.platform(), "cpu": platform.machine(), "cores": os.cpu_count()},
    }


def federate(run: RunDirectory, engine: str = "inprocess", workers: int | None = 1) -> None:
    """Run every game that is not finished, then evaluate all of them.

    workers: processes for the parties, and cores for the shadows; None: 1, and `simulation.cores`.

    Raises:
        FedsimError: the federation could not go on; what was done is kept, for ``--resume``.
    """
    if not run.manifest.get("prepared"):
        raise InputError(f"{run.path} was stopped before its records were dealt; start it anew")
    laboratory = simulation.Laboratory(workers or simulation.cores(), cache=shadow.cache_folder())
    run.update_manifest(engine=engine, workers=laboratory.workers)
    for game in range(run.scenario.games):
        if _finished(run, game):
            continue
        started = time.monotonic()
        _run_game(run, game, engine, workers or 1)
        _observe(run, observers.see(run, game), None, laboratory)
        _note_game(run, game, time.monotonic() - started)
    evaluate(run)
    run.update_manifest(complete=True)


def _finished(run: RunDirectory, game: int) -> bool:
    return str(game) in run.manifest.get("games", {})


def _run_game(run: RunDirectory, game: int, engine: str, workers: int) -> None:
    if engine == "inprocess":
        from fedsim.engines import inprocess

        inprocess.run_game(run, game, workers)
    elif engine == "ray":
        from fedsim.engines import ray

        ray.run_game(run, game, workers)
    else:
        raise InputError(f"--engine {engine}: unknown engine{suggestion(engine, ENGINES)}")


def _note_game(run: RunDirectory, game: int, seconds: float) -> None:
    last = run.last_round(game)
    digest = hashlib.sha256(run.model_path(game, last).read_bytes()).hexdigest()
    entry = {"rounds": last, "final_model_sha256": digest, "seconds": round(seconds, 3)}
    run.update_manifest(games={**run.manifest.get("games", {}), str(game): entry})


def evaluate(run: RunDirectory) -> None:
    """Join the scores with the truth and write ``leakage.parquet``, and ``sources.parquet`` where asked."""
    scores = run.table("scores")
    thresholds = scores[["game", "attack", "threshold"]].drop_duplicates(ignore_index=True)
    truth = membership.read_truth(run.path)
    leakage = evaluation.evaluate(scores[["game", "attack", "candidate", "score"]], thresholds, truth)
    run.write_table("leakage", leakage)
    if run.has("source_scores"):
        run.write_table("sources", source_evaluation.evaluate(run.table("source_scores"), truth))


def attack(
    run: RunDirectory,
    names: list[str] | None = None,
    workers: int | None = 1,
    progress: Callable[[int, int], object] | None = None,
    rounds: str = "",
) -> None:
    """Repeat the attacks offline, from what the adversary kept and nothing else, and evaluate them.

    names: attacks to run, default those of the scenario; other attacks' scores are kept.
    workers, progress: of the shadow federations (`simulation.Laboratory`); None: `simulation.cores`.
    rounds: those whose models attacks look at, such as '1,5,10-20,last'; default: adversary.rounds.

    Raises:
        InputError: unknown attack or round, or a game whose observations are missing.
    """
    wanted = names or run.scenario.adversary.attacks
    suite.attacks_of(run.scenario, wanted)
    chosen = trajectory.parse_rounds(rounds, run.scenario.federation.rounds) if rounds else None
    cores = workers or simulation.cores()
    laboratory = simulation.Laboratory(cores, cache=shadow.cache_folder(), progress=progress)
    for game in range(run.scenario.games):
        folder = run.observations(game)
        if not (folder / "candidates.safetensors").exists():
            raise InputError(
                f"{folder} holds no candidates: game {game} has not come to its attacks; "
                f"finish it with `fedsim run {run.path} --resume`"
            )
        seen = observers.see(run, game)
        seen = seen if chosen is None else observers.looking_at(seen, chosen)
        findings = suite.run(seen.participant, seen.candidates, wanted, run.scenario.seed, game, laboratory)
        _keep_findings(run, game, findings)
        _observe(run, seen, names, laboratory)
    evaluate(run)


def _observe(
    run: RunDirectory, seen: observers.Seen, names: list[str] | None, laboratory: simulation.Laboratory
) -> None:
    """Score the same candidates as the scenario's other observers, and ask who holds them."""
    findings = observers.score(seen, names, laboratory)
    if findings:
        _keep_findings(run, seen.game, findings)
    sources = observers.sources(seen, names, laboratory)
    if len(sources):
        run.write_game("source_scores", seen.game, sources)


def _keep_findings(run: RunDirectory, game: int, findings: dict[str, suite.Finding]) -> None:
    fresh = scores_table(
        {name: finding.scores for name, finding in findings.items()},
        {name: finding.threshold for name, finding in findings.items()},
    )
    if run.has("scores"):
        before = run.table("scores")
        mine = before[(before["game"] == game) & ~before["attack"].isin(list(findings))]
        fresh = pd.concat([mine.drop(columns="game"), fresh], ignore_index=True)
        known = {name: position for position, name in enumerate(suite.SUITE)}
        order = fresh["attack"].map(lambda name: known.get(name, len(known)))
        fresh = fresh.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    run.write_game("scores", game, fresh)


def latest_unfinished(parent: Path, name: str) -> RunDirectory:
    """Return the newest run of scenario ``name`` below ``parent`` that is not complete.

    Raises:
        FedsimError: there is none.
    """
    for run in reversed(runs_in(parent)):
        if not run.manifest.get("complete") and run.scenario.name == name:
            return run
    raise FedsimError(f"no unfinished run of '{name}' in {parent}; start one without --resume")


def check_engine(engine: str) -> None:
    """Refuse an unknown engine, or one that is not installed, before any work starts."""
    if engine not in ENGINES:
        raise InputError(f"--engine {engine}: unknown engine{suggestion(engine, ENGINES)}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray needs Ray; install it with: pip install 'fedsim[ray]'")
