"""Early stopping of the whole federation, and which round's model is its result.

After every round a loss is looked at: of the parties' held-out records, as they report it, or of public
ones, which the server measures by itself. When it has not been below its lowest for ``federation.patience``
rounds in a row, training ends, and the model of the lowest loss (of equals the first) is what is released
(Prechelt 1998). What decides stands in ``rounds.parquet``: an interrupted run that goes on decides alike.

Every participant has been sent the later models as well: stopping takes nothing back from what it saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord

from clients import messages
from fedsim.core.data.store import read_public
from fedsim.core.models import zoo
from fedsim.core.models.weights import load_weights
from fedsim.core.run_directory import PUBLIC_FOLDER
from fedsim.core.training import metrics
from fedsim.server.federation import Federation

LOSS = {"held-out": "loss", "public": "public_loss"}
"""The column of ``rounds.parquet`` that decides, in the rows of 'all'."""


def public_loss(federation: Federation, weights: ArrayRecord) -> float:
    """Return the mean cross-entropy (nats) of a global model on the public records."""
    run, scenario = federation.run, federation.scenario
    manifest = run.manifest
    module = zoo.build(scenario.model, tuple(manifest["input_shape"]), len(manifest["classes"]))
    load_weights(module, messages.to_numpy(weights))
    records = read_public(run.path / PUBLIC_FOLDER)
    return metrics.mean_loss(metrics.logits(module, records, device=scenario.device), records.labels)


def looks_at_public(federation: Federation) -> bool:
    """Whether the server measures the loss on public records after every round."""
    settings = federation.scenario.federation
    return settings.patience is not None and settings.stop_on == "public"


def is_over(federation: Federation) -> bool:
    """Whether the rounds so far have used up ``federation.patience``."""
    patience, losses = federation.scenario.federation.patience, _losses(federation)
    return patience is not None and bool(losses) and len(losses) - best_round(losses) >= patience


def note_released(federation: Federation) -> None:
    """Note in the manifest which round's model is the result, where the federation may stop early."""
    losses = _losses(federation)
    if federation.scenario.federation.patience is None or not losses:
        return
    released = federation.run.manifest.get("released", {})
    federation.run.update_manifest(released={**released, str(federation.game): best_round(losses)})


def best_round(losses: Sequence[float]) -> int:
    """Return the round t ≥ 1 of the lowest of the losses of rounds 1, 2, …, of equals the first.

    A loss that is no number is never the lowest; where none is a number it is the last round.

    >>> best_round([0.7, 0.5, 0.5, 0.6])
    2
    """
    known = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return int(np.argmin(known)) + 1 if min(known) < math.inf else len(known)


def _losses(federation: Federation) -> list[float]:
    """Return the loss that decides after rounds 1, 2, …."""
    column = LOSS[federation.scenario.federation.stop_on]
    rows = [row for row in federation.rows if row["party"] == "all" and row["round"] > 0]
    return [float(row[column]) for row in sorted(rows, key=lambda row: row["round"])]
