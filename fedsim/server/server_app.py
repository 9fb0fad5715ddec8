"""The Flower ServerApp: rounds, aggregation, evaluation, and collecting the adversary's findings.

The same app runs on every engine. It knows the parties by what they answer to one introductory query,
and works from the run's folder: it reads the scenario and writes models, rounds and scores.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from attacks.views import server
from clients import messages
from clients.party import run_folder
from fedsim.core import rng
from fedsim.core.data import worlds
from fedsim.core.errors import FedsimError
from fedsim.core.imports import is_reference
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.run_directory import Checkpoint, RunDirectory, by_round_table, not_run_table, scores_table
from fedsim.server import central_dp, stopping, strategy
from fedsim.server.bookkeeping import (
    earlier_games,
    evaluate_everywhere,
    json_number,
    note_training,
    write_rounds,
    write_rounds_in_time,
)
from fedsim.server.federation import Federation, KeepsStates, ask, log, ordered, send
from fedsim.server.replies import flaw_of, sort_out, too_few, update_shapes
from fedsim.server.strategy import Drawn

app = ServerApp()

Found = TypeVar("Found")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one game: introduce, train T rounds, ask the adversary."""
    run = RunDirectory.open(run_folder(context))
    federate(grid, run, int(context.run_config.get("game", 0)))


def federate(grid: Grid, run: RunDirectory, game: int) -> None:
    """Run the federation of one game, going on from its checkpoint where there is one.

    Raises:
        FedsimError: too few parties are left.
    """
    federation = _introduce(grid, run, game)
    try:
        _run_rounds(federation)
    finally:
        write_rounds(federation)
    stopping.note_released(federation)
    if not run.manifest.get("deployed"):  # no organisation has the others' candidates to be asked about
        _collect_findings(federation)


def _run_rounds(federation: Federation) -> None:
    run, game = federation.run, federation.game
    weights, start = _initialise(federation)
    for round in range(start, federation.scenario.federation.rounds + 1):
        if stopping.is_over(federation):
            log.info("round %d: federation.patience is used up; training ends here", round - 1)
            break
        federation.round_started = time.perf_counter()
        if round:
            trained = _train(federation, weights, round)
            if trained is None:
                break  # every party's budget is spent: the model stays as it is
            weights = trained
        run.write_model(game, round, messages.to_numpy(weights))
        evaluate_everywhere(federation, weights, round)
        _end_round(federation, round)


def _introduce(grid: Grid, run: RunDirectory, game: int) -> Federation:
    """Learn which node is which party: only a client sees its partition id.

    Raises:
        FedsimError: a party failed before round 1, with its reason.
    """
    scenario = run.scenario
    query = RecordDict({"config": ConfigRecord({"server-round": 0})})
    patience = run.manifest.get("node_patience", scenario.federation.timeout)
    nodes = sorted(await_nodes(grid, scenario.parties.count or 1, patience))
    replies = send(grid, query, nodes, "query.introduce", scenario)
    parties: dict[int, str] = {}
    node_of: dict[int, int] = {}
    plans, paths = {}, {}
    for reply in replies:
        if reply.has_error():
            raise FedsimError(f"a party failed before round 1: {reply.error.reason}")
        introduction: dict[str, Any] = dict(messages.config_in(reply.content, "introduction"))
        partition, name = int(introduction.pop("partition-id")), str(introduction.pop("party"))
        parties[partition], node_of[partition] = name, reply.metadata.src_node_id
        paths[name] = str(introduction.pop("path", "reference"))
        plans[name] = {key: json_number(value) for key, value in sorted(introduction.items())}
    if len(parties) < len(nodes):
        raise FedsimError(f"only {len(parties)} of {len(nodes)} parties answered before round 1")
    run.update_manifest(
        dp={name: plan for name, plan in sorted(plans.items()) if plan},
        training_path=dict(sorted(paths.items())),
    )
    known = dict(sorted(parties.items()))
    built = _strategy(run, len(parties))
    return Federation(grid, run, game, scenario, known, node_of, built, [], earlier_games(run, game))


