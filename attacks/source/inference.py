"""Source inference (Hu et al. 2021): which party holds the record? A score for each candidate and party.

server        argmin_k ℓ(w^k_t; z): the party whose own answer fits the record best
participant   one hypothesis per party and one for 'none', each with its own Gaussian from shadow federations
coalition     the same, on shadows in which every one of its members' records is fixed

A participant sees parties only through their sum. Where shadows show no difference between a record in one
party and the same record in another, the hypotheses coincide and every party gets the same score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, EVERY_UPDATE, FINAL_MODEL, FITTED, PULLED, attack
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.membership.server import Measurements, last, over_rounds

NONE = -1
"""Where a record is that no party holds."""


@attack(
    "source-shadows",
    infers="source",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="ours: Hu et al. 2021 on shadows",
    compares_with=("whole",),
    inside=True,
)
def source_shadows(matrix: SignalMatrix, victims: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the posterior of 'in victim k', (columns, V) float64; see `from_shadows`."""
    return from_shadows(matrix, victims)[:, :-1]


_HU = "Hu et al. 2021"


@attack(
    "source-loss",
    observers=("server",),
    infers="source",
    sees=EVERY_UPDATE,
    assumes=FITTED,
    source=_HU,
    isolates=True,
    reads="any",
)
def source_loss(seen: Measurements, victims: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return −ℓ of each victim's last answer, as φ, (n, V) float64 (Hu et al. 2021, equation 9).

    As in the rules below, a party that never answered gets −∞.
    """
    return _columns(last(seen.phi), seen.parties, victims)


@attack(
    "source-loss-series",
    observers=("server",),
    infers="source",
    sees=EVERY_UPDATE,
    assumes=FITTED,
    source=_HU,
    isolates=True,
    reads="any",
)
def source_loss_series(seen: Measurements, victims: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of −ℓ of each victim's answers, (n, V) float64."""
    return _columns(over_rounds(-seen.loss), seen.parties, victims)


@attack(
    "source-update-cosine",
    observers=("server",),
    infers="source",
    sees=EVERY_UPDATE,
    assumes=PULLED,
    source="Li et al. 2023",
    isolates=True,
)
def source_update_cosine(seen: Measurements, victims: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over rounds of cos(−∇ℓ(w_{t−1}; z), w^k_t − w_{t−1}), (n, V) float64."""
    return _columns(over_rounds(seen.cosine), seen.parties, victims)


@attack(
    "source-update-regression",
    observers=("server",),
    infers="source",
    sees=EVERY_UPDATE,
    assumes=PULLED,
    source="ours: all candidates decoded together",
    isolates=True,
)
def source_update_regression(seen: Measurements, victims: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the record's part in each victim's updates, (n, V) float64 (`update_regression`)."""
    return _columns(seen.part, seen.parties, victims)


def _columns(values: np.ndarray, parties: np.ndarray, victims: np.ndarray) -> np.ndarray:
    """Return (K, n) values of ``parties`` as (n, V), a column per victim."""
    row = {int(k): values[place] for place, k in enumerate(parties)}
    never = np.full(values.shape[1], -np.inf)
    table = np.stack([row.get(int(k), never) for k in victims], axis=1)
    return np.where(np.isnan(table), -np.inf, table)


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """What shadows say about n records under V + 1 hypotheses: in victim 1 … V, in none.

    count: (n, V + 1) shadows; mean: (n, V + 1) of φ, 0 where there were none
    variance: (n,) of φ within the hypotheses, pooled over them
    """

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def hypotheses(matrix: SignalMatrix, victims: np.ndarray) -> Hypotheses:
    """Return the statistics of φ at w_T over the shadows in which each hypothesis holds."""
    phi = matrix.shadows[:, -1].astype(np.float64)
    known = np.isfinite(phi)
    phi = np.where(known, phi, 0.0)
    sides = [known & (matrix.inside == k) for k in (*victims, NONE)]
    count = np.stack([side.sum(axis=0) for side in sides], axis=1).astype(np.float64)
    total = np.stack([np.where(side, phi, 0.0).sum(axis=0) for side in sides], axis=1)
    mean = total / np.maximum(count, 1)
    scatter = sum(np.where(side, (phi - mean[:, h]) ** 2, 0.0).sum(axis=0) for h, side in enumerate(sides))
    freedom = np.maximum(count - 1, 0).sum(axis=1)
    pooled = float(np.sum(scatter) / max(freedom.sum(), 1))
    variance = np.maximum(scatter / np.maximum(freedom, 1), 1e-4 * pooled) + np.finfo(np.float32).tiny
    return Hypotheses(count, mean, variance)


def shrunk_means(shadows: Hypotheses) -> tuple[np.ndarray, np.ndarray]:
    """Return each victim's mean, (n, V), and its variance in units of the record's own, (n, V).

    In units of the record's standard deviation the mean in party k lies β_k + δ_ik from the mean in any:
    β_k is common to all records (a party that is larger, or noisier, than the others), δ_ik ~ N(0, τ²) is
    the record's own. τ² is the moment estimate of a one-way random-effects analysis of variance, 0 where the
    means differ by no more than their sampling error: then only β tells parties apart (empirical Bayes).
    """
    count, parties = shadows.count[:, :-1], shadows.count.shape[1] - 1
    n = np.maximum(count.sum(axis=1, keepdims=True), 1)
    centre = (count * shadows.mean[:, :-1]).sum(axis=1, keepdims=True) / n
    scale = np.sqrt(shadows.variance)[:, None]
    apart = np.where(count > 0, (shadows.mean[:, :-1] - centre) / scale, 0.0)
    common = (count * apart).sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    rest = np.where(count > 0, apart - common, 0.0)
    between = (count * rest**2).sum() - (np.maximum((count > 0).sum(axis=1) - 1, 0)).sum()
    tau2 = max(0.0, between / max(float((n - (count**2).sum(axis=1, keepdims=True) / n).sum()), 1.0))
    share = tau2 / (tau2 + 1 / np.maximum(count, 1)) if tau2 > 0 else np.zeros((len(count), parties))
    share = np.where(count > 0, share, 0.0)
    return centre + scale * (common + share * rest), tau2 * (1 - share)


def from_shadows(matrix: SignalMatrix, victims: np.ndarray) -> np.ndarray:
    """Return the posterior of 'in victim k' and of 'in none', (n, V + 1) float64, rows of sum 1.

    Likelihoods are Gaussian with the record's variance pooled over hypotheses; the prior is how often each
    hypothesis held in the shadows, the same for all victims. A record of which the target's φ is not finite,
    or that was in no shadow, keeps the prior.
    """
    shadows = hypotheses(matrix, victims)
    means, extra = shrunk_means(shadows)
    means = np.concatenate([means, shadows.mean[:, -1:]], axis=1)
    spread = shadows.variance[:, None] * (1 + np.concatenate([extra, np.zeros((len(means), 1))], axis=1))
    phi = matrix.target[-1].astype(np.float64)
    informed = np.isfinite(phi) & (shadows.count[:, :-1].sum(axis=1) > 0) & (shadows.count[:, -1] > 0)
    distance = np.where(informed[:, None], np.where(informed, phi, 0.0)[:, None] - means, 0.0)
    log_likelihood = np.where(informed[:, None], -0.5 * (distance**2 / spread + np.log(spread)), 0.0)
    posterior = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True)) * _prior(shadows)
    return np.asarray(posterior / posterior.sum(axis=1, keepdims=True))


def _prior(shadows: Hypotheses) -> np.ndarray:
    """Return (n, V + 1): the victims share alike what is not 'none'."""
    total = np.maximum(shadows.count.sum(axis=1, keepdims=True), 1)
    none = np.clip(shadows.count[:, -1:] / total, 1 / (2 * total), 1 - 1 / (2 * total))
    victims = shadows.count.shape[1] - 1
    return np.concatenate([np.repeat((1 - none) / victims, victims, axis=1), none], axis=1)
