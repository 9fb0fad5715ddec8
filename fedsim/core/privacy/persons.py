"""What DP-SGD whose unit is a record promises a person with k records in one party's training data.

With Poisson sampling a step's batch holds J ~ Bin(k, q) of her records, so that her presence moves the sum by
at most J C: neighbours are told apart no better than Σ_j P(J = j) N(j, σ²) from N(0, σ²), in units of C (the
'mixture of Gaussians' of Ganesh 2024, arXiv:2401.10294, theorem 1.2; Charles et al. 2024, arXiv:2407.07737).
Composed by Rényi DP, whose one-dimensional integrals are summed on a grid. The lemma of group privacy, (kε, δ
(e^kε − 1)/(e^ε − 1)) (Dwork & Roth 2014, theorem 2.2), is much larger. A guarantee whose unit is the person
(`DPSettings.unit`) holds for any k as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedsim.core.privacy.rdp import ORDERS, Entry

REACH, STEP = 16.0, 0.05
"""How far beyond the outermost mode a grid goes, and its spacing, in σ."""

LARGEST_ORDER = 256


def person_epsilon(entries: Sequence[Entry], delta: float, records: int) -> float:
    """Return ε at ``delta`` for a person with ``records`` = k ≥ 1 records, of all entries of a ledger.

    Formal guarantee:
        What the ledger's steps released together is (ε, δ)-DP for all of one person's records added or taken
        away, if she has at most k and each step drew records by Poisson sampling. Adaptive clipping
        (`core.training.dp.AdaptiveNorm`) is covered: of a step's gradients and count together, too, a record
        moves one Gaussian by at most 1 in units of σ.
    """
    orders = np.array(_orders())
    total = sum(steps * _divergence(noise, rate, records) for noise, rate, steps in entries)
    with np.errstate(invalid="ignore"):
        epsilon = total - np.log(delta * orders) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(np.nan_to_num(epsilon, nan=np.inf, posinf=np.inf).min()))


def _orders() -> tuple[float, ...]:
    return tuple(order for order in ORDERS if order <= LARGEST_ORDER)


@lru_cache(maxsize=256)
def _divergence(noise_multiplier: float, rate: float, records: int) -> np.ndarray:
    """Return the Rényi divergence of one step at every order, the larger of adding and taking away."""
    from scipy.stats import binom

    if noise_multiplier == 0:
        return np.full(len(_orders()), np.inf)
    shares = binom.pmf(np.arange(records + 1), records, rate)
    return np.array([_of_order(order, noise_multiplier, shares) for order in _orders()])


def _of_order(order: float, sigma: float, shares: np.ndarray) -> float:
    """Return max(D_α(P‖Q), D_α(Q‖P)) of P = Σ_j shares_j N(j, σ²) and Q = N(0, σ²)."""
    from scipy.special import logsumexp

    def log_densities(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centres = np.arange(len(shares))[:, None]
        with np.errstate(divide="ignore"):
            mixture = logsumexp(np.log(shares)[:, None] - (x - centres) ** 2 / (2 * sigma**2), axis=0)
        constant = np.log(sigma * np.sqrt(2 * np.pi))
        return mixture - constant, -(x**2) / (2 * sigma**2) - constant

    step = STEP * sigma
    # Of ∫ P^α Q^(1−α) the mode may lie as far out as α times the largest centre.
    above = np.arange(-REACH * sigma, order * (len(shares) - 1) + REACH * sigma, step)
    p, q = log_densities(above)
    added = logsumexp(order * p + (1 - order) * q) + np.log(step)
    around = np.arange(-order * (len(shares) - 1) - REACH * sigma, len(shares) - 1 + REACH * sigma, step)
    p, q = log_densities(around)
    removed = logsumexp(order * q + (1 - order) * p) + np.log(step)
    return max(0.0, float(max(added, removed)) / (order - 1))
