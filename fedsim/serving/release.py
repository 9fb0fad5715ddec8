"""The released model of a run: raw records in, probabilities out, and its card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from fedsim.core.data.records import Records
from fedsim.core.data.released import Cell, ReleasedSchema, encode_rows, read_schema
from fedsim.core.errors import InputError
from fedsim.core.files import read_json
from fedsim.core.models import released
from fedsim.core.models.released import Released
from fedsim.core.privacy.output import Backing, softmax
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.training import metrics

FULL = OutputPolicy()

BATCH = 512
"""Records at a time: other batches give products of matrices other last bits, and attacks use this one."""


@dataclass(frozen=True)
class Release:
    """What is served, how its records are read, and what may be said of it."""

    made: Released
    run: RunDirectory
    schema: ReleasedSchema
    card: Mapping[str, Any]
    # Made when the first key of such a policy asks.
    _modules: dict[bool, nn.Module] = field(default_factory=dict, repr=False)
    _backings: dict[str, Backing] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self.schema.schema.classes

    def encode(self, rows: Sequence[Mapping[str, Cell]]) -> np.ndarray:
        """Return the features of raw records, (n, *shape) float32; see `encode_rows`."""
        return encode_rows(self.schema, rows)

    def probabilities(self, features: np.ndarray, policy: OutputPolicy = FULL) -> np.ndarray:
        """Return (n, classes) float64, shares of votes under 'votes'. They stay behind an output policy."""
        votes = policy.policy == "votes"
        if votes not in self._modules:
            self._modules[votes] = self.made.module(policy)
        records = Records(features, np.zeros(len(features), dtype=np.int64))
        return softmax(metrics.logits(self._modules[votes], records, batch=BATCH))

    def backing(self, policy: OutputPolicy) -> Backing:
        """Return what the policy needs besides.

        Raises:
            InputError: the run does not have it.
        """
        if policy.policy not in self._backings:
            self._backings[policy.policy] = self.made.backing(policy, self.run)
        return self._backings[policy.policy]


def load(run: RunDirectory, game: int = 0) -> Release:
    """Read the final model of a game.

    Raises:
        InputError: the run is unfinished, was made by an earlier fedsim, or a file is corrupt.
    """
    last = run.last_round(game)
    if last < run.scenario.federation.rounds and str(game) not in run.manifest.get("games", {}):
        raise InputError(
            f"{run.path}: game {game} has no final model (round {max(last, 0)} of "
            f"{run.scenario.federation.rounds}); finish it with `fedsim run {run.path} --resume`"
        )
    schema = read_schema(run.path)
    return Release(released.load(run, game), run, schema, model_card(run, game))


def model_card(run: RunDirectory, game: int = 0) -> dict[str, Any]:
    """Return what whoever asks the model should know of it, as JSON values; no path, no weight, no record.

    An ε is null where a party trained without DP-SGD: nothing is guaranteed to its records.
    """
    scenario, manifest = run.scenario, run.manifest
    rounds = run.table("rounds")
    rounds = rounds[rounds["game"] == game]
    model = scenario.model.name
    about = released.folder_of(run, game) / "about.json"
    final = run.final_rounds()
    final = final[final["game"] == game]
    of_party = dict(zip(final["party"], final["accuracy"], strict=True))
    accuracy = _known(of_party["all"])
    if scenario.release.kind != "final":
        accuracy = read_json(about)["accuracy"]
    return {
        "name": scenario.name,
        "release": scenario.release.kind,
        "data": sorted(manifest["data_sha256"]) if scenario.data.name is None else [scenario.data.name],
        "record": manifest["record"],
        "model": "custom" if ":" in model else model,
        "rounds": int(rounds["round"].max()),
        "accuracy": accuracy,
        "parties": [
            _party(run, rounds, name) | {"accuracy": _known(of_party[name])} for name in manifest["parties"]
        ],
        "created": manifest["created"],
        "fedsim": manifest["versions"]["fedsim"],
    }


def _party(run: RunDirectory, rounds: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return a party's guarantee, over all rounds.

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
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
