from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import rankdata, spearmanr
from support import shadow_world

from attacks.matrix import rmia
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


def world(seed: int, n: int = 30, shadows: int = 24) -> tuple[SignalMatrix, np.ndarray]:
    stream = np.random.default_rng(seed)
    return shadow_world.varied(n, 1, stream).matrix(shadows, stream)


def transcribed(matrix: SignalMatrix, gamma: float, slope: float | None = None) -> list[float]:
    """The published equation, record by record; ``slope`` None means online."""
    phi, target = expit(matrix.shadows[:, -1].astype(float)), expit(matrix.target[-1].astype(float))
    ratios = []
    for x in range(len(target)):
        inside = np.mean([p[x] for p, member in zip(phi, matrix.member, strict=True) if member[x]])
        outside = np.mean([p[x] for p, member in zip(phi, matrix.member, strict=True) if not member[x]])
        general = (inside + outside) / 2 if slope is None else ((1 + slope) * outside + (1 - slope)) / 2
        ratios.append(target[x] / general)
    return [
        float(np.mean([ratios[x] / ratios[z] >= gamma for z in range(len(ratios)) if z != x]))
        for x in range(len(ratios))
    ]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.7])
def test_scores_are_a_slow_transcription_of_the_equation(gamma: float) -> None:
    matrix, _ = world(0)
    np.testing.assert_allclose(rmia.online(matrix, RNG, gamma=gamma), transcribed(matrix, gamma))
    for slope in (0.0, 0.3, 1.0):
        found = rmia.offline(matrix, RNG, slope=slope, gamma=gamma)
        np.testing.assert_allclose(found, transcribed(matrix, gamma, slope))


def test_offline_scores_equal_those_of_privacy_meter() -> None:
    matrix, known = shadow_world.published()
    n = matrix.member.shape[1]
    for slope, theirs in known["rmia_offline"].items():
        # Theirs counts the record itself among the n that it might dominate, and never says it does.
        found = rmia.offline(matrix, RNG, slope=float(slope))
        np.testing.assert_allclose(found * (n - 1) / n, theirs, atol=1e-12)


@settings(max_examples=60)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.floats(0.05, 20))
def test_dominated_counts_pairs(ratios: list[int], gamma: float) -> None:
    found = rmia.dominated(np.array(ratios, dtype=float), gamma)
    for i, x in enumerate(ratios):
        others = [z for j, z in enumerate(ratios) if j != i]
        assert found[i] == pytest.approx(np.mean([z <= x - np.log(gamma) for z in others]) if others else 0.0)


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_gamma_is_positive(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        rmia.dominated(np.zeros(3), gamma)


@given(st.integers(0, 10**6), st.floats(0.2, 5))
@settings(max_examples=30)
def test_gamma_never_turns_two_records_around(seed: int, gamma: float) -> None:
    matrix, _ = world(seed, n=12)
    one, other = rmia.online(matrix, RNG), rmia.online(matrix, RNG, gamma=gamma)
    assert (np.diff(other[np.argsort(one)]) >= 0).all()


def test_ratios_of_memorised_records_are_not_rounded() -> None:
    """All p_y are 1 to the last bit; what is missing to 1 still tells which ratio is larger."""
    stream = np.random.default_rng(1)
    member = stream.random((40, 50)) < 0.5
    phi = 60 + stream.normal(size=(41, 50))
    assert (expit(phi) == 1).all()
    inside = np.where(member, 0, -1).astype(np.int8)
    zeros = np.zeros(50, dtype=np.int8)
    matrix = SignalMatrix(phi[:1], phi[1:, None], inside, np.array([1]), zeros, zeros)
    missing = np.exp(-phi)
    sides = [(missing[1:, i][member[:, i]], missing[1:, i][~member[:, i]]) for i in range(50)]
    general = [(theirs.mean() + others.mean()) / 2 for theirs, others in sides]
    expected = np.array(general) - missing[0]  # log (1 − a) / (1 − b) = b − a for small a and b
    np.testing.assert_array_equal(rankdata(rmia.online(matrix, RNG)), rankdata(expected))


def test_offline_extrapolates_what_members_would_look_like() -> None:
    """Where Pr_in = a Pr_out + (1 − a) holds, offline with that a ranks as online does."""
    stream = np.random.default_rng(2)
    n, shadows, a = 600, 200, 0.6
    outside = stream.uniform(0.05, 0.95, n)
    member = stream.random((shadows + 1, n)) < 0.5
    mean = np.where(member, a * outside + (1 - a), outside)
    p = np.clip(mean + 0.02 * stream.normal(size=mean.shape), 1e-3, 1 - 1e-3)
    phi = np.log(p / (1 - p)).astype(np.float32)
    zeros = np.zeros(n, dtype=np.int8)
    inside = np.where(member[1:], 0, -1).astype(np.int8)
    matrix = SignalMatrix(phi[:1], phi[1:, None], inside, np.array([1]), zeros, zeros)
    online = rmia.online(matrix, RNG)
    assert spearmanr(rmia.offline(matrix, RNG, slope=a), online).statistic > 0.999
    assert spearmanr(rmia.offline(matrix, RNG, slope=0.0), online).statistic < 0.99
    chosen = shadow_world.auc(rmia.offline(matrix, RNG), member[0])
    aucs = [shadow_world.auc(rmia.offline(matrix, RNG, slope=s), member[0]) for s in rmia.SLOPES]
    assert chosen > max(aucs) - 0.01
    assert max(aucs) > min(aucs) + 0.03


@pytest.mark.parametrize("seed", range(6))
def test_the_chosen_slope_is_that_of_explicit_rehearsals(seed: int) -> None:
    """A slow twin: each shadow as the target of the matrix without it."""
    matrix, _ = world(seed, n=200, shadows=5)
    gains = np.zeros(len(rmia.SLOPES))
    for j in range(5):
        rehearsal, member = shadow_world.rehearsal(matrix, j)
        scores = [rmia.offline(rehearsal, RNG, slope=a) for a in rmia.SLOPES]
        gains += [shadow_world.auc(s, member) for s in scores]
    outside = rmia._reference(matrix, ~matrix.member)
    found = rmia.best_slope(matrix, outside, np.random.default_rng(0))
    assert gains[list(rmia.SLOPES).index(found)] == pytest.approx(gains.max(), rel=1e-12)


def test_members_of_varied_records_are_found_on_and_offline() -> None:
    matrix, member = world(4, n=2000, shadows=64)
    online = shadow_world.auc(rmia.online(matrix, RNG), member)
    offline = shadow_world.auc(rmia.offline(matrix, RNG), member)
    plain = shadow_world.auc(matrix.target[-1], member)
    assert online > plain + 0.05 and offline > plain + 0.02


def test_scores_are_shares() -> None:
    matrix, _ = world(5)
    for score in (rmia.online, rmia.offline):
        found = score(replace(matrix, labels=matrix.labels), RNG)
        assert (found >= 0).all() and (found <= 1).all()
        np.testing.assert_allclose(found * 29, np.round(found * 29))


def test_a_shadow_is_taken_out_of_the_means_exactly() -> None:
    matrix, _ = world(6)
    outside = rmia._reference(matrix, ~matrix.member)
    for j in (0, 7):
        rehearsal, member = shadow_world.rehearsal(matrix, j)
        found = rmia._without(outside, matrix.shadows[j, -1], ~member)
        for one, other in zip(found, rmia._reference(rehearsal, ~rehearsal.member), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
