"""Attacks that ask the final global model for nothing but its most likely class (Choquette-Choo et al. 2021).

A model is surer of what it was trained on, which shows even in bare labels: a member keeps its label when it
is moved further. Records are moved in encoded space, in which a category is a group of numbers of its own:
a moved record need not be one that could exist, and the participant, who holds the model, can ask all the
same. All records are moved by the same random vectors, so that a record's score does not depend on which
other records are asked, and differences between two records are not blurred by two draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from attacks.declaration import FINAL_LABELS, FITTED, attack
from attacks.membership import crossfit
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records
from fedsim.core.ranks import auc

Oracle = Callable[[np.ndarray], np.ndarray]
"""Features (n, …) float32 → classes (n,) int64, −1 where the model gives no answer."""

COPIES = 32
SCALES = 2.0 ** np.arange(-4, 3)
"""Standard deviations of the noise that are tried, as multiples of the owner's features' own."""

STEPS, PROBES, TRIES, HALVINGS = 4, 48, 3, 12
"""The search for the boundary; see `boundary_distance` for what they cost."""


def oracle(view: ParticipantView) -> Oracle:
    """Return the final global model with labels as its only answers."""
    module = view.module(view.final_model)

    def answer(features: np.ndarray) -> np.ndarray:
        logits = outputs.logits(module, features.astype(np.float32, copy=False), batch=4096)
        return np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))

    return answer


@attack("noise-robustness", sees=FINAL_LABELS, assumes=FITTED, source="Choquette-Choo et al. 2021")
def noise_robustness(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the share of noisy copies of x that the model labels y, (n,) float64 in [0, 1].

    The noise is Gaussian, as for continuous features in the paper, and of the scale that best tells the
    owner's members from its held-out records. It costs 32 queries a record for each of the 7 scales tried.
    """
    answer, shape = oracle(view), candidates.shape
    unit = spread(view)
    noise = rng.normal(size=(COPIES, *shape)).astype(np.float32)

    def features(records: Records) -> np.ndarray:
        return np.column_stack([kept_label(answer, records, noise * scale * unit) for scale in SCALES])

    def fit(known: np.ndarray, member: np.ndarray, rng: np.random.Generator) -> crossfit.Scorer:
        best = int(np.argmax([auc(share[member], share[~member]) for share in known.T]))
        return lambda shares: shares[:, best]

    return crossfit.cross_fitted(view, candidates, features, fit, rng)


def spread(view: ParticipantView) -> np.float32:
    """Return the standard deviation of the owner's features around their means, over all of them."""
    own = Records.concatenate([view.own_train, view.own_heldout]).features
    return np.float32(np.sqrt(own.var(axis=0, dtype=np.float64).mean()))


def kept_label(answer: Oracle, records: Records, shifts: np.ndarray) -> np.ndarray:
    """Return the share of ``shifts`` (k, …) after which a record still has its label, (n,) float64.

    NaN where the model has no answer for the record as it is.
    """
    counts = np.zeros(len(records))
    for shift in shifts:
        counts += answer(records.features + shift) == records.labels
    return np.where(answer(records.features) < 0, np.nan, counts / len(shifts))


@attack("boundary-distance", sees=FINAL_LABELS, assumes=FITTED, source="Choquette-Choo et al. 2021")
def boundary_distance(view: ParticipantView, candidates: Records, rng: np.random.Generator) -> np.ndarray:
    """Return the Euclidean distance from x to where the model's label stops being y, (n,) float64.

    Negative for a record that has another label: how far it is from the label y. (In the paper such a
    record scores 0.) An upper bound in absolute value, found with at most
    2 + 12 + 4 · (48 + 3 + 12) = 266 queries a record, see `distances`.
    """
    own = Records.concatenate([view.own_train, view.own_heldout])
    answer = oracle(view)
    inside = answer(candidates.features) == candidates.labels
    size = int(np.prod(candidates.shape))
    directions = rng.normal(size=(STEPS, PROBES, size))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    reach = distances(answer, candidates, own.features, inside, directions.astype(np.float32))
    reach = np.where(inside, reach, -reach)
    return np.where(answer(candidates.features) < 0, np.nan, reach)


