"""Rényi DP of the Poisson-subsampled Gaussian (Mironov 2017; Mironov, Talwar & Zhang 2019), as in Opacus.

Fast, and some 8 % above the exact ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedsim.core.privacy.opacus_parts import accounting

Entry = tuple[float, float, int]  # noise multiplier σ, sample rate q, steps
"""A number of equal steps of DP-SGD."""

# Opacus' orders, and larger ones, without which RDP's ε never falls below 0.1 at δ = 1e-5.
ORDERS = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024),
)


def rdp_epsilon(entries: Sequence[Entry], delta: float) -> float:
    """Return min over orders α of the conversion of Balle et al. 2020 (arXiv:1905.09982), theorem 21."""
    orders = np.asarray(ORDERS)
    total = sum(steps * rdp_of_one_step(noise, rate) for noise, rate, steps in entries)
    epsilon = total - np.log(delta * orders) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(np.nan_to_num(epsilon, nan=np.inf, posinf=np.inf).min()))


@lru_cache(maxsize=256)
def rdp_of_one_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Return the Rényi divergence of one step at every order; it adds up over steps."""
    compute = accounting("rdp").compute_rdp
    found = compute(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS)
    return np.asarray(found, float)
