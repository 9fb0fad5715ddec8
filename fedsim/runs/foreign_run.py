"""A run that fedsim did not make, as a run's folder: what the adversary saw, to be attacked and judged."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks.views import observations
from attacks.views.settings import PublicSettings
from attacks.views.worlds import record_worlds
from fedsim.core.files import write_json
from fedsim.core.models import zoo
from fedsim.core.models.weights import load_weights
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.run_directory import GameEntry, RunDirectory, not_run_table
from fedsim.core.scenario.reading import FOREIGN
from fedsim.core.training import metrics
from fedsim.evaluation import truth
from fedsim.runs import integrity
from fedsim.runs.attack import attack_again
from fedsim.runs.foreign import OWNER, Brought
from fedsim.runs.prepare import write_games


def write(brought: Brought, place: Path) -> RunDirectory:
    """Fill a run's folder, absent or empty, with what the adversary saw, ready to be attacked.

    Raises:
        InputError: a side of a party has too few records, or the folder is not empty.
    """
    prepared = brought.prepared
    scenario = prepared.scenario
    game = truth.game_of(
        prepared.encoded,
        prepared.rows,
        brought.member,
        seed=scenario.seed,
        game=0,
        adversary=prepared.adversary,
        settings=scenario.adversary,
    )
    run = RunDirectory.create(place, scenario)
    write_json(run.path / FOREIGN, {str(t): _origin(file) for t, file in brought.files.items()})
    plans = _plans(brought, game)
    write_games(run, prepared, [game])
    _write_observations(run, brought, game, plans)
    for t, weights in brought.weights.items():
        run.write_model(0, t, weights)
    run.write_table("rounds", _rounds(brought, game, plans))
    if brought.left_out:
        run.write_game(
            "not_run", 0, not_run_table("participant", scenario.adversary.ladder[0], brought.left_out)
        )
    described = {name: _plain(plan) for name, plan in plans.items() if plan is not None}
    run.update_manifest(dp=described)
    return run


def _origin(file: Path) -> dict[str, str]:
    return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _plans(brought: Brought, game: truth.Game) -> dict[str, Plan | None]:
    """Return the DP-SGD of each party as the scenario describes it; an owner trains on the insider's too."""
    scenario = brought.prepared.scenario
    sizes = {name: len(records.train) for name, records in game.parties.items()}
    if brought.one:
        sizes = {OWNER: sum(sizes.values())}
    plans: dict[str, Plan | None] = dict.fromkeys(game.parties)
    for name, n in sizes.items():
        settings = scenario.dp_of(name)
        if settings is not None:
            plans[name] = make_plan(settings, scenario.training_of(name), n, scenario.federation.rounds)
    return plans


def _plain(plan: Plan) -> dict[str, Any]:
    values = dataclasses.asdict(plan)
    return {
        k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in sorted(values.items())
    }


def _write_observations(
    run: RunDirectory, brought: Brought, game: truth.Game, plans: Mapping[str, Plan | None]
) -> None:
    prepared, folder = brought.prepared, run.observations(0)
    own = game.parties[prepared.adversary]
    settings = _public(brought, game, plans)
    assumed = prepared.scenario.adversary
    observations.record_settings(folder, settings, own, assumed, game.auxiliary)
    for t, weights in brought.weights.items():
        observations.record_model(folder, t, weights)
    if brought.start is not None:
        observations.record_start(folder, brought.start)
    observations.record_candidates(folder, game.candidates)
    record_worlds(folder, game.worlds)


def _public(brought: Brought, game: truth.Game, plans: Mapping[str, Plan | None]) -> PublicSettings:
    """Return what everybody knows; of a federation of one, that its one party holds all members."""
    prepared, scenario = brought.prepared, brought.prepared.scenario
    names = list(game.parties)
    sizes = tuple(len(records.train) for records in game.parties.values())
    federation, parties = scenario.federation, 1 if brought.one else len(names)
    victim = OWNER if brought.one else None
    return PublicSettings(
        model=scenario.model,
        input_shape=prepared.encoded.features.shape[1:],
        classes=len(prepared.encoded.classes),
        rounds=federation.rounds,
        parties=parties,
        participants=federation.participants(parties),
        training=scenario.training,
        strategy=federation.strategy,
        options=dict(federation.options),
        sizes=(sum(sizes),) if brought.one else sizes,
        privacy=(plans[OWNER],) if victim else tuple(plans.values()),
        defences=tuple(scenario.defence_of(name) for name in ([victim] if victim else names)),
        central_dp=federation.central_dp,
        own=0 if brought.one else names.index(prepared.adversary),
    )


def _rounds(brought: Brought, game: truth.Game, plans: Mapping[str, Plan | None]) -> pd.DataFrame:
    """Return loss, accuracy and AUC of every saved model on the held-out records, as a run notes them."""
    prepared, rows = brought.prepared, []
    shape, classes = prepared.encoded.features.shape[1:], len(prepared.encoded.classes)
    module = zoo.build(prepared.scenario.model, shape, classes)
    for t, weights in brought.weights.items():
        load_weights(module, weights)
        measured = {name: metrics.evaluate(module, records.heldout) for name, records in game.parties.items()}
        for name, values in measured.items():
            rows.append(_row(t, name, values, _spent(plans[name], t)))
        sizes = [values["n"] for values in measured.values()]
        overall: dict[str, float] = {"n": sum(sizes)}
        for metric in ("loss", "accuracy", "auc"):
            known = [(values[metric], values["n"]) for values in measured.values()]
            known = [(value, n) for value, n in known if math.isfinite(value)]
            overall[metric] = _mean(known)
        rows.append(_row(t, "all", overall, math.nan))
    return pd.DataFrame(rows)


def _mean(known: list[tuple[float, float]]) -> float:
    if not known:
        return math.nan
    values, weights = zip(*known, strict=True)
    return float(np.average(values, weights=weights))


def _row(t: int, party: str, values: Mapping[str, float], epsilon: float) -> dict[str, Any]:
    row = {"game": 0, "round": t, "party": party, "status": "ok", "detail": "", "epsilon": epsilon}
    row |= {metric: values[metric] for metric in ("loss", "accuracy", "auc")}
    return row | {
        "party_epsilon": math.inf,
        "train_loss": math.nan,
        "n_heldout": values["n"],
        "seconds": math.nan,
    }


def _spent(plan: Plan | None, t: int) -> float:
    if plan is None:
        return math.inf
    ledger = Ledger()
    if t:
        ledger = ledger.add(plan.noise_multiplier, plan.sample_rate, plan.steps_per_round * t)
    return ledger.epsilon(plan.delta, plan.accountant)


def attack(
    run: RunDirectory,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    rounds: str = "",
    cluster: str | None = None,
) -> None:
    """Run the attacks of a folder that `write` filled, and finish it.

    Raises:
        InputError: there is no such round to look at.
    """
    started = time.monotonic()
    integrity.note_game(run, 0)
    attack_again(run, None, workers, progress, rounds, cluster)
    seconds, last = time.monotonic() - started, run.last_round(0)
    digest = hashlib.sha256(run.model_path(0, last).read_bytes()).hexdigest()
    entry: GameEntry = {"rounds": last, "final_model_sha256": digest, "seconds": round(seconds, 3)}
    run.update_manifest(games={"0": entry}, complete=True)
