"""CMIA, PMIA and InfoRMIA: from their definitions, and what they find that plain LiRA and RMIA do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm, rankdata
from support import shadow_world

from attacks.matrix import conditional, lira, proxy, rmia
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def matrix_of(phi: np.ndarray, member: np.ndarray, labels: np.ndarray | None = None) -> SignalMatrix:
    """φ and who is a member, (1 + S, n) each, the target's first."""
    nothing = np.zeros(phi.shape[1], int)
    return SignalMatrix(
        phi[:1].astype(np.float32), phi[1:, None].astype(np.float32), np.where(member[1:], 0, -1),
        np.array([1]), nothing if labels is None else labels, nothing,
    )  # fmt: skip


# InfoRMIA.


def test_informia_is_a_transcription_in_bits() -> None:
    matrix = shadow_world.varied(30, 1, stream()).matrix(24, stream())[0]
    p, target = expit(matrix.shadows[:, -1].astype(float)), expit(matrix.target[-1].astype(float))
    general = [
        (np.mean([v[x] for v, m in zip(p, matrix.member, strict=True) if m[x]])
         + np.mean([v[x] for v, m in zip(p, matrix.member, strict=True) if not m[x]])) / 2
        for x in range(30)
    ]  # fmt: skip
    divergence = np.mean([np.log2(general[z] / target[z]) for z in range(30)])
    expected = [np.log2(target[x] / general[x]) + divergence for x in range(30)]
    np.testing.assert_allclose(rmia.information(matrix, RNG), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pair", [(rmia.online, rmia.information), (rmia.offline, rmia.information_offline)])
def test_within_a_model_it_orders_records_as_rmia_does(pair: tuple) -> None:
    matrix = shadow_world.varied(200, 1, stream(1)).matrix(32, stream(1))[0]
    counted, in_bits = (score(matrix, stream(2)) for score in pair)
    np.testing.assert_array_equal(rankdata(counted), rankdata(in_bits))


def test_the_population_is_what_shadows_were_trained_on() -> None:
    matrix = shadow_world.varied(40, 1, stream(3)).matrix(32, stream(3))[0]
    inside = matrix.inside.copy()
    inside[:, :20] = -1  # queries that are in no shadow
    matrix = replace(matrix, inside=inside)
    moved = replace(matrix, target=matrix.target + np.where(np.arange(40) == 0, 3, 0).astype(np.float32))
    before, after = (rmia.information_offline(each, stream(), slope=0.5) for each in (matrix, moved))
    np.testing.assert_array_equal(before[1:], after[1:])
    assert after[0] > before[0]


# PMIA.


def transcribed_proxy(matrix: SignalMatrix, proxies: int) -> list[float]:
    phi = matrix.shadows[:, -1].astype(float)

    def side(i: int, inside: bool) -> np.ndarray:
        return phi[matrix.member[:, i] == inside, i]

    def divergence(i: int, j: int) -> float:
        a, b = side(i, False), side(j, False)
        square, va, vb = (a.mean() - b.mean()) ** 2, a.var(ddof=1), b.var(ddof=1)
        return 0.5 * ((va + square) / vb + (vb + square) / va) - 1

    scores, n = [], phi.shape[1]
    for i in range(n):
        pool = [
            j for j in range(n)
            if j != i and matrix.labels[j] == matrix.labels[i] and len(side(j, True)) > 1
        ]  # fmt: skip
        near = sorted(pool, key=lambda j: divergence(i, j))[:proxies]
        means = [side(j, True).mean() for j in near]
        spread = np.mean([side(j, True).var(ddof=1) for j in near]) + np.var(means)
        own = side(i, False)
        target = float(matrix.target[-1, i])
        inside = norm.logpdf(target, np.mean(means), np.sqrt(spread))
        scores.append(inside - norm.logpdf(target, own.mean(), own.std(ddof=1)))
    return scores


def test_proxies_are_a_slow_transcription() -> None:
    matrix = shadow_world.varied(40, 1, stream(4)).matrix(60, stream(4))[0]
    inside = matrix.inside.copy()
    inside[:, :12] = -1
    matrix = replace(matrix, inside=inside)
    np.testing.assert_allclose(proxy.score(matrix, RNG, proxies=5), transcribed_proxy(matrix, 5), rtol=1e-5)


def test_proxies_show_how_a_record_would_look_that_no_shadow_was_trained_on() -> None:
    """Members have less variance, and those of a steep kind lie lower: offline LiRA sees neither."""
    aucs = []
    for seed in range(4):
        draw, n = stream(seed), 600
        member, steep = draw.random((65, n)) < 0.5, draw.random(n) < 0.5
        member[1:, : n // 2] = False
        shift = np.where(steep, -1.5, 1.5)
        phi = np.where(steep, -4, 4) + shift * member + draw.normal(size=member.shape)
        matrix = matrix_of(phi, member)
        asked = np.arange(n) < n // 2
        scores = (proxy.score(matrix, RNG), lira.offline(matrix, RNG))
        aucs.append([shadow_world.auc(score[asked], member[0, asked]) for score in scores])
    ours, offline = np.mean(aucs, axis=0)
    assert ours > 0.8 and abs(offline - 0.5) < 0.08


def test_without_a_proxy_nothing_is_said() -> None:
    matrix = shadow_world.varied(20, 1, stream(5)).matrix(30, stream(5))[0]
    nowhere = replace(matrix, inside=np.full_like(matrix.inside, -1))
    assert not proxy.score(nowhere, RNG).any()


def test_a_querys_own_shadows_inside_are_not_used() -> None:
    matrix = shadow_world.varied(20, 1, stream(6)).matrix(30, stream(6))[0]
    shadows = matrix.shadows.copy()
    shadows[matrix.member[:, 3], -1, 3] += 50
    # Of other records it may be a proxy; its own score stays.
    moved = proxy.score(replace(matrix, shadows=shadows), RNG)
    assert moved[3] == pytest.approx(proxy.score(matrix, RNG)[3], rel=1e-9)


# CMIA.


def entangled(seed: int, n: int = 120, shadows: int = 256) -> tuple[SignalMatrix, np.ndarray]:
    """Ten records whose membership is plain to see, and moves everyone else's φ."""
    draw = stream(seed)
    member = draw.random((shadows + 1, n)) < 0.5
    effect = np.where(np.arange(n) < 10, 12.0, 1.0)
    influence = np.zeros((n, n))
    influence[:10, 10:] = draw.normal(0, 2, (10, n - 10))
    phi = effect * member + member @ influence + draw.normal(size=member.shape)
    return matrix_of(phi, member), member[0]


def test_what_is_known_of_others_sharpens_the_rest() -> None:
    rest, aucs = np.arange(120) >= 10, []
    for seed in range(3):
        matrix, member = entangled(seed)
        scores = conditional.score(matrix, stream()), lira.online(matrix, stream())
        aucs.append([shadow_world.auc(score[rest], member[rest]) for score in scores])
    given, plain = np.mean(aucs, axis=0)
    assert plain < 0.65 and given > plain + 0.08


def test_shadows_are_moved_by_a_regression_that_has_not_seen_them() -> None:
    """The closed form against one ridge regression a shadow, left out."""
    matrix, member = entangled(7, n=30, shadows=24)
    anchors = np.arange(6)
    moved = conditional.given(matrix, anchors, member[anchors])
    there = matrix.member[:, anchors].astype(float)
    inputs = there - there.mean(axis=0)
    phi = matrix.shadows[:, -1].astype(float)
    residual = conditional.within_sides(phi, matrix.member, np.isfinite(phi))
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    penalty = conditional._penalty(np.maximum(values, 0), vectors, residual)
    for s in range(24):
        others = np.arange(24) != s
        x, y = inputs[others], residual[others]
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(6), x.T @ y)
        np.testing.assert_allclose(moved.shadows[s, 0], phi[s] - inputs[s] @ weights, rtol=1e-6, atol=1e-8)
    weights = np.linalg.solve(inputs.T @ inputs + penalty * np.eye(6), inputs.T @ residual)
    weights[anchors, anchors] = 0
    shift = (member[anchors] - there.mean(axis=0)) @ weights
    np.testing.assert_allclose(moved.target[0], matrix.target[0] - shift, rtol=1e-6, atol=1e-8)


def test_where_nobody_is_sure_of_anyone_it_is_lira() -> None:
    matrix, _ = shadow_world.alike(300, 1, distance=0.0).matrix(64, stream(8))
    np.testing.assert_array_equal(conditional.score(matrix, stream()), lira.online(matrix, stream()))


def test_the_cut_is_the_lowest_that_is_right_often_enough() -> None:
    scores = np.array([5.0, 4.0, 4.0, 3.0, 2.0, 1.0])
    assert conditional._cut(scores, np.array([1, 1, 1, 1, 0, 0], bool), resolved=1) == 3.0
    assert conditional._cut(scores, np.array([1, 1, 0, 1, 0, 0], bool), resolved=1) == 5.0
    assert conditional._cut(scores, np.array([1, 1, 0, 1, 0, 0], bool), resolved=2) == np.inf
    assert conditional._cut(scores, np.zeros(6, bool), resolved=1) == np.inf
