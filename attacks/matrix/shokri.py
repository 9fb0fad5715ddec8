"""Shadow attack classifiers (Shokri et al. 2017): one per class tells members' answers from non-members'.

The shadows are the training data: each gives a model's answer on every record, and whether it was a member.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix.quantile import sampled_pairs
from attacks.matrix.signal_matrix import SignalMatrix


@attack(
    "shokri",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Shokri et al. 2017",
    compares_with=("whole",),
    inside=True,
)
def score(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the attack classifier's log-odds of membership at w_T, (n,) float64.

    0 for a class of which the shadows hold members only or non-members only, and where the target's answer is
    not finite. At most `quantile.MAX_ROWS` pairs of a shadow and a record are learnt from.
    """
    n = len(matrix.labels)
    usable = np.isfinite(matrix.shadows[:, -1])
    if matrix.shadow_logits is not None:
        usable = usable & np.isfinite(matrix.shadow_logits).all(axis=2)
    shadow, record = sampled_pairs(usable, rng)
    inputs, member = _shadow_answers(matrix, shadow, record), matrix.member[shadow, record]
    targets = answers(matrix.target[-1], matrix.target_logits, matrix.labels)
    finite, scores = np.isfinite(targets).all(axis=1), np.zeros(n)
    for y in np.unique(matrix.labels):
        pairs_here, targets_here = matrix.labels[record] == y, finite & (matrix.labels == y)
        if targets_here.any() and len(np.unique(member[pairs_here])) == 2:
            scores[targets_here] = (
                classifier()
                .fit(inputs[pairs_here], member[pairs_here])
                .decision_function(targets[targets_here])
            )
    return scores


def classifier() -> Any:
    """Return the unfitted attack classifier: logistic regression on splines of every input.

    Non-members' answers lie on both sides of members', which a straight line cannot tell; and the scores are
    as continuous as φ, where trees would tie records at the low false-positive rates that matter.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer, StandardScaler

    splines = SplineTransformer(n_knots=5, knots="quantile", extrapolation="linear")
    return make_pipeline(splines, StandardScaler(), LogisticRegression(max_iter=500))


def answers(phi: np.ndarray, logits: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Return what the classifier sees of m answers: φ, then log p of the other classes, the largest first.

    phi: (m,); logits: (m, C) or None; labels: (m,). Returns (m, C) float64; (m, 1), of φ alone, where
    there are no logits or two classes, of which φ tells everything.
    """
    phi = phi.astype(np.float64)[:, None]
    if logits is None or logits.shape[1] == 2:
        return phi
    from scipy.special import log_softmax

    log_p = log_softmax(logits.astype(np.float64), axis=1)
    log_p[np.arange(len(labels)), labels] = -np.inf
    others = -np.sort(-log_p, axis=1)[:, :-1]  # the label's own is the last one
    return np.hstack([phi, others])


def _shadow_answers(matrix: SignalMatrix, shadow: np.ndarray, record: np.ndarray) -> np.ndarray:
    logits = None if matrix.shadow_logits is None else matrix.shadow_logits[shadow, record]
    return answers(matrix.shadows[shadow, -1, record], logits, matrix.labels[record])
