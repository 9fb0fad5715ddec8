"""The same attack on the model of one round after the other: how leakage grows as training goes on.

An attack that reads one model can be asked of any w_t. One that reads the view is called on a view that kept
w_t alone; one that compares with shadow federations, on the signals up to each of the rounds at which these
were looked at, so that it costs no simulation of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from attacks.matrix.signal_matrix import SignalMatrix
from attacks.views.participant import ParticipantView
from attacks.views.rounds import over


def views(view: ParticipantView) -> Iterator[tuple[int, ParticipantView]]:
    """Yield t and the view of one who kept w_t of all trained models, for every round t ≥ 1."""
    for t in view.trained_rounds:
        yield t, over(view, [t])


def matrices(matrix: SignalMatrix) -> Iterator[tuple[int, SignalMatrix]]:
    """Yield t and the signals of rounds up to t, for every round t ≥ 1 of the matrix; w_T last.

    What a matrix has of w_T alone, outputs and weights, the earlier ones have not.
    """
    for i, t in enumerate(matrix.rounds.tolist()):
        if i + 1 == len(matrix.rounds):
            yield t, matrix
        elif t > 0:
            yield (
                t,
                replace(
                    matrix,
                    target=matrix.target[: i + 1],
                    shadows=matrix.shadows[:, : i + 1],
                    rounds=matrix.rounds[: i + 1],
                    target_logits=None,
                    shadow_logits=None,
                    target_weights=None,
                    shadow_weights=None,
                    early=None,
                ),
            )
