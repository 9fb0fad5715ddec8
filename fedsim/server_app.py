"""The Flower ServerApp: rounds, aggregation, evaluation, and collecting the adversary's findings.

The same app runs on every engine. It knows the parties by what they answer to one introductory query,
and works from the run's folder: it reads the scenario and writes models, rounds and scores.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from attacks import observer
from clients import messages
from clients.party import run_folder
from fedsim import models, rng
from fedsim import strategy as strategies
from fedsim.errors import FedsimError
from fedsim.results import Checkpoint, RunDirectory, scores_table
from fedsim.scenario import FederationSettings, Scenario

app = ServerApp()
log = logging.getLogger("fedsim")


@runtime_checkable
class KeepsStates(Protocol):
    """A grid that can hand out and take back its clients' states, so that a run can be resumed."""

    def states(self) -> dict[int, bytes]:
        """Return partition id → serialised ``Context.state``."""
        ...

    def restore(self, states: dict[int, bytes]) -> None:
        """Undo `states`."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How one party fared in one round.

    status: 'ok', 'not drawn', 'refused' (ε budget spent), 'failed' (raised), 'no reply' (timeout) or
        'invalid' (NaN or wrong shapes)
    detail: why, in words
    metrics: what the party reported
    """

    status: str
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Federation:
    """One game's federation as the server sees it."""

    grid: Grid
    run: RunDirectory
    game: int
    scenario: Scenario
    parties: dict[int, str]  # partition id → name
    nodes: dict[int, int]  # partition id → node id
    strategy: Strategy
    rows: list[dict[str, Any]]
    earlier_games: pd.DataFrame | None
    round_started: float = 0.0

    def partition_of(self, message: Message) -> int:
        """Return the partition id that a reply comes from."""
        node = message.metadata.src_node_id
        return next(partition for partition, known in self.nodes.items() if known == node)


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
    weights, start = _initialise(federation)
    for round in range(start, federation.scenario.federation.rounds + 1):
        federation.round_started = time.perf_counter()
        if round:
            trained = _train(federation, weights, round)
            if trained is None:
                break  # every party's budget is spent: the model stays as it is
            weights = trained
        run.write_model(game, round, messages.to_numpy(weights))
        _evaluate(federation, weights, round)
        _checkpoint(federation, round)
    _collect_findings(federation)


def _introduce(grid: Grid, run: RunDirectory, game: int) -> Federation:
    """Learn which node is which party: only a client sees its partition id.

    Raises:
        FedsimError: a party failed before round 1, with its reason.
    """
    scenario = run.scenario
    query = RecordDict({"config": ConfigRecord({"server-round": 0})})
    nodes = sorted(_await_nodes(grid, scenario))
    replies = _send(grid, query, nodes, "query.introduce", scenario)
    parties: dict[int, str] = {}
    node_of: dict[int, int] = {}
    plans = {}
    for reply in replies:
        if reply.has_error():
            raise FedsimError(f"a party failed before round 1: {reply.error.reason}")
        introduction: dict[str, Any] = dict(reply.content.config_records["introduction"])
        partition, name = int(introduction.pop("partition-id")), str(introduction.pop("party"))
        parties[partition], node_of[partition] = name, reply.metadata.src_node_id
        plans[name] = {key: _json_number(value) for key, value in sorted(introduction.items())}
    if len(parties) < len(nodes):
        raise FedsimError(f"only {len(parties)} of {len(nodes)} parties answered before round 1")
    run.update_manifest(dp={name: plan for name, plan in sorted(plans.items()) if plan})
    known = dict(sorted(parties.items()))
    built = _strategy(run, len(parties))
    return Federation(grid, run, game, scenario, known, node_of, built, [], _earlier_games(run, game))


