"""Laws that every attack on a signal matrix keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support import shadow_world

from attacks.matrix import bavaria, conditional, lira, lira_rounds, projected, proxy, quantile, rmia, shokri
from attacks.matrix.rehearsal import calibrate_on_rehearsals, rehearsals
from attacks.matrix.signal_matrix import SignalMatrix

Score = Callable[[SignalMatrix, np.random.Generator], np.ndarray]
ATTACKS: list[Score] = [
    lira.online, lira.online_fixed, lira.offline, lira_rounds.score,
    rmia.online, rmia.offline, shokri.score, quantile.score,
    rmia.information, rmia.information_offline, bavaria.online, bavaria.offline,
    proxy.score, conditional.score, projected.score,
    projected.offline,
]  # fmt: skip
every_attack = pytest.mark.parametrize("score", ATTACKS, ids=lambda f: f"{f.__module__}.{f.__name__}")


def draw(seed: int, n: int = 30, shadows: int = 16, rounds: int = 3) -> SignalMatrix:
    stream = np.random.default_rng(seed)
    return shadow_world.varied(n, rounds, stream).matrix(shadows, stream)[0]


def run(score: Score, matrix: SignalMatrix) -> np.ndarray:
    return score(matrix, np.random.default_rng(0))


def reordered(matrix: SignalMatrix, records: np.ndarray) -> SignalMatrix:
    return replace(
        matrix,
        target=matrix.target[:, records],
        shadows=matrix.shadows[:, :, records],
        inside=matrix.inside[:, records],
        labels=matrix.labels[records],
        party=matrix.party[records],
    )


@every_attack
def test_scores_are_finite_float64_and_deterministic(score: Score) -> None:
    found = run(score, draw(0))
    assert found.shape == (30,) and found.dtype == np.float64 and np.isfinite(found).all()
    assert np.ptp(found) > 0
    np.testing.assert_array_equal(found, run(score, draw(0)))


@every_attack
def test_scores_follow_their_records(score: Score) -> None:
    matrix, order = draw(1), np.random.default_rng(5).permutation(30)
    np.testing.assert_allclose(
        run(score, reordered(matrix, order)), run(score, matrix)[order], rtol=1e-3, atol=1e-5
    )


@every_attack
def test_order_of_shadows_is_irrelevant(score: Score) -> None:
    if score is conditional.score:  # which rehearses on some of them, drawn by their places
        return
    matrix, order = draw(2), np.random.default_rng(5).permutation(16)
    np.testing.assert_allclose(run(score, matrix.subset(order)), run(score, matrix), rtol=1e-3, atol=1e-5)


@every_attack
def test_members_are_found_where_membership_shows(score: Score) -> None:
    stream = np.random.default_rng(3)
    matrix, member = shadow_world.alike(400, 3, distance=3).matrix(64, stream)
    matrix = replace(matrix, labels=np.zeros(400, dtype=int))
    shown = 0.55 if score is shokri.score else 0.9  # which knows no record's own mean
    assert shadow_world.auc(run(score, matrix), member) > shown


@every_attack
def test_nothing_is_found_where_membership_does_not_show(score: Score) -> None:
    matrix, member = shadow_world.alike(2000, 3, distance=0).matrix(32, np.random.default_rng(4))
    assert abs(shadow_world.auc(run(score, matrix), member) - 0.5) < 3 * np.sqrt(1 / 12 * 2 / 1000)


@every_attack
def test_a_failed_shadow_is_as_good_as_absent(score: Score) -> None:
    matrix = draw(5)
    shadows = matrix.shadows.copy()
    shadows[3], shadows[7, :, ::2] = np.nan, np.inf
    broken = replace(matrix, shadows=shadows)
    found = run(score, broken)
    assert np.isfinite(found).all()
    if score not in (
        rmia.offline,
        rmia.information_offline,
        conditional.score,
    ):  # which fit something on all shadows
        kept = np.arange(16) != 3
        np.testing.assert_allclose(found, run(score, broken.subset(kept)), rtol=1e-3, atol=1e-5)


@every_attack
def test_records_of_which_nothing_is_known_score_alike(score: Score) -> None:
    """In every shadow or in none, or φ not finite in the target or in any shadow."""
    matrix = draw(6)
    inside, target, shadows = matrix.inside.copy(), matrix.target.copy(), matrix.shadows.copy()
    inside[:, 0], inside[:, 1] = 0, -1
    target[:, 2], target[:, 3], shadows[:, :, 4] = np.nan, np.inf, np.nan
    found = run(score, replace(matrix, inside=inside, target=target, shadows=shadows))
    assert np.isfinite(found).all()
    if score in (
        lira.online,
        lira.online_fixed,
        lira_rounds.score,
        bavaria.online,
        conditional.score,
        projected.score,
    ):
        assert (found[:5] == 0).all() and (found[5:] != 0).all()
    elif score in (rmia.online, rmia.information):
        assert len(set(found[:5])) == 1
    elif score in (rmia.offline, rmia.information_offline):
        assert len(set(found[[0, 2, 3, 4]])) == 1
    elif score in (lira.offline, quantile.score, bavaria.offline, projected.offline):
        assert (found[[0, 2, 3, 4]] == 0).all() and found[1] != 0
    else:
        assert (found[[2, 3]] == 0).all() and (found[5:] != 0).all()


@every_attack
@pytest.mark.parametrize("level", [0.0, 1.0, -700.0, 3e4])
def test_constant_signals_are_survived(score: Score, level: float) -> None:
    matrix = draw(7)
    flat = replace(
        matrix, target=np.full_like(matrix.target, level), shadows=np.full_like(matrix.shadows, level)
    )
    assert np.isfinite(run(score, flat)).all()


@every_attack
@pytest.mark.parametrize("shadows", [1, 2, 3])
def test_hardly_any_shadows_are_survived(score: Score, shadows: int) -> None:
    assert np.isfinite(run(score, draw(8, shadows=shadows))).all()


@every_attack
def test_a_single_record_is_survived(score: Score) -> None:
    assert np.isfinite(run(score, draw(9, n=1))).all()


def test_thresholds_chosen_on_rehearsals_are_near_the_best() -> None:
    """Equal Gaussians, distance 2: the likelihood ratio is best cut at 0, with balanced accuracy Φ(1)."""
    matrix, member = shadow_world.alike(2000, distance=2).matrix(256, np.random.default_rng(10))
    threshold = calibrate_on_rehearsals(lira.online_fixed, matrix, np.random.default_rng(0))
    scores = run(lira.online_fixed, matrix)
    accuracy = ((scores[member] >= threshold).mean() + (scores[~member] < threshold).mean()) / 2
    assert abs(threshold) < 0.4
    assert accuracy == pytest.approx(0.8413, abs=0.03)


def test_rehearsals_are_shadows_that_their_matrix_does_not_hold() -> None:
    matrix = draw(11, shadows=64)
    seen = []
    for rehearsal, member in rehearsals(matrix, np.random.default_rng(0), count=5):
        j = int(np.flatnonzero((matrix.shadows == rehearsal.target).all(axis=(1, 2)))[0])
        np.testing.assert_array_equal(member, matrix.member[j])
        # The five themselves, and for each at most one that looks as if it were drawn together with it.
        assert 54 <= len(rehearsal) <= 59
        assert not (rehearsal.shadows == rehearsal.target).all(axis=(1, 2)).any()
        seen.append(j)
    assert len(set(seen)) == 5


def test_rehearsals_carry_logits_and_weights() -> None:
    stream = np.random.default_rng(12)
    logits, weights = stream.normal(size=(16, 30, 4)), stream.normal(size=(16, 7))
    matrix = replace(draw(12), shadow_logits=logits, shadow_weights=weights)
    rehearsal, _ = next(rehearsals(matrix, stream, 1))
    j = int(np.flatnonzero((matrix.shadows == rehearsal.target).all(axis=(1, 2)))[0])
    np.testing.assert_array_equal(rehearsal.target_logits, logits[j])
    np.testing.assert_array_equal(rehearsal.target_weights, weights[j])


def test_rehearsals_leave_most_shadows_to_compare_with() -> None:
    found = [rehearsal for rehearsal, _ in rehearsals(draw(14, shadows=24), np.random.default_rng(0), 8)]
    assert [len(rehearsal) for rehearsal in found] == [21, 21, 21]


def test_a_rehearsal_needs_two_shadows() -> None:
    with pytest.raises(ValueError, match="two shadows"):
        calibrate_on_rehearsals(lira.online, draw(13, shadows=1), np.random.default_rng(0))
