from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shadow_world

from attacks.matrix import lira, projected
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


def moving_together(seed: int, effect: float, n: int = 200, shadows: int = 128) -> tuple:
    """Records whose φ two common causes move, in the target further than in any shadow."""
    draw = np.random.default_rng(seed)
    member = draw.random((shadows + 1, n)) < 0.5
    causes = draw.normal(size=(shadows + 1, 2)) * 3
    causes[0] *= 2
    phi = effect * member + causes @ draw.normal(size=(2, n)) + draw.normal(size=member.shape)
    nothing = np.zeros(n, int)
    return SignalMatrix(
        phi[:1].astype(np.float32), phi[1:, None].astype(np.float32), np.where(member[1:], 0, -1),
        np.array([1]), nothing, nothing,
    ), member[0]  # fmt: skip


def transcribed(matrix: SignalMatrix, size: int) -> SignalMatrix:
    """Record by record and component by component."""
    phi, target = matrix.shadows[:, -1].astype(float), matrix.target[-1].astype(float)
    shadows, n = phi.shape
    mean, deviation = phi.mean(axis=0), phi.std(axis=0)
    residual = np.empty_like(phi)
    for i in range(n):
        for s in range(shadows):
            same = matrix.member[:, i] == matrix.member[s, i]
            residual[s, i] = (phi[s, i] - phi[same, i].mean()) / deviation[i]
    vectors = np.linalg.eigh(residual.T @ residual)[1]
    left = []
    for row in (*phi, target):
        z = (row - mean) / deviation
        for k in range(1, size + 1):
            z = z - (z @ vectors[:, -k]) * vectors[:, -k]
        left.append(z)
    return replace(matrix, shadows=np.array(left[:-1])[:, None], target=left[-1][None])


def test_it_is_lira_of_what_is_left_of_a_slow_projection() -> None:
    matrix = shadow_world.varied(40, 1, RNG).matrix(32, RNG)[0]
    size = min(40 // projected.RECORDS, 32 // projected.SHADOWS)
    expected = lira.online(transcribed(matrix, size), RNG)
    np.testing.assert_allclose(projected.score(matrix, RNG), expected, rtol=1e-5, atol=1e-7)


def test_what_moves_all_records_hides_none_of_them() -> None:
    aucs = []
    for seed in range(4):
        matrix, member = moving_together(seed, 1.5)
        scores = projected.score(matrix, RNG), lira.online(matrix, RNG)
        aucs.append([shadow_world.auc(score, member) for score in scores])
    ours, plain = np.mean(aucs, axis=0)
    assert plain < 0.65 and ours > 0.78


def test_offline_is_a_regression_a_record_and_a_shadow() -> None:
    """The closed form against a least-squares fit without each shadow, record by record."""
    matrix = shadow_world.varied(30, 1, RNG).matrix(32, RNG)[0]
    inside = matrix.inside.copy()
    inside[:, 20:] = -1  # ten candidates of whom no shadow was trained on
    matrix = replace(matrix, inside=inside)
    phi, target = matrix.shadows[:, -1].astype(float), matrix.target[-1].astype(float)
    moves = projected._moves(matrix)
    assert moves is not None and moves.basis.shape == (4, 20)
    found = projected.offline(matrix, RNG)
    middle = moves.shadows.mean(axis=0)
    inputs = moves.shadows - middle
    for i in range(20, 30):
        y = phi[:, i] - phi[:, i].mean()
        left = []
        for s in range(32):
            others = np.arange(32) != s
            weights = np.linalg.lstsq(inputs[others], y[others], rcond=None)[0]
            left.append(y[s] - inputs[s] @ weights)
        weights = np.linalg.lstsq(inputs, y, rcond=None)[0]
        ahead = target[i] - phi[:, i].mean() - (moves.target - middle) @ weights
        np.testing.assert_allclose(found[i], ahead / np.sqrt(np.mean(np.square(left))), rtol=1e-6)


def test_offline_finds_members_that_no_shadow_was_trained_on() -> None:
    aucs, alone = [], np.arange(200) < 60
    for seed in range(4):
        matrix, member = moving_together(seed, 2.0)
        # φ of the asked in the shadows as of non-members; in the target as it is.
        shadows = matrix.shadows - 2.0 * (matrix.member & alone)[:, None]
        inside = np.where(alone, -1, matrix.inside)
        matrix = replace(matrix, inside=inside, shadows=shadows.astype(np.float32))
        scores = projected.offline(matrix, RNG), lira.offline(matrix, RNG)
        aucs.append([shadow_world.auc(score[alone], member[alone]) for score in scores])
    ours, plain = np.mean(aucs, axis=0)
    assert plain < 0.65 and ours > 0.8


def test_candidates_in_no_shadow_tell_nothing_of_each_other() -> None:
    matrix, _ = moving_together(2, 1.0)
    matrix = replace(matrix, inside=np.where(np.arange(200) < 60, -1, matrix.inside))
    other = matrix.target.copy()
    other[0, 0] += 5
    before, after = (projected.offline(each, RNG) for each in (matrix, replace(matrix, target=other)))
    np.testing.assert_array_equal(before[1:], after[1:])
    assert after[0] > before[0]


def test_it_finds_nothing_where_there_is_nothing() -> None:
    aucs = []
    for seed in range(6):
        matrix, member = moving_together(seed, 0.0)
        aucs.append(shadow_world.auc(projected.score(matrix, RNG), member))
    assert abs(np.mean(aucs) - 0.5) < 0.06


def test_records_that_no_shadow_tells_apart_stay_as_they_are() -> None:
    matrix, _ = moving_together(1, 1.0, n=60, shadows=40)
    inside = matrix.inside.copy()
    inside[:, :10] = -1
    matrix = replace(matrix, inside=inside)
    left = projected.projected(matrix)
    np.testing.assert_array_equal(left.shadows[:, 0, :10], matrix.shadows[:, 0, :10])
    assert not projected.score(matrix, RNG)[:10].any()


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(-20, 20), st.floats(0.1, 10))
def test_units_do_not_matter(seed: int, shift: float, scale: float) -> None:
    draw = np.random.default_rng(seed)
    matrix = shadow_world.varied(20, 1, draw).matrix(24, draw)[0]
    matrix = replace(matrix, shadows=matrix.shadows.astype(float), target=matrix.target.astype(float))
    moved = replace(matrix, shadows=scale * (matrix.shadows + shift), target=scale * (matrix.target + shift))
    np.testing.assert_allclose(
        projected.score(moved, RNG), projected.score(matrix, RNG), rtol=1e-5, atol=1e-6
    )