def distances(
    answer: Oracle, records: Records, starts: np.ndarray, inside: np.ndarray, directions: np.ndarray
) -> np.ndarray:
    """Return how far every record is from a point on the other side of the boundary, (n,) float64.

    starts: (m, …) float32, points to set out from; a record is first compared with the nearest one on its
        other side, or else with the furthest one, whose distance it then gets
    inside: (n,) bool, whether the record has its own label
    directions: (steps, probes, d) float32, unit vectors

    On the line to the start the boundary is found by bisection. Its normal there is estimated from the
    labels of probes around the point (Chen, Jordan & Wainwright 2020, eq. 16); the record is then moved as
    far as before, but along the normal, and if it crosses there, bisection brings the boundary closer.
    """
    origin = records.features.reshape(len(records), directions.shape[2])

    def crossed(points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        labels = answer(points.reshape(len(points), *records.shape))
        return (labels == records.labels[rows]) != inside[rows]

    points, reachable = _nearest(
        origin, records.labels, inside, starts.reshape(len(starts), -1), answer(starts)
    )
    rows = np.flatnonzero(reachable)
    points[rows] = _bisect(crossed, rows, origin[rows], points[rows])
    for probes in directions:
        points[rows] = _closer(crossed, rows, origin[rows], points[rows], probes)
    return np.linalg.norm((points - origin).astype(np.float64), axis=1)


Crossed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Points (k, d) and the rows (k,) of the records they were moved from → whether they have crossed."""


def _nearest(
    origin: np.ndarray, labels: np.ndarray, inside: np.ndarray, starts: np.ndarray, answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each record's nearest start on its other side, else the furthest, and whether there is one.

    origin, labels, inside: of the n records; starts (m, d), answers (m,)
    """
    nearest_start, reachable = np.empty_like(origin), np.empty(len(origin), dtype=bool)
    for first in range(0, len(origin), 512):
        rows = slice(first, first + 512)
        allowed = (answers == labels[rows, None]) != inside[rows, None]
        squares = (starts**2).sum(axis=1) - 2 * origin[rows] @ starts.T  # less ‖origin‖², the same for all
        reachable[rows] = allowed.any(axis=1)
        nearest = np.where(allowed, squares, np.inf).argmin(axis=1)
        nearest_start[rows] = starts[np.where(reachable[rows], nearest, squares.argmax(axis=1))]
    return nearest_start, reachable


def _bisect(crossed: Crossed, rows: np.ndarray, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Return points (k, d) that have just crossed, between ``near``, which have not, and ``far``."""
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        beyond = crossed(middle, rows)[:, None]
        near, far = np.where(beyond, near, middle), np.where(beyond, middle, far)
    return far


def _closer(
    crossed: Crossed, rows: np.ndarray, origin: np.ndarray, points: np.ndarray, probes: np.ndarray
) -> np.ndarray:
    """Return points (k, d) on the boundary moved nearer to ``origin`` where the normal leads there."""
    radius = np.linalg.norm(points - origin, axis=1, keepdims=True)
    votes = np.stack([crossed(points + 0.1 * radius * probe, rows) for probe in probes], axis=1)
    weights = votes - votes.mean(axis=1, keepdims=True)
    towards, normal = _unit(points - origin), _unit(weights.astype(np.float32) @ probes)
    open_rows = np.arange(len(rows))
    for halving in range(TRIES):
        turn = np.float32(0.5**halving)
        turned = _unit((1 - turn) * towards[open_rows] + turn * normal[open_rows])
        far = origin[open_rows] + radius[open_rows] * turned
        over = crossed(far, rows[open_rows])
        hit = open_rows[over]
        points[hit] = _bisect(crossed, rows[hit], origin[hit], far[over])
        open_rows = open_rows[~over]
    return points


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