def _strategy(run: RunDirectory, parties: int) -> Strategy:
    """Build the strategy; note in the manifest what central DP spends on a party of all rounds."""
    federation = run.scenario.federation
    built = strategy.build(federation, run.scenario.training)
    central = federation.central_dp
    if central is None:
        return built
    participants = federation.participants(parties)
    noise = central_dp.count_noise(central, participants) if central.clipping == "adaptive" else None
    run.update_manifest(
        central_dp={
            "unit": "party",
            "epsilon_of_all_rounds": central_dp.party_epsilon(central, federation.rounds),
            "delta": central.delta,
            "noise_multiplier": central.noise_multiplier,
            "count_noise": noise,
        }
    )
    return central_dp.with_central_dp(built, central, participants)


def await_nodes(grid: Grid, fewest: int, patience: float) -> list[int]:
    """Wait until so many nodes are connected, for ``patience`` seconds at most; return all there are.

    Raises:
        FedsimError: they do not come.
    """
    deadline = time.monotonic() + patience
    while len(nodes := list(grid.get_node_ids())) < fewest:
        if time.monotonic() > deadline:
            raise FedsimError(f"only {len(nodes)} of {fewest} parties connected")
        time.sleep(0.2)
    return nodes


def _initialise(federation: Federation) -> tuple[ArrayRecord, int]:
    """Return the global model to start from and the next round to run (0: the initial evaluation)."""
    run, game = federation.run, federation.game
    checkpoint = run.read_checkpoint(game)
    if checkpoint is not None:
        if isinstance(federation.grid, KeepsStates):
            federation.grid.restore(checkpoint.states)
        strategy.restore(federation.strategy, checkpoint.strategy)
        before = run.table("rounds")
        finished = before[(before["game"] == game) & (before["round"] <= checkpoint.round)]
        federation.rows.extend(cast(list[dict[str, Any]], finished.to_dict("records")))
        federation.whole = len(federation.rows)
        return ordered(run.read_model(game, checkpoint.round)), checkpoint.round + 1
    pretrained = run.read_initial()
    if pretrained is not None:
        return ordered(pretrained), 0
    manifest = run.manifest
    module = zoo.build(
        federation.scenario.model,
        tuple(manifest["input_shape"]),
        len(manifest["classes"]),
        seed=rng.integer(federation.scenario.seed, "initial weights", game=game),
    )
    return ordered(weights_of(module)), 0


def _train(federation: Federation, weights: ArrayRecord, round: int) -> ArrayRecord | None:
    """Run one round of training; return the new global model, None where every party refused.

    Raises:
        FedsimError: fewer usable replies than ``federation.min_parties``.
    """
    settings = federation.scenario.federation
    drawn = strategy.sample(federation.parties, settings, federation.scenario.seed, federation.game, round)
    nodes = Drawn([federation.nodes[partition] for partition in drawn])
    with strategy.blamed(settings, round):
        sent = list(federation.strategy.configure_train(round, weights, ConfigRecord(), cast(Grid, nodes)))
    by_node = {message.metadata.dst_node_id: message for message in sent}
    ordered = [by_node[node] for node in nodes.node_ids if node in by_node]
    replies = ask(federation.grid, ordered, settings.timeout)
    outcomes, usable = sort_out(federation, drawn, replies, weights)
    note_training(federation, round, outcomes, update_shapes(federation, usable, weights))
    if len(usable) < settings.min_parties:
        if usable == [] and all(outcome.status == "refused" for outcome in outcomes.values()):
            log.warning("round %d: every party's ε budget is spent; training ends here", round)
            return None
        raise FedsimError(too_few(federation, round, outcomes, len(usable)))
    _observe(federation, round, usable)
    return _aggregate(federation, weights, round, usable)


def _aggregate(
    federation: Federation, weights: ArrayRecord, round: int, usable: list[Message]
) -> ArrayRecord:
    """Return the new global model, which has the layers of the one before.

    Raises:
        FedsimError: the strategy gave no model, or a user's own failed or gave one that cannot be used.
    """
    settings, seed = federation.scenario.federation, federation.scenario.seed
    with strategy.blamed(settings, round):
        aggregated = strategy.aggregate(federation.strategy, round, usable, seed, federation.game)
    if aggregated is None:
        raise FedsimError(f"round {round}: strategy '{settings.strategy}' gave no model")
    flaw = flaw_of(aggregated, weights) if is_reference(settings.strategy) else ""
    if flaw:
        raise FedsimError(f"round {round}: federation.strategy = '{settings.strategy}': {flaw}")
    return strategy.cast_like(aggregated, weights)


