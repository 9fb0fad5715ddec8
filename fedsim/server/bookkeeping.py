"""What is noted of every round, in ``rounds.parquet``."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from clients import messages
from fedsim.core.run_directory import RunDirectory
from fedsim.server import stopping
from fedsim.server.central_dp import party_epsilon
from fedsim.server.federation import Federation, Written, log, send
from fedsim.server.replies import Outcome

WRITE_EVERY = 0.2
"""Seconds that pass at least between two times that ``rounds.parquet`` and the checkpoint are written."""

WRITING_SHARE = 1 / 20
"""Of the time, what writing them may take."""

METRICS = ("loss", "accuracy", "auc", "brier")
"""What parties measure of a global model on their held-out records."""


def earlier_games(run: RunDirectory, game: int) -> pd.DataFrame | None:
    """Return the rows of ``rounds.parquet`` that belong to other games, None where there are none."""
    if not run.has("rounds"):
        return None
    rounds = run.table("rounds")
    others = rounds[rounds["game"] != game]
    return others if len(others) else None


def json_number(value: Any) -> Any:
    """Return ``value``, as text where JSON has no number for it."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def note_training(
    federation: Federation,
    round: int,
    outcomes: dict[int, Outcome],
    shapes: dict[int, tuple[float, float]],
) -> None:
    """Add a round's row of each party; shapes: partition id → norm and cosine of its update."""
    before = {
        party: row["epsilon"] for party, row in _rows_of(federation, round - 1).items() if "epsilon" in row
    }
    spent = _party_epsilons(federation, outcomes)
    for partition, outcome in outcomes.items():
        norm, cosine = shapes.get(partition, (math.nan, math.nan))
        name = federation.parties[partition]
        federation.rows.append(
            {
                "game": federation.game,
                "round": round,
                "party": name,
                "status": outcome.status,
                "detail": outcome.detail,
                "epsilon": outcome.metrics.get("epsilon", before.get(name, _at_first(federation, name))),
                "party_epsilon": spent.get(name, math.inf),
                "train_loss": outcome.metrics.get("train-loss", math.nan),
                "seconds": outcome.metrics.get("seconds", math.nan),
                "update_norm": norm,
                "update_cosine": cosine,
            }
        )


def _at_first(federation: Federation, name: str) -> float:
    """Return what a party had spent before it sent anything."""
    return math.inf if federation.scenario.dp_of(name) is None else 0.0


def _party_epsilons(federation: Federation, outcomes: dict[int, Outcome]) -> dict[str, float]:
    """Return what central DP has spent on each party, in rounds so far and this one; nothing without it."""
    central = federation.scenario.federation.central_dp
    if central is None:
        return {}
    rounds = Counter(row["party"] for row in federation.rows if row["round"] and row["status"] == "ok")
    rounds.update(federation.parties[k] for k, outcome in outcomes.items() if outcome.status == "ok")
    return {name: party_epsilon(central, rounds[name]) for name in federation.parties.values()}


def _rows_of(federation: Federation, round: int) -> dict[str, dict[str, Any]]:
    """Return the rows of a round by party, where it is the last that has any; else nothing."""
    last = itertools.takewhile(lambda row: row["round"] == round, reversed(federation.rows))
    return {row["party"]: row for row in last}


def evaluate_everywhere(federation: Federation, weights: ArrayRecord, round: int) -> None:
    """Send the global model to every party for its held-out records, and note what they measured.

    'all' is the mean over parties, weighted by held-out records (AUC: over parties that have one).
    """
    content = RecordDict({"arrays": weights, "config": ConfigRecord({"server-round": round})})
    nodes = [federation.nodes[partition] for partition in federation.parties]
    replies = send(federation.grid, content, nodes, MessageType.EVALUATE, federation.scenario)
    rows = _rows_of(federation, round)
    measured = []
    for reply in sorted(replies, key=federation.partition_of):
        name = federation.parties[federation.partition_of(reply)]
        row = rows.get(name)
        if row is None:
            row = {"game": federation.game, "round": round, "party": name, "status": "ok", "detail": ""}
            row["epsilon"] = _at_first(federation, name)
            row["party_epsilon"] = math.inf if federation.scenario.federation.central_dp is None else 0.0
            federation.rows.append(row)
        if reply.has_error():
            log.warning("%s: evaluation failed: %s", name, reply.error.reason)
            continue
        metrics = _measures(reply)
        if metrics is None:
            log.warning("%s: evaluation failed: the reply holds no measures", name)
            continue
        row.update({key: metrics[key] for key in METRICS})
        row["n_heldout"] = metrics["num-examples"]
        measured.append(metrics)
    overall = _overall(federation, round, measured)
    if stopping.looks_at_public(federation):
        overall["public_loss"] = stopping.public_loss(federation, weights)
    federation.rows.append(overall)


def write_rounds_in_time(federation: Federation) -> None:
    """Do `write_rounds`, unless that has just been done, or would take more than its share of the time.

    Files are written whole: after every one of small rounds, or of a thousand, that would take longer than
    the rounds. A run that is killed then repeats what took it less than `WRITE_EVERY`.
    """
    written, now = federation.written, time.monotonic()
    if now - written.at >= max(WRITE_EVERY, written.seconds / WRITING_SHARE):
        write_rounds(federation)


def write_rounds(federation: Federation) -> None:
    """Write ``rounds.parquet`` with all whole rounds, then the checkpoint after the last of them."""
    if federation.written.rows == federation.whole:
        return
    started = time.monotonic()
    table = pd.DataFrame(federation.rows[: federation.whole])
    if federation.earlier_games is not None:
        table = pd.concat([federation.earlier_games, table], ignore_index=True)
    federation.run.write_table("rounds", table)
    if federation.checkpoint is not None:
        federation.run.write_checkpoint(federation.game, federation.checkpoint)
    now, first = time.monotonic(), federation.written.rows == 0  # which also imports what writes Parquet
    federation.written = Written(federation.whole, now, 0.0 if first else now - started)


def _measures(reply: Message) -> dict[str, float] | None:
    """Return what a party measured, None where it does not say all of it, or not of how many records."""
    try:
        metrics = messages.numbers(messages.metrics_in(reply.content))
    except KeyError:
        return None
    if not metrics.keys() >= {*METRICS, "num-examples"} or not 0 < metrics["num-examples"] < math.inf:
        return None
    return metrics


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
    for key in METRICS:
        known = [metrics for metrics in measured if math.isfinite(metrics[key])]
        weights = [metrics["num-examples"] for metrics in known]
        values = [metrics[key] for metrics in known]
        row[key] = float(np.average(values, weights=weights)) if known else math.nan
    return row
