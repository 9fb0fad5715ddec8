from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from attacks.matrix import combined, lira
from attacks.matrix.rehearsal import rehearsals
from attacks.matrix.signal_matrix import SignalMatrix


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def world(seed: int, effect: float, n: int = 200, shadows: int = 64) -> tuple[SignalMatrix, np.ndarray]:
    """A Gaussian world: φ of a member lies ``effect`` standard deviations higher."""
    draw = stream(seed)
    member = draw.random((shadows + 1, n)) < 0.5
    level = draw.normal(0, 2, n)
    phi = level + effect * member + draw.normal(0, 1, (shadows + 1, n))
    phi = np.stack([phi * 0.5, phi], axis=1).astype(np.float32)
    matrix = SignalMatrix(
        target=phi[0],
        shadows=phi[1:],
        inside=np.where(member[1:], 0, -1),
        rounds=np.array([1, 2]),
        labels=draw.integers(0, 2, n),
        party=np.full(n, -1),
    )
    return matrix, member[0]


def test_it_weighs_parts_by_what_they_are_worth_and_keeps_the_better_ones_power() -> None:
    noise = stream(9)
    parts = {"lira": lira.online, "noise": lambda matrix, rng: noise.normal(size=matrix.target.shape[1])}
    aucs = []
    for seed in range(8):
        matrix, member = world(seed, 1.5)
        both = combined.score(matrix, stream(), parts)
        aucs.append([roc_auc_score(member, both), roc_auc_score(member, lira.online(matrix, stream()))])
    with_noise, alone = np.mean(aucs, axis=0)
    assert alone > 0.8 and with_noise > alone - 0.01


def test_log_odds_from_beside_the_shadows_are_never_lost_nor_in_the_way() -> None:
    """Two sources that err independently: together at least as good as the better, whichever that is."""
    for of_shadows, of_rounds in ((1.5, 0.0), (0.3, 1.5), (1.0, 1.0)):
        aucs = []
        for seed in range(4):
            matrix, member = world(seed, of_shadows)
            seen = of_rounds * member + stream(seed + 50).normal(size=len(member))
            odds = of_rounds * (seen - of_rounds / 2)
            alone = combined.score(matrix, stream(), {"lira": lira.online})
            beside = replace(matrix, beside={"round-decoding": odds})
            both = combined.score(beside, stream(), {"lira": lira.online})
            aucs.append([roc_auc_score(member, one) for one in (both, alone, odds)])
        together, shadows, rounds = np.mean(aucs, axis=0)
        assert together > max(shadows, rounds) - 0.01, (of_shadows, of_rounds)


def test_the_fewer_of_the_members_are_owned_the_less_the_shadows_claim() -> None:
    matrix, _ = world(2, 1.5)
    parts = {"lira": lira.online}
    whole, some = (combined.score(replace(matrix, owned=owned), stream(), parts) for owned in (1.0, 0.3))
    np.testing.assert_allclose(some, 0.3 * whole)


def test_what_is_beside_is_added_in_full() -> None:
    matrix, _ = world(2, 1.5)
    parts, odds = {"lira": lira.online}, stream(3).normal(size=200)
    alone = combined.score(matrix, stream(), parts)
    both = combined.score(replace(matrix, beside={"round-decoding": odds}), stream(), parts)
    np.testing.assert_allclose(both - alone, odds, rtol=1e-9, atol=1e-12)


def test_no_part_counts_against_itself() -> None:
    draw = stream(5)
    member = draw.random(400) < 0.5
    truth = member.astype(float)
    features = np.stack([truth + draw.normal(size=400), -truth + draw.normal(size=400)], axis=1)
    weights, _ = combined._fit(features, member)
    assert weights[0] > 0.3 and weights[1] == 0


def test_all_parts_together_find_members_and_nothing_where_there_is_nothing() -> None:
    found, nothing = [], []
    for seed in range(3):
        matrix, member = world(seed, 1.5)
        found.append(roc_auc_score(member, combined.score(matrix, stream())))
        matrix, member = world(seed, 0.0)
        nothing.append(roc_auc_score(member, combined.score(matrix, stream())))
    assert np.mean(found) > 0.8
    assert abs(np.mean(nothing) - 0.5) < 0.1  # a standard error is .025


def test_the_score_is_repeatable_and_monotone_transforms_of_a_part_change_nothing() -> None:
    matrix, _ = world(1, 1.5)
    parts = {"lira": lira.online, "phi": combined.last_phi}
    first = combined.score(matrix, stream(), parts)
    np.testing.assert_array_equal(first, combined.score(matrix, stream(), parts))
    bent = {"lira": lambda m, rng: np.arctan(lira.online(m, rng)), "phi": combined.last_phi}
    np.testing.assert_allclose(combined.score(matrix, stream(), bent), first, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("inside", [-1, 0])
def test_shadows_of_one_class_only_are_survived(inside: int) -> None:
    matrix, _ = world(1, 1.0)
    matrix = replace(matrix, inside=np.full_like(matrix.inside, inside))
    assert np.isfinite(combined.score(matrix, stream(), {"phi": combined.last_phi})).all()


def test_a_rehearsal_does_not_see_its_targets_mirror_image() -> None:
    draw = stream(3)
    half = draw.random((16, 200)) < 0.5
    member = np.stack([half, ~half], axis=1).reshape(32, 200)  # 2j + 1 holds what 2j does not
    phi = draw.normal(size=(33, 1, 200)).astype(np.float32)
    matrix = SignalMatrix(
        target=phi[0],
        shadows=phi[1:],
        inside=np.where(member, 0, -1),
        rounds=np.array([1]),
        labels=np.zeros(200, dtype=int),
        party=np.full(200, -1),
    )
    for rehearsal, truth in rehearsals(matrix, stream(), 4):
        assert len(rehearsal) <= 32 - 4
        assert not any((row == ~truth).all() or (row == truth).all() for row in rehearsal.member)