def _strategy(run: RunDirectory, parties: int) -> Strategy:
    """Build the strategy; note in the manifest what central DP spends on a party of all rounds."""
    federation = run.scenario.federation
    built = strategies.build(federation, run.scenario.training)
    central = federation.central_dp
    if central is None:
        return built
    participants = federation.participants(parties)
    noise = strategies.count_noise(central, participants) if central.clipping == "adaptive" else None
    run.update_manifest(
        central_dp={
            "unit": "party",
            "epsilon_of_all_rounds": strategies.party_epsilon(central, federation.rounds),
            "delta": central.delta,
            "noise_multiplier": central.noise_multiplier,
            "count_noise": noise,
        }
    )
    return strategies.with_central_dp(built, central, participants)


def _earlier_games(run: RunDirectory, game: int) -> pd.DataFrame | None:
    """Return the rows of ``rounds.parquet`` that belong to other games, None where there are none."""
    if not run.has("rounds"):
        return None
    rounds = run.table("rounds")
    others = rounds[rounds["game"] != game]
    return others if len(others) else None


def _json_number(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _await_nodes(grid: Grid, scenario: Scenario) -> list[int]:
    """Wait until all parties' nodes are connected, as long as one reply may take."""
    wanted, deadline = scenario.parties.count, time.monotonic() + scenario.federation.timeout
    while len(nodes := list(grid.get_node_ids())) < (wanted or 1):
        if time.monotonic() > deadline:
            raise FedsimError(f"only {len(nodes)} of {wanted} parties connected")
        time.sleep(0.2)
    return nodes


def _initialise(federation: Federation) -> tuple[ArrayRecord, int]:
    """Return the global model to start from and the next round to run (0: the initial evaluation)."""
    run, game = federation.run, federation.game
    checkpoint = run.read_checkpoint(game)
    if checkpoint is not None and isinstance(federation.grid, KeepsStates):
        federation.grid.restore(checkpoint.states)
        strategies.restore(federation.strategy, checkpoint.strategy)
        before = run.table("rounds")
        kept = before[(before["game"] == game) & (before["round"] <= checkpoint.round)]
        federation.rows.extend(cast(list[dict[str, Any]], kept.to_dict("records")))
        return _ordered(run.read_model(game, checkpoint.round)), checkpoint.round + 1
    manifest = run.manifest
    module = models.build(
        federation.scenario.model,
        tuple(manifest["input_shape"]),
        len(manifest["classes"]),
        seed=rng.integer(federation.scenario.seed, "initial weights", game=game),
    )
    return _ordered(models.weights(module)), 0


def _ordered(weights: dict[str, np.ndarray]) -> ArrayRecord:
    """Pack a model by name: Flower's strategies go by position, and files have an order of their own."""
    return messages.to_arrays(dict(sorted(weights.items())))


def _send(
    grid: Grid, content: RecordDict, nodes: Iterable[int], message_type: str, scenario: Scenario
) -> list[Message]:
    sent = [Message(content, node, message_type) for node in nodes]
    return list(grid.send_and_receive(sent, timeout=scenario.federation.timeout))


def _train(federation: Federation, weights: ArrayRecord, round: int) -> ArrayRecord | None:
    """Run one round of training; return the new global model, None where every party refused.

    Raises:
        FedsimError: fewer usable replies than ``federation.min_parties``.
    """
    settings = federation.scenario.federation
    drawn = strategies.sample(federation.parties, settings, federation.scenario.seed, federation.game, round)
    nodes = strategies.Drawn([federation.nodes[partition] for partition in drawn])
    sent = federation.strategy.configure_train(round, weights, ConfigRecord(), cast(Grid, nodes))
    by_node = {message.metadata.dst_node_id: message for message in sent}
    ordered = [by_node[node] for node in nodes.node_ids if node in by_node]
    replies = list(federation.grid.send_and_receive(ordered, timeout=settings.timeout))
    outcomes, usable = _sort_out(federation, drawn, replies, weights)
    _note_training(federation, round, outcomes, _update_shapes(federation, usable, weights))
    if len(usable) < settings.min_parties:
        if usable == [] and all(outcome.status == "refused" for outcome in outcomes.values()):
            log.warning("round %d: every party's ε budget is spent; training ends here", round)
            return None
        raise FedsimError(_too_few(federation, round, outcomes, len(usable)))
    _observe(federation, round, usable)
    seed = federation.scenario.seed
    aggregated = strategies.aggregate(federation.strategy, round, usable, seed, federation.game)
    if aggregated is None:
        raise FedsimError(f"round {round}: strategy '{settings.strategy}' gave no model")
    return strategies.cast_like(aggregated, weights)


def _sort_out(
    federation: Federation, drawn: list[int], replies: list[Message], weights: ArrayRecord
) -> tuple[dict[int, Outcome], list[Message]]:
    """Judge each reply; return all outcomes, and the usable replies by partition id."""
    by_partition = {federation.partition_of(reply): reply for reply in replies}
    outcomes: dict[int, Outcome] = {}
    usable = []
    for partition in federation.parties:
        if partition not in drawn:
            outcomes[partition] = Outcome("not drawn")
            continue
        outcome = _judge(by_partition.get(partition), weights, federation.scenario.federation)
        outcomes[partition] = outcome
        if outcome.status == "ok":
            usable.append(_for_strategy(by_partition[partition], outcome, weights, federation.scenario))
        else:
            log.warning("%s: %s: %s", federation.parties[partition], outcome.status, outcome.detail)
    return outcomes, usable


def _judge(reply: Message | None, weights: ArrayRecord, settings: FederationSettings) -> Outcome:
    """Say whether a training reply can be used, and why not."""
    if reply is None:
        return Outcome("no reply", "nothing came within federation.timeout")
    if reply.has_error():
        return Outcome("failed", str(reply.error.reason))
    content = reply.content
    if "refusal" in content:
        return Outcome("refused", str(content.config_records["refusal"]["reason"]))
    if "arrays" not in content or "metrics" not in content:
        return Outcome("invalid", "the reply holds no model")
    metrics = messages.numbers(content.metric_records["metrics"])
    flaw = _flaw(content.array_records["arrays"], weights)
    if not flaw and not metrics.get("num-examples", 0) > 0:
        flaw = f"num-examples = {metrics.get('num-examples')}"
    missing = [name for name in strategies.metrics_needed(settings) if name not in metrics]
    if not flaw and missing:
        flaw = f"the metric '{missing[0]}' is missing"
    if not flaw and settings.central_dp is not None and settings.central_dp.where == "server":
        flaw = _without_direction(content.array_records["arrays"], weights)
    return Outcome("invalid", flaw, metrics) if flaw else Outcome("ok", "", metrics)


def _flaw(arrays: ArrayRecord, reference: ArrayRecord) -> str:
    """Return what is wrong with a model that a party sent, '' where nothing is."""
    if set(arrays) != set(reference):
        return "the model has other layers than the global model"
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(reference[name].shape):
            return f"{name} has shape {tuple(array.shape)}, not {tuple(reference[name].shape)}"
    for name, value in messages.to_numpy(arrays).items():
        if not np.isfinite(value).all():
            return f"{name} holds NaN or infinity"
    return ""


def _without_direction(arrays: ArrayRecord, reference: ArrayRecord) -> str:
    """Return what is wrong with an update of 0 where Flower clips it: it divides by the norm."""
    same = all(np.array_equal(arrays[name].numpy(), reference[name].numpy()) for name in reference)
    return "the update is 0, which central DP at the server cannot clip" if same else ""


def _for_strategy(reply: Message, outcome: Outcome, weights: ArrayRecord, scenario: Scenario) -> Message:
    """Keep only what the strategy needs, in the global model's order of layers.

    It averages every metric, and ε or seconds have no mean. Under central DP all parties weigh the same: a
    weight by records would let a large party move the mean by more than the noise covers.
    """
    federation, arrays = scenario.federation, reply.content.array_records["arrays"]
    kept = {name: outcome.metrics[name] for name in strategies.metrics_needed(federation)}
    if federation.central_dp is not None:
        kept["num-examples"] = 1.0
    ordered = ArrayRecord({name: arrays[name] for name in weights})
    reply.content = RecordDict({"arrays": ordered, "metrics": messages.metrics(kept)})
    return reply


def _observe(federation: Federation, round: int, usable: list[Message]) -> None:
    """Keep what an honest but curious server sees, where it is an observer: every answer, or their mean.

    Secure aggregation is taken as ideal: the server learns Σ n_k w_k and Σ n_k over those that answered.
    """
    settings = federation.scenario.adversary
    if "server" not in settings.observers:
        return
    folder = federation.run.server_observations(federation.game)
    answers = {
        federation.partition_of(reply): messages.to_numpy(reply.content.array_records["arrays"])
        for reply in usable
    }
    if settings.secure_aggregation:
        sizes = [messages.numbers(m.content.metric_records["metrics"])["num-examples"] for m in usable]
        observer.record_sum(folder, round, list(answers.values()), sizes)
        return
    for partition, weights in answers.items():
        observer.record_answer(folder, round, partition, weights)


def _too_few(federation: Federation, round: int, outcomes: dict[int, Outcome], usable: int) -> str:
    reasons = "; ".join(
        f"{federation.parties[partition]}: {outcome.status} ({outcome.detail})"
        for partition, outcome in outcomes.items()
        if outcome.status not in ("ok", "not drawn")
    )
    wanted = federation.scenario.federation.min_parties
    return f"round {round} ended with {usable} usable replies of at least {wanted}: {reasons}"


def _update_shapes(
    federation: Federation, usable: list[Message], weights: ArrayRecord
) -> dict[int, tuple[float, float]]:
    """Return, by partition id, ‖Δ_k‖ and the cosine of Δ_k with the mean of the others' updates.

    Δ_k is the party's answer minus the global model it was sent: what a server could notice of a party that
    deviates. NaN where there is no direction: a party alone, an update of 0.
    """
    sent = _flat(weights)
    updates = {
        federation.partition_of(reply): _flat(reply.content.array_records["arrays"]) - sent
        for reply in usable
    }
    total = sum(updates.values(), np.zeros_like(sent))
    return {
        partition: (float(np.linalg.norm(update)), _cosine(update, total - update))
        for partition, update in updates.items()
    }


def _flat(weights: ArrayRecord) -> np.ndarray:
    arrays = messages.to_numpy(weights)
    return np.concatenate([np.ravel(arrays[name]) for name in sorted(arrays)]).astype(np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else math.nan


def _note_training(
    federation: Federation,
    round: int,
    outcomes: dict[int, Outcome],
    shapes: dict[int, tuple[float, float]],
) -> None:
    for partition, outcome in outcomes.items():
        norm, cosine = shapes.get(partition, (math.nan, math.nan))
        federation.rows.append(
            {
                "game": federation.game,
                "round": round,
                "party": federation.parties[partition],
                "status": outcome.status,
                "detail": outcome.detail,
                "epsilon": outcome.metrics.get("epsilon", _last_epsilon(federation, partition)),
                "party_epsilon": _party_epsilon(federation, partition, outcome.status == "ok"),
                "train_loss": outcome.metrics.get("train-loss", math.nan),
                "seconds": outcome.metrics.get("seconds", math.nan),
                "update_norm": norm,
                "update_cosine": cosine,
            }
        )


def _last_epsilon(federation: Federation, partition: int) -> float:
    """Return what the party had spent before a round in which it sent nothing."""
    name = federation.parties[partition]
    known = [row["epsilon"] for row in federation.rows if row["party"] == name and row["round"]]
    if known:
        return float(known[-1])
    return math.inf if federation.scenario.dp_of(name) is None else 0.0


def _party_epsilon(federation: Federation, partition: int, takes_part: bool) -> float:
    """Return what central DP has spent on a party, in rounds so far and this one; infinite without it."""
    central = federation.scenario.federation.central_dp
    if central is None:
        return math.inf
    name = federation.parties[partition]
    mine = [row for row in federation.rows if row["party"] == name and row["round"]]
    return strategies.party_epsilon(central, takes_part + sum(row["status"] == "ok" for row in mine))


def _evaluate(federation: Federation, weights: ArrayRecord, round: int) -> None:
    """Send the global model to every party for its held-out records, and note what they measured.

    'all' is the mean over parties, weighted by held-out records (AUC: over parties that have one).
    """
    content = RecordDict({"arrays": weights, "config": ConfigRecord({"server-round": round})})
    nodes = [federation.nodes[partition] for partition in federation.parties]
    replies = _send(federation.grid, content, nodes, MessageType.EVALUATE, federation.scenario)
    rows = {row["party"]: row for row in federation.rows if row["round"] == round}
    measured = []
    for reply in sorted(replies, key=federation.partition_of):
        name = federation.parties[federation.partition_of(reply)]
        row = rows.get(name)
        if row is None:
            row = {"game": federation.game, "round": round, "party": name, "status": "ok", "detail": ""}
            row["epsilon"] = math.inf if federation.scenario.dp_of(name) is None else 0.0
            row["party_epsilon"] = math.inf if federation.scenario.federation.central_dp is None else 0.0
            federation.rows.append(row)
        if reply.has_error():
            log.warning("%s: evaluation failed: %s", name, reply.error.reason)
            continue
        metrics = messages.numbers(reply.content.metric_records["metrics"])
        row.update({key: metrics[key] for key in ("loss", "accuracy", "auc")})
        row["n_heldout"] = metrics["num-examples"]
        measured.append(metrics)
    federation.rows.append(_overall(federation, round, measured))
    table = pd.DataFrame(federation.rows)
    if federation.earlier_games is not None:
        table = pd.concat([federation.earlier_games, table], ignore_index=True)
    federation.run.write_table("rounds", table)


def _overall(federation: Federation, round: int, measured: list[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "game": federation.game,
        "round": round,
        "party": "all",
        "status": "ok",
        "detail": "",
        "n_heldout": sum(metrics["num-examples"] for metrics in measured),
        "seconds": time.perf_counter() - federation.round_started,
    }
    for key in ("loss", "accuracy", "auc"):
        known = [metrics for metrics in measured if math.isfinite(metrics[key])]
        weights = [metrics["num-examples"] for metrics in known]
        values = [metrics[key] for metrics in known]
        row[key] = float(np.average(values, weights=weights)) if known else math.nan
    return row


def _checkpoint(federation: Federation, round: int) -> None:
    if isinstance(federation.grid, KeepsStates):
        checkpoint = Checkpoint(round, federation.grid.states(), strategies.state_of(federation.strategy))
        federation.run.write_checkpoint(federation.game, checkpoint)


def _collect_findings(federation: Federation) -> None:
    """Ask the malicious party for its scores on the candidates, which carry no membership.

    Raises:
        FedsimError: the adversary did not answer.
    """
    run, game = federation.run, federation.game
    asked = messages.to_arrays(run.read_candidates(game).arrays())
    config = ConfigRecord({"workers": int(run.manifest.get("workers", 1))})
    content = RecordDict({"candidates": asked, "config": config})
    adversary = run.manifest["adversary"]
    node = next(
        federation.nodes[partition] for partition, name in federation.parties.items() if name == adversary
    )
    # What the adversary does at home is no round of the protocol: no timeout of it applies.
    message = Message(content, node, "query.attack")
    replies = list(federation.grid.send_and_receive([message], timeout=None))
    if not replies or replies[0].has_error():
        reason = replies[0].error.reason if replies else "no reply"
        raise FedsimError(f"the malicious party {adversary} brought no scores: {reason}")
    scores = messages.to_numpy(replies[0].content.array_records["scores"])
    thresholds = messages.numbers(replies[0].content.metric_records["thresholds"])
    run.write_game("scores", game, scores_table(scores, thresholds))