def _observe(federation: Federation, round: int, usable: list[Message]) -> None:
    """Keep what an honest but curious server sees, where it is an observer: every answer, or their mean.

    Secure aggregation is taken as ideal: the server learns Σ n_k w_k and Σ n_k over those that answered.
    """
    settings = federation.scenario.adversary
    if "server" not in settings.observers:
        return
    folder = federation.run.server_observations(federation.game)
    answers = {
        federation.partition_of(reply): messages.to_numpy(messages.arrays_in(reply.content))
        for reply in usable
    }
    if settings.secure_aggregation:
        sizes = [messages.numbers(messages.metrics_in(m.content))["num-examples"] for m in usable]
        server.record_sum(folder, round, list(answers.values()), sizes)
        return
    for partition, weights in answers.items():
        server.record_answer(folder, round, partition, weights)


def _end_round(federation: Federation, round: int) -> None:
    """Keep what it takes to go on after this round, where the parties' states are here or theirs to keep."""
    grid = federation.grid
    if isinstance(grid, KeepsStates) or federation.run.manifest.get("deployed", False):
        states = grid.states() if isinstance(grid, KeepsStates) else {}
        federation.checkpoint = Checkpoint(round, states, strategy.state_of(federation.strategy))
    federation.whole = len(federation.rows)
    write_rounds_in_time(federation)


def _collect_findings(federation: Federation) -> None:
    """Ask the malicious party for its scores on the candidates, which carry no membership.

    Raises:
        FedsimError: the adversary did not answer.
    """
    run, game = federation.run, federation.game
    candidates = messages.to_arrays(run.read_candidates(game).arrays())
    owned = run.read_worlds(game)
    config = ConfigRecord({"workers": int(run.manifest.get("workers", 1))})
    content = RecordDict(
        {"candidates": candidates, "worlds": messages.to_arrays(worlds.arrays(owned)), "config": config}
    )
    adversary = run.manifest["adversary"]
    node = next(
        federation.nodes[partition] for partition, name in federation.parties.items() if name == adversary
    )
    # What the adversary does at home is no round of the protocol: it has a timeout of its own.
    message = Message(content, node, messages.ATTACK)
    replies = ask(federation.grid, [message], federation.scenario.adversary.timeout)
    if not replies or replies[0].has_error():
        reason = replies[0].error.reason if replies else "no reply within adversary.timeout"
        raise FedsimError(f"the malicious party {adversary} brought no scores: {reason}")
    content = replies[0].content
    scores = messages.to_numpy(messages.arrays_in(content, "scores"))
    thresholds = messages.numbers(messages.metrics_in(content, "thresholds"))
    reasons = {str(key): str(reason) for key, reason in messages.config_in(content, "not-run").items()}
    parts = [
        scores_table("participant", name, world.asked, _of(name, scores), _of(name, thresholds))
        for name, world in owned.items()
    ]
    run.write_game("scores", game, pd.concat(parts, ignore_index=True))
    first = next(iter(owned.values())).asked
    _keep_by_round(run, game, first, messages.to_numpy(messages.arrays_in(content, "by-round")))
    if reasons:
        tables = [not_run_table("participant", name, _of(name, reasons)) for name in owned]
        run.write_game("not_run", game, pd.concat(tables, ignore_index=True))
    seconds = messages.numbers(messages.metrics_in(content, "seconds"))
    run.update_manifest(
        world_seconds={**run.manifest.get("world_seconds", {}), str(game): seconds},
        shadow_path=str(messages.config_in(content, "shadows")["path"]),
    )


def _of(world: str, found: dict[str, Found]) -> dict[str, Found]:
    """Return what was found in a world, by attack; ``found``: by 'world/attack'."""
    return {
        key.removeprefix(f"{world}/"): value for key, value in found.items() if key.startswith(f"{world}/")
    }


def _keep_by_round(run: RunDirectory, game: int, asked: np.ndarray, scores: dict[str, np.ndarray]) -> None:
    """Keep what attacks found in each round's model; scores: 'round attack' → (m,) of those asked."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for key, values in scores.items():
        t, _, name = key.partition(" ")
        found.setdefault(name, {})[int(t)] = values
    if found:
        by_name = {name: dict(sorted(found[name].items())) for name in sorted(found)}
        run.write_game("scores_by_round", game, by_round_table("participant", asked, by_name))
