"""Property inference: the share of a group among a party's records, from its updates (Ateniese et al. 2015).

A party that trains from w_{t−1} moves the model, to first order, along the mean gradient of its records. With
ḡ_k the mean gradient of the adversary's own records of group k and label y, that is −Δ ∝ Σ_ky π_ky ḡ_ky, so
that the shares π are the non-negative weights which explain the updates of all rounds best (ours; in the
spirit of Melis et al. 2019, who train a classifier on updates instead). The baseline is the share among the
adversary's own records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from attacks.counts.members import DRAWS, Count
from attacks.declaration import EVERY_MODEL
from attacks.further import further
from attacks.membership.update_regression import gradient_gram
from attacks.signals import gradients
from attacks.views.settings import Weights
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

PULL = 0.05
"""Weight of the baseline: how strongly shares are held to those of the adversary's own records."""

Step = tuple["torch.nn.Module", Weights]
"""The model w_{t−1} and the update made from it."""


@further(
    "count --column",
    "group shares",
    infers="the share of a group at a party, or at all others",
    observers=("participant", "server"),
    sees=EVERY_MODEL,
    assumes="an update is made of mean gradients of groups as they are in its own records",
    baseline="the share among its own records",
    source="ours, after Ateniese et al. 2015",
)
def shares(
    steps: Sequence[Step], owned: Records, group: np.ndarray, groups: int, rng: np.random.Generator
) -> list[Count]:
    """Return the share of each group at whoever made the updates, with a 95 % bootstrap interval, in [0, 1].

    group: (n,) int, the group of each of the adversary's own records, −1 where it has none; these are left
    out. Only the own records are resampled, within their cells: what the updates hide of one another is not.
    """
    known = group >= 0
    records, group = owned.take(known), group[known]
    cell = group * (int(records.labels.max(initial=0)) + 1) + records.labels
    cells, cell = np.unique(cell, return_inverse=True)
    group_of = np.array([group[cell == k][0] for k in range(len(cells))])
    grams, products = _measured(steps, records)
    members = [np.flatnonzero(cell == k) for k in range(len(cells))]
    estimate = _solved(grams, products, members, group_of, groups)
    drawn = [
        _solved(grams, products, [rng.choice(rows, len(rows)) for rows in members], group_of, groups)
        for _ in range(DRAWS // 4)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [Count(v, min(a, v), max(b, v)) for v, a, b in zip(estimate, low, high, strict=True)]


def baseline(group: np.ndarray, groups: int) -> np.ndarray:
    """Return the shares of the groups among the adversary's own records, (groups,)."""
    counts = np.bincount(group[group >= 0], minlength=groups)
    return np.asarray(counts / max(counts.sum(), 1))


def _measured(steps: Sequence[Step], records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Return ⟨g_i, g_j⟩ and −⟨g_i, Δ⟩ of each round, (T, n, n) and (T, n), scaled so that all count alike."""
    grams, products = [], []
    for module, update in steps:
        gram = gradient_gram(module, records)
        along, _ = gradients.gradient_products(module, records, update)
        scale = gram.mean()
        if np.isfinite(scale) and scale > 0:
            grams.append(gram / scale)
            products.append(-along / scale)
    n = len(records)
    return np.array(grams).reshape(-1, n, n), np.array(products).reshape(-1, n)


def _solved(
    grams: np.ndarray,
    products: np.ndarray,
    members: Sequence[np.ndarray],
    group_of: np.ndarray,
    groups: int,
) -> np.ndarray:
    """Return the shares of the groups, (groups,), from the cells' mean gradients."""
    from scipy.optimize import nnls

    sizes = np.array([len(rows) for rows in members], dtype=float)
    usual = sizes / sizes.sum()
    total, target = np.zeros((len(sizes), len(sizes))), np.zeros(len(sizes))
    for gram, product in zip(grams, products, strict=True):
        mean_gram = np.array([[gram[np.ix_(a, b)].mean() for b in members] for a in members])
        mean_product = np.array([product[rows].mean() for rows in members])
        # The length of the step is not known: the usual shares, scaled to explain it best, set the unit.
        length = float(usual @ mean_product) / max(float(usual @ mean_gram @ usual), 1e-30)
        if length > 0:
            total += mean_gram
            target += mean_product / length
    if not total.any():  # no update tells anything
        return np.bincount(group_of, weights=usual, minlength=groups)
    pull = PULL * np.trace(total) / len(sizes)
    root = np.linalg.cholesky(total + pull * np.eye(len(sizes)))
    weights, _ = nnls(root.T, np.linalg.solve(root, target + pull * usual))
    share = np.bincount(group_of, weights=weights, minlength=groups)
    return np.asarray(share / share.sum())
