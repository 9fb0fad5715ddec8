"""Which record was a member of which shadow, and what can be said of scores of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

CHUNK = 2**21
"""Numbers worked on at a time."""
DRAWN_TOGETHER = -0.2
"""Neighbouring shadows whose memberships correlate below this are left out together."""


def decodable(member: np.ndarray) -> np.ndarray:
    """Return whether each record is in some shadows and not in all, (n,) bool, of who is where (S, n)."""
    return np.asarray(member.any(axis=0) & ~member.all(axis=0))


@dataclass(frozen=True, eq=False)
class Prediction:
    """Scores, higher = member, float32: (S, n) of every shadow by a fit without it, (T, n) of targets."""

    shadows: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, eq=False)
class Design:
    """Who was a member of which shadow, and which shadows have to be left out together.

    member: (S, n) bool. partner: (S,) int, the shadow drawn together with this one, itself if none: where
    one holds exactly what the other does not, a fit on the one has seen the other's mirror image.
    """

    member: np.ndarray
    partner: np.ndarray

    @staticmethod
    def of(member: np.ndarray) -> Design:
        """Return the design with neighbouring shadows paired where their memberships exclude each other."""
        # Inner products of neighbouring rows, (S − 1,), and of each with itself, (S,), chunk by chunk.
        likeness, squares = np.zeros(len(member) - 1), np.full(len(member), 1e-24)
        for block in chunks(member.shape[1], len(member)):
            sign = member[:, block] - member[:, block].mean(axis=0, dtype=np.float32)
            likeness += np.einsum("si,si->s", sign[1:], sign[:-1])
            squares += np.einsum("si,si->s", sign, sign)
        partner = np.arange(len(member))
        for s in np.flatnonzero(likeness < DRAWN_TOGETHER * np.sqrt(squares[1:] * squares[:-1])):
            if partner[s] == s:  # no shadow has two partners
                partner[s], partner[s + 1] = s + 1, s
        return Design(member, partner)

    def centred(self, records: slice | np.ndarray) -> np.ndarray:
        """Y (S, b) float32 of some records: memberships less each record's share of the shadows."""
        member = self.member[:, records]
        return np.asarray(member - member.mean(axis=0, dtype=np.float32))

    @cached_property
    def paired(self) -> np.ndarray:
        """(S,) bool, whether there is a partner."""
        return self.partner != np.arange(len(self.partner))

    def together(self, values: np.ndarray) -> np.ndarray:
        """Return each row of ``values`` (S, …) added to its partner's."""
        total = values.copy()
        total[self.paired] += values[self.partner[self.paired]]
        return total

    def likelihood_ratio(self, scores: Prediction) -> np.ndarray:
        """Return log N(s; μ_in, σ²) − log N(s; μ_out, σ²) of the targets' scores, (T, n) float64.

        μ_in − μ_out in units of σ is shrunk towards that of all records: what chance explains of its spread
        is no difference between records (empirical Bayes; Efron & Morris 1973). It is at least 0: no decoder
        has members score less, but predictions of nothing for left-out shadows err to that side.
        """
        moments = self._moments(scores)
        return moments.ratio(scores.targets, moments.common())

    def separation(self, scores: Prediction) -> float:
        """Return how far members' scores lie above the others', in standard deviations, mean over records."""
        return self._moments(scores).separation

    def _moments(self, scores: Prediction) -> Moments:
        blocks = chunks(self.member.shape[1], len(self.member))
        return _joined([Moments.of(scores.shadows[:, block], self.member[:, block]) for block in blocks])


@dataclass(frozen=True, eq=False)
class Moments:
    """The Gaussians of members and others of n records, (n,) each.

    middle: (μ_in + μ_out)/2; distance: (μ_in − μ_out)/σ, 0 where unknown; deviation: σ, 1 where unknown
    chance: the sampling variance of ``distance``; known: bool
    """

    middle: np.ndarray
    distance: np.ndarray
    deviation: np.ndarray
    chance: np.ndarray
    known: np.ndarray

    @staticmethod
    def of(scores: np.ndarray, member: np.ndarray) -> Moments:
        """Return the moments of ``scores`` (S, b); unknown where a side has fewer than two shadows."""
        x = scores.astype(np.float64)
        centre = x.mean(axis=0)
        x -= centre  # first, or the sums of squares below would cancel
        n, inside = member.sum(axis=0), np.einsum("si,si->i", x, member)
        m = len(x) - n  # (b,), as is everything below
        per_n, per_m = 1 / np.maximum(n, 1), 1 / np.maximum(m, 1)
        mean_in, mean_out = inside * per_n, (x.sum(axis=0) - inside) * per_m
        # Within sides: the whole sum of squares less that of the sides' means.
        scatter = np.einsum("si,si->i", x, x) - n * mean_in**2 - m * mean_out**2
        deviation = np.sqrt(np.maximum(scatter, 0.0) / np.maximum(n + m - 2, 1))
        known = (np.minimum(n, m) > 1) & (deviation > 1e-12)
        deviation = np.where(known, deviation, 1.0)
        distance = np.where(known, (mean_in - mean_out) / deviation, 0.0)
        return Moments(centre + (mean_in + mean_out) / 2, distance, deviation, per_n + per_m, known)

    @property
    def separation(self) -> float:
        """Mean distance over the records of which it is known."""
        return float(self.distance[self.known].mean()) if self.known.any() else 0.0

    def common(self) -> tuple[float, float]:
        """Return mean and variance of the true distances, by moments; no shrinkage for fewer than three."""
        if self.known.sum() < 3:
            return 0.0, np.inf
        noise = float(self.chance[self.known].mean())
        return self.separation, max(0.0, float(self.distance[self.known].var(ddof=1)) - noise)

    def ratio(self, scores: np.ndarray, common: tuple[float, float]) -> np.ndarray:
        """Return the log likelihood ratios of ``scores`` (T, n); distances shrink to the ``common`` one."""
        mean, true = common
        # (n,) in [0, 1]: how much of a record's own distance to believe, the less the fewer its shadows.
        share = 1.0 if np.isinf(true) else true / (true + self.chance)
        distance = np.maximum(mean + (self.distance - mean) * share, 0.0)
        return np.asarray(np.where(self.known, distance, 0.0) * (scores - self.middle) / self.deviation)


def _joined(parts: Sequence[Moments]) -> Moments:
    return Moments(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Moments)))


def chunks(columns: int, rows: int) -> Iterator[slice]:
    """Yield slices of the columns of a matrix with so many rows, `CHUNK` numbers in each."""
    size = max(1, CHUNK // max(1, rows))
    return (slice(start, min(start + size, columns)) for start in range(0, columns, size))


def empty_prediction(shadows: int, targets: int, records: int) -> Prediction:
    """Return scores of 0, to be filled in."""
    return Prediction(np.zeros((shadows, records), np.float32), np.zeros((targets, records), np.float32))
