"""Privacy random variables composed by FFT (Gopi, Lee & Wutschitz 2021), built from Opacus' parts.

Tight: the error bound that is asked for is included in the ε that is returned. Opacus' own accountant, and
dp_accounting's, start afresh for every query, which makes finding σ for a target ε ten times slower;
hence this solver.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.privacy.opacus_parts import accounting
from fedsim.core.privacy.rdp import Entry, rdp_epsilon

if TYPE_CHECKING:
    from opacus.accountants.analysis.prv import DiscretePRV, Domain

LARGEST_GRID = 2**21


def prv_epsilon(entries: tuple[Entry, ...], delta: float, error: float) -> float | None:
    """Return the upper bound on ε of Gopi et al. 2021, algorithm 1, or None where it cannot be had.

    Opacus starts afresh for every query. Here the grid is the one for the next power of two of the
    steps, finer and wider than asked for and so as safe: 50 rounds need a handful of discretisations. Its
    size is a power of two, which is what an FFT likes.
    """
    horizon = tuple((noise, rate, 2 ** math.ceil(math.log2(steps))) for noise, rate, steps in entries)
    size, mesh = _prv_grid(horizon, delta, error)
    if size > LARGEST_GRID:
        return None
    try:
        with np.errstate(all="ignore"):  # overflow far out on the grid; what matters of it is checked below
            composed = _compose(entries, size, mesh)
            upper = composed.compute_epsilon(delta, delta / 1000, error)[2]
    except (RuntimeError, ValueError):
        return None
    return max(0.0, float(upper)) if math.isfinite(upper) else None


def _compose(entries: tuple[Entry, ...], size: int, mesh: float) -> DiscretePRV:
    """Return the privacy loss of all entries together: the convolution of its steps' privacy losses."""
    from scipy.fft import irfft

    spectrum, shift = np.ones(1), 0.0
    for noise, rate, steps in entries:
        transform, mean_shift = _prv_transform(noise, rate, size, mesh)
        spectrum = spectrum * _power(transform, steps)
        shift += steps * mean_shift
    # The sum of k grid indices, each relative to the grid's zero, is off by k − 1 times the zero's index.
    repeats = sum(steps for _, _, steps in entries)
    density = np.roll(irfft(spectrum, size), -(repeats - 1) * _zero_index(size) % size)
    return accounting("prv").DiscretePRV(density, _prv_domain(size, mesh).shift_right(shift))


def _power(base: np.ndarray, exponent: int) -> np.ndarray:
    """Return ``base ** exponent``, exponent ≥ 1, by squaring: NumPy's complex power is many times slower."""
    if exponent == 1:
        return base
    half = _power(base, exponent // 2)
    square = half * half
    return square * base if exponent % 2 else square


@lru_cache(maxsize=256)
def _prv_grid(entries: tuple[Entry, ...], delta: float, error: float) -> tuple[int, float]:
    """Return (number of points, mesh) of the privacy loss's grid: Gopi et al. 2021, remark 5.6."""
    delta_error = delta / 1000
    total = sum(steps for _, _, steps in entries)
    single = [rdp_epsilon([(noise, rate, 1)], delta_error / (8 * total)) for noise, rate, _ in entries]
    reach = max(rdp_epsilon(entries, delta_error / 4), *single, error) + 3
    mesh = error / math.sqrt(total * math.log(12 / delta_error) / 2)
    return (2 ** math.ceil(math.log2(2 * reach / mesh + 2)), mesh) if reach < 1e6 else (2**63, mesh)


def _zero_index(size: int) -> int:
    return size // 2 - 1


def _prv_domain(size: int, mesh: float) -> Domain:
    return accounting("prv").Domain(-_zero_index(size) * mesh, (_zero_index(size) + 1) * mesh, size)


@lru_cache(maxsize=16)
def _prv_transform(noise: float, rate: float, size: int, mesh: float) -> tuple[np.ndarray, float]:
    """Return (Fourier transform of one step's discretised privacy loss, shift that keeps its mean)."""
    from scipy.fft import rfft

    prv = accounting("prv")
    domain = _prv_domain(size, mesh)
    loss = prv.PoissonSubsampledGaussianPRV(rate, noise)
    discrete = prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
    return rfft(discrete.pmf), float(discrete.domain.shifts)
