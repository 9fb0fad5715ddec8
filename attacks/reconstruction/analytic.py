"""What an update tells by arithmetic alone: rows from the first linear layer, labels from the last.

In a layer y = W x + b the gradient of unit i is (Σ_k δ_ik x_k, Σ_k δ_ik), so that the quotient of its two
parts is the record itself in a batch of one, and in a larger one a mean of those that the unit responds to,
weighted by their δ (Phong et al. 2018; Geiping et al. 2020, proposition 3.1).
"""

from __future__ import annotations

import numpy as np

from attacks.reconstruction.rows import Rows

SAME = 1e-3
"""Two quotients this near in every feature are one record, seen by two units."""


def first_layer(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the quotients of all units that the update moves, (u, d) float64.

    weight: (h, d) and bias: (h,), the first linear layer's gradient or update
    """
    largest = np.abs(bias).max(initial=0.0)
    moved = np.abs(bias) > 1e-6 * largest
    return np.asarray(weight[moved].astype(np.float64) / bias[moved, None].astype(np.float64))


def likely_rows(quotients: np.ndarray, rows: Rows, n: int) -> np.ndarray:
    """Return at most ``n`` different quotients that could be records, the likeliest first, (m, d).

    A quotient that several units agree on is a record, since a mean would differ from unit to unit; then
    those nearest to a whole row come first.
    """
    order = np.lexsort([rows.defect(quotients), -_agreeing(quotients)])
    chosen: list[int] = []
    for i in order:
        distances = np.abs(quotients[chosen] - quotients[i]).max(axis=1) if chosen else np.full(1, np.inf)
        if distances.min() > SAME and len(chosen) < n:
            chosen.append(int(i))
    return quotients[chosen]


def _agreeing(quotients: np.ndarray) -> np.ndarray:
    """Return how many quotients are the same as each, itself included, (u,) int."""
    return np.array(
        [int((np.abs(quotients - row).max(axis=1) <= SAME).sum()) for row in quotients], dtype=int
    )


def label_counts(bias_gradient: np.ndarray, mean_probability: np.ndarray, n: int) -> np.ndarray:
    """Return how many of a batch of ``n`` have each label, (C,) int64, summing to n.

    The last layer's bias has the gradient mean_i p_ic − n_c/n (Yin et al. 2021 and Wainakh et al. 2022 use
    the same identity on the weights); rounded by largest remainders.

    bias_gradient: (C,), of the mean loss; mean_probability: (C,), the model's mean output, which is
    estimated on records like those of the batch
    """
    wanted = np.maximum(n * (mean_probability - bias_gradient), 0)
    wanted = wanted * n / wanted.sum() if wanted.sum() > 0 else np.full(len(wanted), n / len(wanted))
    counts = np.floor(wanted).astype(np.int64)
    rest = np.argsort(-(wanted - counts), kind="stable")[: n - counts.sum()]
    counts[rest] += 1
    return counts
