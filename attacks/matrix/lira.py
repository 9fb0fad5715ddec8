"""Likelihood-ratio attacks on signals from shadow federations (Carlini et al. 2022, 'LiRA').

A record's scaled logit φ is modelled as Gaussian, with one mean in the shadows that trained on the record and
another in those that did not; the score is how much better the first explains the target's φ. A shadow in
which a record's φ is not finite does not count for that record. A record about which nothing can be
said (in every shadow or in none, or the target's φ not finite) scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix.signal_matrix import SignalMatrix

# With fewer shadows on a side (twice as many in all), the paper finds one variance for all records better.
FEW_SHADOWS = 32
# A record's variance counts as at least this share of the pooled one: no saturated φ is infinitely certain.
VARIANCE_FLOOR = 1e-4
SMALLEST_VARIANCE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Fit:
    """Gaussian statistics of n records over those shadows that were kept for each.

    count: (n,) float64, shadows kept; mean: (n, R) float64, 0 where there were none
    scatter: (n, R, R) float64, sums of products of deviations from the mean
    """

    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def pooled(self) -> np.ndarray:
        """(R, R), covariance shared by all records: unbiased, so that few and many shadows compare."""
        freedom = np.maximum(self.count - 1, 0).sum()
        return self.scatter.sum(axis=0) / freedom if freedom else np.eye(self.mean.shape[1])


def fit_sides(matrix: SignalMatrix, rounds: slice | np.ndarray) -> tuple[Fit, Fit]:
    """Fit φ at these rounds (indices) over the shadows that trained on the record, then over the others.

    A shadow counts for a record where its φ is finite at all these rounds.
    """
    shadows, member = matrix.shadows, matrix.member
    numbers = len(matrix) * shadows[0, rounds].shape[0]
    parts = [
        _fit_block(shadows[:, rounds, block], member[:, block]) for block in blocks(member.shape[1], numbers)
    ]
    inside, outside = zip(*parts, strict=True)
    return _joined(inside), _joined(outside)


def _fit_block(values: np.ndarray, member: np.ndarray) -> tuple[Fit, Fit]:
    """Fit a block of b records, (S, R, b); the sums outside are what the sums inside leave of those of all.

    Centring every record on its mean over all shadows keeps these differences exact enough.
    """
    x = values.transpose(2, 1, 0).astype(np.float64, order="C")  # (b, R, S)
    used = np.isfinite(x).all(axis=1, keepdims=True)
    x = np.where(used, x, 0.0)
    centre = x.sum(axis=2) / np.maximum(used.sum(axis=2), 1)
    x = np.where(used, x - centre[:, :, None], 0.0)
    inside = used & member.T[:, None]
    of_members = x * inside
    count, counts = inside.sum(axis=(1, 2)), used.sum(axis=(1, 2))
    total, totals = of_members.sum(axis=2), x.sum(axis=2)
    square, squares = of_members @ x.transpose(0, 2, 1), x @ x.transpose(0, 2, 1)
    return (
        _from_sums(count, total, square, centre),
        _from_sums(counts - count, totals - total, squares - square, centre),
    )


def _from_sums(count: np.ndarray, total: np.ndarray, square: np.ndarray, centre: np.ndarray) -> Fit:
    mean = total / np.maximum(count, 1)[:, None]
    scatter = square - total[:, :, None] * mean[:, None, :]
    return Fit(count.astype(np.float64), np.where(count[:, None] > 0, centre + mean, 0.0), scatter)


def _joined(parts: Sequence[Fit]) -> Fit:
    return Fit(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Fit)))


def blocks(records: int, numbers: int) -> Iterator[slice]:
    """Yield slices of the records, each of about 2 MiB in float64 where a record has so many ``numbers``."""
    size = max(1, 2**18 // max(1, numbers))
    return (slice(start, start + size) for start in range(0, records, size))


@attack(
    "lira",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Carlini et al. 2022",
    reads="any",
    compares_with=("whole",),
    inside=True,
    by_round=True,
)
def online(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²) at w_T, (n,) float64 (Algorithm 1 of the paper).

    The variances of a side are the records' own where it has `FEW_SHADOWS` shadows a record, else one pooled.
    """
    return _online(matrix, few=FEW_SHADOWS)


