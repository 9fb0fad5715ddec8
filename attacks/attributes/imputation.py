"""What an adversary guesses without the model under attack: the baseline of attribute inference.

Jayaraman & Evans 2022 ('Are attribute inference attacks just imputation?'): an attack shows a leak only where
it beats a model of the population that was given the same records and knowledge.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attacks.attributes.problem import Options, Problem, flat, pose
from fedsim.core.data.records import Records

FOLDS = 5
SMOOTHING = 1.0
"""Records of each value that are taken to have been seen besides (Laplace)."""


def marginal(options: Options, owned: Records) -> np.ndarray:
    """Return the share of each value among the adversary's own records, (V,) float64, Laplace-smoothed."""
    index = options.index_of(owned)
    counts = np.bincount(index[index >= 0], minlength=len(options)) + SMOOTHING
    return np.asarray(counts / counts.sum())


def impute(problem: Problem, owned: Records, classes: int, stream: np.random.Generator) -> np.ndarray:
    """Return P(value | other columns, label) by a model of the adversary's own records, (n, V) float64.

    The better of logistic regression and a random forest by cross-validated log-loss, mixed with the
    marginal as if that were one record in as many as there are values, so that no value is impossible.
    classes: of the label, which is one of the model's inputs
    """
    options = problem.options
    index = options.index_of(owned)
    rows, target = inputs(pose(options, owned).hidden, classes)[index >= 0], index[index >= 0]
    share = marginal(options, owned)
    if len(np.unique(target)) < 2:
        return np.tile(share, (len(problem.hidden), 1))
    model = _better(rows, target, len(options), stream).fit(rows, target)
    return _mixed(_spread(model, inputs(problem.hidden, classes), len(options)), share, len(target))


def impute_own(
    options: Options, own: Records, owned: Records, classes: int, stream: np.random.Generator
) -> np.ndarray:
    """Return what `impute` would say of records that the adversary owns, had it not seen them, (n, V).

    own: n of the records, whose known values it has to guess, a fold at a time; owned: all others it has
    """
    answers = np.tile(marginal(options, owned), (len(own), 1))
    everything = Records.concatenate([own, owned])
    index = options.index_of(everything)
    rows = inputs(pose(options, everything).hidden, classes)
    if len(np.unique(index[index >= 0])) < 2:
        return answers
    model = _better(rows[index >= 0], index[index >= 0], len(options), stream)
    for fold in np.array_split(stream.permutation(len(own)), FOLDS):
        seen = np.setdiff1d(np.flatnonzero(index >= 0), fold)
        if len(fold) and len(np.unique(index[seen])) > 1:
            guess = _spread(model.fit(rows[seen], index[seen]), rows[fold], len(options))
            answers[fold] = _mixed(guess, marginal(options, everything.take(seen)), len(seen))
    return answers


def inputs(hidden: Records, classes: int) -> np.ndarray:
    """Return the model's inputs, (n, d + classes) float64: what is known of a record, and its label."""
    return np.column_stack([flat(hidden).astype(np.float64), np.eye(classes)[hidden.labels]])


def _better(rows: np.ndarray, target: np.ndarray, values: int, stream: np.random.Generator) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    seed = int(stream.integers(2**31))
    models = [
        LogisticRegression(C=0.5, max_iter=2000),
        RandomForestClassifier(100, min_samples_leaf=3, random_state=seed),
    ]
    fold = stream.permutation(len(target)) % FOLDS
    losses = [_held_out_loss(model, rows, target, fold, values) for model in models]
    return models[int(np.argmin(losses))]


def _held_out_loss(model: Any, rows: np.ndarray, target: np.ndarray, fold: np.ndarray, values: int) -> float:
    total = 0.0
    for k in range(FOLDS):
        out = fold == k
        if not out.any() or len(np.unique(target[~out])) < 2:
            continue
        share = (np.bincount(target[~out], minlength=values) + SMOOTHING) / (np.sum(~out) + values)
        guess = _mixed(_spread(model.fit(rows[~out], target[~out]), rows[out], values), share, np.sum(~out))
        total -= float(np.log(guess[np.arange(len(guess)), target[out]]).sum())
    return total


def _spread(model: Any, rows: np.ndarray, values: int) -> np.ndarray:
    """Return the model's probabilities with 0 for values that it has not seen, (n, V)."""
    spread = np.zeros((len(rows), values))
    spread[:, model.classes_] = model.predict_proba(rows)
    return spread


def _mixed(guess: np.ndarray, share: np.ndarray, seen: int) -> np.ndarray:
    weight = len(share) / (seen + len(share))
    return np.asarray((1 - weight) * guess + weight * share)
