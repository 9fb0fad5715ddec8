"""The released model of a run: raw records in, probabilities out, and its card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from fedsim.core.data.records import Records
from fedsim.core.data.released import Cell, ReleasedSchema, encode_rows, read_schema
from fedsim.core.errors import InputError
from fedsim.core.models.weights import load_weights
from fedsim.core.models.zoo import build
from fedsim.core.privacy.output import softmax
from fedsim.core.run_directory import RunDirectory
from fedsim.core.training import metrics

BATCH = 512
"""Records at a time: other batches give products of matrices other last bits, and attacks use this one."""


@dataclass(frozen=True)
class Release:
    """A model in evaluation mode, how its records are read, and what may be said of it."""

    module: nn.Module
    schema: ReleasedSchema
    card: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self.schema.schema.classes

    def encode(self, rows: Sequence[Mapping[str, Cell]]) -> np.ndarray:
        """Return the features of raw records, (n, *shape) float32; see `encode_rows`."""
        return encode_rows(self.schema, rows)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (n, classes) float64. They stay behind an output policy."""
        records = Records(features, np.zeros(len(features), dtype=np.int64))
        return softmax(metrics.logits(self.module, records, batch=BATCH))


def load(run: RunDirectory, game: int = 0) -> Release:
    """Read the final model of a game.

    Raises:
        InputError: the run is unfinished, was made by an earlier fedsim, or a file is corrupt.
    """
    last = run.last_round(game)
    if last < run.scenario.federation.rounds:
        raise InputError(
            f"{run.path}: game {game} has no final model (round {max(last, 0)} of "
            f"{run.scenario.federation.rounds}); finish it with `fedsim run {run.path} --resume`"
        )
    schema = read_schema(run.path)
    module = build(run.scenario.model, tuple(run.manifest["input_shape"]), len(run.manifest["classes"]))
    try:
        load_weights(module, run.read_model(game, last))
    except ValueError as error:
        raise InputError(
            f"{run.model_path(game, last)} does not fit the scenario's model: {error}"
        ) from error
    return Release(module.eval(), schema, model_card(run, game))


def model_card(run: RunDirectory, game: int = 0) -> dict[str, Any]:
    """Return what whoever asks the model should know of it, as JSON values; no path, no weight, no record.

    An ε is null where a party trained without DP-SGD: nothing is guaranteed to its records.
    """
    scenario, manifest = run.scenario, run.manifest
    rounds = run.table("rounds")
    rounds = rounds[rounds["game"] == game]
    model = scenario.model.name
    return {
        "name": scenario.name,
        "data": sorted(manifest["data_sha256"]) if scenario.data.name is None else [scenario.data.name],
        "record": manifest["record"],
        "model": "custom" if ":" in model else model,
        "rounds": int(rounds["round"].max()),
        "accuracy": _final(rounds[rounds["party"] == "all"], "accuracy"),
        "parties": [_party(run, rounds, name) for name in manifest["parties"]],
        "created": manifest["created"],
        "fedsim": manifest["versions"]["fedsim"],
    }


def _party(run: RunDirectory, rounds: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return a party's guarantee, over all rounds, and its accuracy on held-out records.

    party_epsilon: what central DP spent on the party as a whole
    """
    own, dp = rounds[rounds["party"] == name], run.scenario.dp_of(name)
    whole = float(own["party_epsilon"].max())
    epsilon = float(own["epsilon"].max()) if dp is not None else math.inf
    return {
        "name": name,
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": None if dp is None else dp.delta,
        "party_epsilon": whole if math.isfinite(whole) else None,
        "accuracy": _final(own, "accuracy"),
    }


def _final(rows: pd.DataFrame, column: str) -> float | None:
    known = rows.sort_values("round")[column].dropna()
    return float(known.iloc[-1]) if len(known) else None