@attack(
    "lira-fixed",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Carlini et al. 2022",
    reads="any",
    compares_with=("whole",),
    inside=True,
)
def online_fixed(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the same with one variance per side for all records, (n,) float64: steadier with few shadows."""
    return _online(matrix, few=np.inf)


def _online(matrix: SignalMatrix, few: float) -> np.ndarray:
    inside, outside = fit_sides(matrix, slice(-1, None))
    phi = matrix.target[-1].astype(np.float64)
    known = np.isfinite(phi) & (inside.count > 0) & (outside.count > 0)
    with np.errstate(invalid="ignore"):
        ratio = _log_density(phi, inside, few) - _log_density(phi, outside, few)
    return np.where(known, ratio, 0.0)


@attack(
    "lira-offline",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Carlini et al. 2022",
    reads="any",
    compares_with=("whole",),
)
def offline(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return (φ − μ_out)/σ_out at w_T, (n,) float64 (the offline attack of the paper).

    The paper's score is Φ of it: the same order, but rounded to 1 beyond 8 standard deviations.
    """
    outside = fit_sides(matrix, slice(-1, None))[1]
    phi = matrix.target[-1].astype(np.float64)
    known = np.isfinite(phi) & (outside.count > 0)
    with np.errstate(invalid="ignore"):
        z = (phi - outside.mean[:, 0]) / np.sqrt(_variance(outside, FEW_SHADOWS))
    return np.where(known, z, 0.0)


PER_RECORD_RATE = 0.01
"""Chance at which `per_record` calls a record a member that is none, of every record by itself."""


@attack(
    "lira-per-record",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS + "; a record's φ is Gaussian where it is no member",
    source="Carlini et al. 2022, offline; Student 1908",
    reads="any",
    compares_with=("whole",),
    threshold=-math.log10(PER_RECORD_RATE),
)
def per_record(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return −log₁₀ p of every record's own test of 'no member', (n,) float64; it says 'member' at p ≤ .01.

    A false-positive rate over all records may be that of a few of them. Here every record is judged by the
    shadows that did not train on it alone: (φ − μ_out) / (σ_out √(1 + 1/n_out)) has Student's t distribution
    at n_out − 1 degrees of freedom where it is no member (prediction of one more of n Gaussian values). The
    realised rate over all records beside it says how far this holds. Fewer than 3 such shadows say nothing.
    """
    from scipy.stats import t

    outside = fit_sides(matrix, slice(-1, None))[1]
    phi, count = matrix.target[-1].astype(np.float64), outside.count
    known = np.isfinite(phi) & (count >= 3)
    freedom = np.maximum(count - 1, 1)
    floor = max(VARIANCE_FLOOR * float(outside.pooled[0, 0]), SMALLEST_VARIANCE)
    variance = np.maximum(outside.scatter[:, 0, 0] / freedom, floor) * (1 + 1 / np.maximum(count, 1))
    with np.errstate(invalid="ignore"):
        standardised = (phi - outside.mean[:, 0]) / np.sqrt(variance)
    return np.where(known, -t.logsf(standardised, freedom) / math.log(10), 0.0)


def _log_density(phi: np.ndarray, side: Fit, few: float) -> np.ndarray:
    """Log N(φ; μ, σ²) up to the constant that both sides share, (n,)."""
    variance = _variance(side, few)
    return -0.5 * ((phi - side.mean[:, 0]) ** 2 / variance + np.log(variance))


def _variance(side: Fit, few: float) -> np.ndarray:
    """Variances (n,), all above 0: maximum likelihood per record, or one pooled where shadows are ``few``."""
    pooled = max(float(side.pooled[0, 0]), SMALLEST_VARIANCE)
    if np.median(side.count) < few:
        return np.full(len(side.count), pooled)
    own = side.scatter[:, 0, 0] / np.maximum(side.count, 1)
    own = np.where(side.count < FEW_SHADOWS / 2, pooled, own)
    return np.maximum(own, VARIANCE_FLOOR * pooled)
