"""What an adversary learns from its own records, whose membership it knows: thresholds and classifiers.

A learned attack is fitted on the owner's members against its held-out records. It is cross-fitted: the
records are dealt to folds and there is one fit per fold, made without it. A record of the owner's is scored
by the fit that has not seen it, everyone else's by the mean over all fits, so that a threshold chosen on the
owner's scores holds for the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records

Features = Callable[[Records], np.ndarray]
"""Records → (n, d) float64, what a fit may use of each."""

Scorer = Callable[[np.ndarray], np.ndarray]
"""Features (n, d) → scores (n,) float64, higher = member."""

Fit = Callable[[np.ndarray, np.ndarray, np.random.Generator], Scorer]
"""Features (m, d), membership (m,) bool and a stream → a scorer."""

FitAll = Callable[[Sequence[tuple[np.ndarray, np.ndarray]], np.random.Generator], list[Scorer]]
"""Features (m, d) and membership (m,) bool of several folds, and a stream → a scorer of each."""

FOLDS = 5


def cross_fitted(
    view: ParticipantView, candidates: Records, features: Features, fit: Fit, rng: np.random.Generator
) -> np.ndarray:
    """Return the scores (n,) float64 of ``candidates`` by fits on the owner's records, see `all_fitted`."""

    def one_by_one(folds: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> list[Scorer]:
        return [fit(known, member, rng) for known, member in folds]

    return all_fitted(view, candidates, features, one_by_one, rng)


def all_fitted(
    view: ParticipantView, candidates: Records, features: Features, fit: FitAll, rng: np.random.Generator
) -> np.ndarray:
    """Return the scores (n,) float64 of ``candidates`` by fits on the owner's records, see the module.

    A candidate whose features are not finite scores NaN; so do all where an own record's are not. An owner
    with fewer than two records of a kind has one fit, which has seen them all.
    """
    own = Records.concatenate([view.own_train, view.own_heldout])
    member = np.arange(len(own)) < len(view.own_train)
    known = np.concatenate([features(view.own_train), features(view.own_heldout)])
    values = features(candidates)
    scores = np.full(len(candidates), np.nan)
    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(finite) or not np.isfinite(known).all() or member.all() or not member.any():
        return scores
    fold = deal(member, rng)
    others = [fold != k for k in range(max(fold.max() + 1, 1))]
    fits = fit([(known[kept], member[kept]) for kept in others], rng)
    by_fit = np.array([scorer(values[finite]) for scorer in fits])
    left_out = _fold_of(candidates.take(finite), own, fold)
    rows = np.arange(len(left_out))
    scores[finite] = np.where(left_out < 0, by_fit.mean(axis=0), by_fit[left_out, rows])
    return scores


def deal(member: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a fold (n,) int of every record, members and others dealt evenly and at random.

    member: (n,) bool. −1 everywhere if there are fewer than two of either kind.
    """
    folds = min(FOLDS, int(member.sum()), int((~member).sum()))
    fold = np.full(len(member), -1)
    if folds < 2:
        return fold
    for kind in (member, ~member):
        fold[kind] = rng.permutation(np.arange(kind.sum()) % folds)
    return fold


def _fold_of(records: Records, own: Records, fold: np.ndarray) -> np.ndarray:
    """Return the fold of each of ``records`` that is one of the owner's, −1 of all others."""
    folds = dict(zip(_keys(own), fold.tolist(), strict=True))
    return np.array([folds.get(key, -1) for key in _keys(records)], dtype=int)


def _keys(records: Records) -> list[tuple[bytes, int]]:
    rows = zip(records.features, records.labels, strict=True)
    return [(features.tobytes(), int(label)) for features, label in rows]


def logistic(
    known: np.ndarray,
    member: np.ndarray,
    rng: np.random.Generator,
    weight: np.ndarray | float = 1.0,
    strength: float = 1.0,
) -> Scorer:
    """Fit a logistic regression on standardised features (m, d); it scores with the log-odds of 'member'.

    Both kinds of record weigh the same.
    weight: (d,), what the standardised features are multiplied by; a smaller one is penalised more
    strength: of the evidence against the penalty ½‖w‖², scikit-learn's C
    """
    from sklearn.linear_model import LogisticRegression

    scaled = standardised(known, weight)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(scaled(known), member)
    return lambda values: np.asarray(model.decision_function(scaled(values)), dtype=np.float64)


def standardised(known: np.ndarray, weight: np.ndarray | float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map that gives ``known`` (m, d) mean 0 and deviation ``weight``, constant columns 0."""
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    factor = np.divide(weight, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return lambda values: (values - mean) * factor
