"""Two attacks of one's own, named in `scenario.toml`; nothing of fedsim's own files is touched."""

from __future__ import annotations

import numpy as np

from attacks import attack
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records


def confidence_rise(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return how much surer the last model is than the first trained one, (n,): needs no declaration."""

    def surest(t: int) -> np.ndarray:
        logits = view.logits(t, candidates)
        return logits.max(axis=1) - np.log(np.exp(logits).sum(axis=1))

    return surest(view.final_round) - surest(view.trained_rounds[0])


@attack(
    "median-gap",
    sees="the final model",
    assumes="shadows repeat the federation",
    source="an example",
    compares_with=("whole",),
)
def median_gap(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return φ less its median over the shadows without the record, (columns,)."""
    outside = np.where(matrix.member, np.nan, matrix.shadows[:, -1])
    return matrix.target[-1] - np.nanmedian(outside, axis=0)
