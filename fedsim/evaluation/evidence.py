"""'Was this record in the training set?': a likelihood ratio, a calibrated probability, and how often it
errs.

An attack's scores are turned into likelihood ratios on records of which the judge knows the side, each left
out of the fit that it is judged by (cross-fitting). Where these out-of-fold figures do not hold, nothing is
said.

Sources: Platt 1999 (logistic calibration); Cox 1958 (calibration slope); Spiegelhalter 1986 (test of
calibration); the forensic convention of likelihood ratios apart from the prior, Aitken & Taroni 2004, ch. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.evaluation.estimates import Estimate, auc, clopper_pearson, ppv

LEAST = 30
"""Members and non-members, of each, below which no calibration is tried."""

FOLDS = 10

SPEAKS = 3.0
"""Likelihood ratio, or its inverse, from which a side is named: below it the prior would be speaking
alone."""

SIGNIFICANCE = 0.01
"""Of the test that refuses a calibration."""


@dataclass(frozen=True)
class Calibration:
    """From scores to likelihood ratios, and whether they may be used.

    intercept, slope: ln LR = intercept + slope · z, z the normal quantile of the score's rank
    reference: (n,) sorted scores of the records whose side is known; members: (n,) bool, in that order
    ratios: (n,) out-of-fold likelihood ratios, in the same order
    largest: the ratio that so few records can show at most, in either direction
    refusal: why nothing may be said, '' where it may
    """

    intercept: float
    slope: float
    reference: np.ndarray
    members: np.ndarray
    ratios: np.ndarray
    largest: float
    refusal: str

    def ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return the likelihood ratios of records that are not among the reference, (k,)."""
        z = _quantiles(scores, self.reference)
        return _bounded(np.exp(self.intercept + self.slope * z), self.largest)


@dataclass(frozen=True)
class Statement:
    """What may be said of one record.

    ratio: P(score | member) / P(score | non-member); probability: at the prior
    right: of records with as large a ratio (or as small, where it is below 1), how often 'member' ('not a
    member') is right at the prior, with its 95 % interval; member: which of both is said; None: neither
    """

    ratio: float
    probability: float
    right: Estimate
    member: bool | None


def calibrate(scores: np.ndarray, member: np.ndarray, stream: np.random.Generator) -> Calibration:
    """Fit likelihood ratios to the scores of records whose side is known, and test them out of fold.

    scores: (n,) float64; member: (n,) bool
    """
    order = np.argsort(scores, kind="stable")
    scores, member = scores[order], member[order]
    n, m = int(member.sum()), int((~member).sum())
    largest = float(min(n, m) + 1)  # one more record on the other side would have halved a larger one
    if min(n, m) < LEAST:
        reason = f"{n} members and {m} non-members are too few to calibrate on; {LEAST} of each are needed"
        return Calibration(0.0, 0.0, scores, member, np.ones(len(scores)), 1.0, reason)
    z = _quantiles(scores, scores)
    ratios = np.empty(len(scores))
    folds = stream.permutation(np.arange(len(scores)) % FOLDS)
    for fold in range(FOLDS):
        out = folds == fold
        intercept, slope = _fit(z[~out], member[~out])
        ratios[out] = np.exp(intercept + slope * z[out])
    ratios = _bounded(ratios, largest)
    intercept, slope = _fit(z, member)
    refusal = _refusal(scores, member, ratios)
    return Calibration(intercept, slope, scores, member, ratios, largest, refusal)


def state(calibration: Calibration, ratio: float, prior: float, sure: float = 0.9) -> Statement:
    """Return what may be said of a record with this likelihood ratio.

    prior: the probability of membership before the models were looked at, in (0, 1)
    sure: the probability from which a side is named, if the ratio itself speaks for it (`SPEAKS`)

    Raises:
        ValueError: the prior is not in (0, 1).
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior {prior}: it must lie in (0, 1)")
    odds = ratio * prior / (1 - prior)
    probability = odds / (1 + odds)
    member = None
    if ratio >= SPEAKS and probability >= sure:
        member = True
    if ratio <= 1 / SPEAKS and probability <= 1 - sure:
        member = False
    return Statement(ratio, probability, _right(calibration, ratio, prior), member)


def _right(calibration: Calibration, ratio: float, prior: float) -> Estimate:
    """Return how often the side that the ratio speaks for is right, among records that speak as clearly."""
    towards = calibration.ratios >= ratio if ratio >= 1 else calibration.ratios <= ratio
    side = calibration.members if ratio >= 1 else ~calibration.members
    hits, alarms = int((towards & side).sum()), int((towards & ~side).sum())
    n, m = int(side.sum()), int((~side).sum())
    found = Estimate(hits / n, *clopper_pearson(hits, n))
    wrong = Estimate(alarms / m, *clopper_pearson(alarms, m))
    return ppv(found, wrong, prior if ratio >= 1 else 1 - prior)


def _quantiles(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the normal quantiles of the scores' mid-ranks among the sorted reference."""
    from scipy.stats import norm

    low, high = (np.searchsorted(reference, scores, side=side) for side in ("left", "right"))
    return np.asarray(norm.ppf(((low + high) / 2 + 0.5) / (len(reference) + 1)))


def _fit(z: np.ndarray, member: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of ln LR in z: logistic regression, less the log odds of the sides'
    numbers."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0).fit(z[:, None], member)
    return float(model.intercept_[0]) - math.log(member.sum() / (~member).sum()), float(model.coef_[0, 0])


def _bounded(ratios: np.ndarray, largest: float) -> np.ndarray:
    return np.clip(ratios, 1 / largest, largest)


def _refusal(scores: np.ndarray, member: np.ndarray, ratios: np.ndarray) -> str:
    """Return why the out-of-fold ratios may not be used, '' where they hold."""
    found = auc(scores[member], scores[~member])
    if found.low <= 0.5:
        return (
            f"the attack is not shown to tell members from others (AUC {found.value:.2f}, {found.low:.2f} to "
            f"{found.high:.2f})"
        )
    z = spiegelhalter(_probabilities(ratios, member), member)
    if abs(z) > _critical():
        return f"the probabilities do not hold on records left out of the fit (Spiegelhalter's z = {z:.1f})"
    return ""


def spiegelhalter(probability: np.ndarray, member: np.ndarray) -> float:
    """Return Spiegelhalter's (1986) z of 'the probabilities are calibrated', standard normal where they
    are."""
    p, y = probability, member.astype(float)
    spread = math.sqrt(float(np.sum((1 - 2 * p) ** 2 * p * (1 - p))))
    return float(np.sum((y - p) * (1 - 2 * p))) / spread if spread > 0 else math.inf


def _probabilities(ratios: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Return the probabilities at the sides' own numbers."""
    odds = ratios * member.sum() / (~member).sum()
    return np.asarray(odds / (1 + odds))


def _critical() -> float:
    from scipy.stats import norm

    return float(norm.isf(SIGNIFICANCE / 2))
