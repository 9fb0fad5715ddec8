"""Shadows attacked in the target's place: rehearsals whose memberships the adversary drew itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from attacks.calibration import calibrate
from attacks.matrix.design import Design
from attacks.matrix.signal_matrix import SignalMatrix

MatrixScore = Callable[[SignalMatrix, np.random.Generator], np.ndarray]


def calibrate_on_rehearsals(
    score: MatrixScore, matrix: SignalMatrix, rng: np.random.Generator, count: int = 8
) -> float:
    """Return the threshold that is best on shadows attacked in the target's place.

    count: rehearsals, each costs one call of ``score``; at most an eighth of the shadows are used, so that
        those left describe the target as well as all of them do.

    Raises:
        ValueError: fewer than two shadows, or no rehearsal with both members and non-members.
    """
    pairs = [(score(rehearsal, rng), member) for rehearsal, member in rehearsals(matrix, rng, count)]
    scores, member = np.concatenate([s for s, _ in pairs]), np.concatenate([m for _, m in pairs])
    return calibrate(scores[member], scores[~member])


def rehearsals(
    matrix: SignalMatrix, rng: np.random.Generator, count: int
) -> Iterator[tuple[SignalMatrix, np.ndarray]]:
    """Yield ``count`` randomly chosen shadows as targets, see `in_the_targets_place`; at most an eighth.

    Raises:
        ValueError: fewer than two shadows.
    """
    if len(matrix) < 2:
        raise ValueError(f"a rehearsal needs at least two shadows, got {len(matrix)}")
    chosen = rng.choice(len(matrix), size=max(1, min(count, len(matrix) // 8)), replace=False)
    return in_the_targets_place(matrix, chosen)


def in_the_targets_place(
    matrix: SignalMatrix, chosen: np.ndarray
) -> Iterator[tuple[SignalMatrix, np.ndarray]]:
    """Yield the shadows ``chosen`` (indices) as targets, each with (n,) bool, who its members are.

    All of them are held back at once: one copy of the other shadows serves every rehearsal. So is the shadow
    that was drawn together with one and holds what it does not: it would tell a learned attack the answer.
    """
    partner = Design.of(matrix.member).partner
    others = matrix.subset(np.setdiff1d(np.arange(len(matrix)), np.union1d(chosen, partner[chosen])))
    for j in chosen:
        as_target, member = matrix.subset(np.array([j])), matrix.member[j]
        yield (
            replace(
                others,
                target=as_target.shadows[0],
                target_logits=None if as_target.shadow_logits is None else as_target.shadow_logits[0],
                target_weights=None if as_target.shadow_weights is None else as_target.shadow_weights[0],
            ),
            member,
        )
