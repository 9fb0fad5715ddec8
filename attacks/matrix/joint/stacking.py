"""How much to trust which part of joint inference: learnt on shadows that were held back from all parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, EVERY_MODEL, attack
from attacks.matrix.design import Design, decodable
from attacks.matrix.joint.parts import all_parts
from attacks.matrix.signal_matrix import SignalMatrix

HELD_BACK, LEARNING = 128, 100_000
"""Shadows held back, and pairs of one and a record that the stacking learns from, at most."""
SURPRISE = 1.25
"""A part is left out where it spreads this much more in the target than in any rehearsal."""


@attack(
    "joint",
    sees=EVERY_MODEL,
    assumes=ALIKE_SHADOWS,
    source="ours: decoded together",
    compares_with=("whole", "early"),
    inside=True,
    threshold=0.0,
)
def score(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the log-odds of membership by all parts together, (n,) float64.

    LiRA at w_T is one of the parts, and always stays. 0 for a record about which nothing can be said: in no
    shadow, or in all.
    """
    return rehearse(matrix, rng).target


@dataclass(frozen=True, eq=False)
class Evidence:
    """Log likelihood ratios, or log-odds, of membership: of the target, and of H shadows by fits without any.

    target: (n,) float64; shadows: (H, n) float32
    """

    target: np.ndarray
    shadows: np.ndarray


def rehearse(matrix: SignalMatrix, rng: np.random.Generator) -> Evidence:
    """Return the log-odds by all parts together of the target and of the shadows `held_back`."""
    held, known = held_back(matrix), decodable(matrix.member)
    parts = _evidence(matrix, held)
    parts = [parts[0], *(part for part in parts[1:] if not _surprising(part))]
    weights, intercept = _stacking(parts, matrix.member[held], known, rng)
    target = intercept + sum(w * _tempered(part) for w, part in zip(weights, parts, strict=True))
    shadows = intercept + sum(np.float32(w) * part.shadows for w, part in zip(weights, parts, strict=True))
    return Evidence(np.where(known, target, 0.0), np.where(known, shadows, 0.0).astype(np.float32))


def held_back(matrix: SignalMatrix) -> np.ndarray:
    """Return the indices of the shadows that `rehearse` attacks: a quarter, at most about `HELD_BACK`.

    Evenly spread; shadows that were drawn together stay together.
    """
    partner = Design.of(matrix.member).partner
    group = np.minimum(partner, np.arange(len(partner)))  # (S,), the smaller index names the pair
    groups = np.unique(group)
    wanted = max(1, min(HELD_BACK, len(matrix) // 4) * len(groups) // len(matrix))
    chosen = groups[np.unique(np.linspace(0, len(groups) - 1, wanted).astype(np.int64))]
    return np.flatnonzero(np.isin(group, chosen))


def _federations(matrix: SignalMatrix) -> list[SignalMatrix]:
    """Return the whole federations, and those of the first rounds, the first S of which are the same."""
    early = matrix.early
    if early is None:
        return [matrix]
    if len(early) < len(matrix) or not np.array_equal(early.member[: len(matrix)], matrix.member):
        raise ValueError("the early shadows do not begin with the whole ones")
    return [matrix, early]


_FOUND: WeakKeyDictionary[SignalMatrix, list[Evidence]] = WeakKeyDictionary()
"""What was made of a matrix, as long as it lives: more than one attack asks for it."""


def _evidence(matrix: SignalMatrix, held: np.ndarray) -> list[Evidence]:
    """Return what each part makes of the target and of the shadows `held_back`, by both kinds of shadows."""
    if matrix not in _FOUND:
        _FOUND[matrix] = [part for shadows in _federations(matrix) for part in _weighed(shadows, held)]
    return _FOUND[matrix]


def _weighed(matrix: SignalMatrix, held: np.ndarray) -> Iterator[Evidence]:
    """Yield what each part makes of the target, and of the shadows ``held`` by fits on the others."""
    others = matrix.subset(np.setdiff1d(np.arange(len(matrix)), held))
    pairs = zip(all_parts(matrix), all_parts(others, matrix.subset(held)), strict=True)
    return (Evidence(target[0], shadows.astype(np.float32)) for target, shadows in pairs)


def _surprising(part: Evidence) -> bool:
    """Tell whether the rehearsals do not prepare for what a part makes of the target.

    If the shadows resemble the target, it is one of them as far as any part can see. Where members are
    unknown to the adversary it is not, and a decoder may answer with noise that no shadow showed.
    """
    return bool(part.target.var() > SURPRISE * part.shadows.var(axis=1, dtype=np.float64).max(initial=0.0))


def _tempered(part: Evidence) -> np.ndarray:
    """Return a part's ratios of the target, (n,), less of them where they spread more than is usual.

    A Gaussian ratio is inversely proportional to the variance, so it is divided by as much as the spread over
    the records exceeds all but a twentieth of the rehearsals'. A mean beyond theirs is moved into their
    range.
    """
    means = part.shadows.mean(axis=1, dtype=np.float64)
    usual = np.quantile(part.shadows.var(axis=1, dtype=np.float64), 0.95)
    mean, share = part.target.mean(), min(1.0, usual / max(part.target.var(), 1e-30))
    return np.asarray((part.target - mean) * share + np.clip(mean, *np.quantile(means, [0.025, 0.975])))


def _stacking(
    parts: Sequence[Evidence], member: np.ndarray, known: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return weights, none below 0 (Breiman 1996), and intercept of a logistic regression on the rehearsals.

    member: (H, n) bool, of the rehearsed shadows; known: (n,) bool, the records to learn from
    """
    pairs = np.flatnonzero(np.broadcast_to(known, member.shape))
    pairs = rng.choice(pairs, min(len(pairs), LEARNING), replace=False, shuffle=False)
    truth = member.ravel()[pairs]
    if len(np.unique(truth)) < 2:
        return np.zeros(len(parts)), 0.0
    inputs = np.stack([part.shadows.ravel()[pairs].astype(np.float64) for part in parts], axis=1)
    # One scale for all parts, so that the penalty shrinks their weights alike: (pairs, parts) over (parts,).
    scale = np.maximum(inputs.std(axis=0), 1e-12)
    weights, intercept = nonnegative_logistic(inputs / scale, truth)
    return weights / scale, intercept


def nonnegative_logistic(inputs: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights (d,), none below 0, and intercept of a logistic regression penalised by ½‖weights‖².

    inputs: (m, d) float64; truth: (m,) bool, of both classes
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        odds = inputs @ theta[:-1] + theta[-1]
        # The intercept is not penalised.
        error, shrink = expit(odds) - truth, np.append(theta[:-1], 0.0)
        value = np.logaddexp(0.0, odds).sum() - odds[truth].sum() + 0.5 * (shrink**2).sum()
        gradient = np.append(inputs.T @ error, error.sum()) + shrink
        return value / len(truth), gradient / len(truth)

    parts = inputs.shape[1]
    start = np.append(np.full(parts, 0.5 / parts), 0.0)  # weights, then the intercept
    bounds = [(0.0, None)] * parts + [(None, None)]
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return theta[:-1], float(theta[-1])
