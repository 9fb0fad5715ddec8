"""GLiR and the covariance attack: the tests are the papers', and find what there is in simulated rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal, ncx2, norm
from support.rounds import World, dp, world
from support.shadow_world import auc

from attacks.rounds import whitened
from attacks.rounds.whitened import Whitened, chi_squared, inner_product, whiten
from fedsim.core.data.records import Pool
from fedsim.core.scenario.training import TrainingSettings

RNG = np.random.default_rng(0)
ONE_STEP = TrainingSettings(lr=0.2, batch=16, epochs=1)
attacks = pytest.mark.parametrize("score", [whitened.likelihood, whitened.covariance])
statistics = pytest.mark.parametrize("statistic", [chi_squared, inner_product])


def drawn(seed: int, n: int = 40, degrees: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of 2n candidates of which n are members, of a population, their mean; the truth."""
    stream = np.random.default_rng(seed)
    mixing = stream.normal(size=(degrees, degrees))
    centre = stream.normal(size=degrees) * 3
    candidates, population = (stream.normal(size=(k, degrees)) @ mixing + centre for k in (2 * n, 1000))
    member = stream.permutation(2 * n) < n
    return candidates, population, candidates[member].mean(axis=0), member


def test_glir_is_the_tail_of_a_non_central_chi_squared() -> None:
    """Within the range in which SciPy's distribution function is exact: Sankaran's error is some .001."""
    stream = np.random.default_rng(1)
    seen = Whitened(stream.normal(size=(200, 12)), stream.normal(size=12) / np.sqrt(30), 30)
    distance = 29 * ((seen.update - seen.candidates) ** 2).sum(axis=1)
    expected = ncx2.cdf(distance, 12, 30 * (seen.candidates**2).sum(axis=1))
    np.testing.assert_allclose(np.exp(-chi_squared(seen)), expected, atol=3e-3)


def test_the_covariance_attack_is_the_ratio_of_two_gaussian_densities() -> None:
    candidates, population, mean, _ = drawn(2)
    centre, sigma, n = population.mean(axis=0), np.cov(population.T, bias=True), 40
    expected = [
        multivariate_normal.logpdf(mean, centre + (g - centre) / n, sigma / n)
        - multivariate_normal.logpdf(mean, centre, sigma / n)
        for g in candidates
    ]
    root = np.linalg.inv(np.linalg.cholesky(sigma))
    seen = Whitened((candidates - centre) @ root.T, root @ (mean - centre), n)
    np.testing.assert_allclose(inner_product(seen), expected, rtol=1e-6, atol=1e-8)


def test_whitened_gradients_have_no_direction_of_their_own() -> None:
    _, population, mean, _ = drawn(3)
    seen = whiten(population, population, -0.3 * mean, 40)
    assert seen is not None
    covariance = seen.candidates.T @ seen.candidates / len(population)
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=1e-8)
    np.testing.assert_allclose(seen.candidates.mean(axis=0), 0, atol=1e-8)
    again = whiten(population, population, -7.0 * mean, 40)  # the rate is fitted
    assert again is not None
    np.testing.assert_allclose(again.update, seen.update, rtol=1e-6, atol=1e-9)


@statistics
def test_a_mean_tells_its_members(statistic) -> None:
    """As the theory has it, AUC ≈ Φ(√(d/2n)): two Gaussians whose means lie √(d/n) deviations apart."""
    aucs = []
    for seed in range(10):
        candidates, population, mean, member = drawn(seed)
        seen = whiten(candidates, population, -mean, 40)
        assert seen is not None
        aucs.append(auc(statistic(seen), member))
    assert np.mean(aucs) == pytest.approx(norm.cdf(np.sqrt(20 / 40) / np.sqrt(2)), abs=0.06)


@statistics
def test_a_mean_of_others_tells_nothing(statistic) -> None:
    aucs = []
    for seed in range(10):
        candidates, population, _, member = drawn(seed)
        seen = whiten(candidates, population, -population[:40].mean(axis=0), 40)
        assert seen is not None
        aucs.append(auc(statistic(seen), member))
    assert abs(np.mean(aucs) - 0.5) < 0.05


def test_what_says_nothing_is_no_evidence() -> None:
    nothing = np.zeros((5, 3))
    assert whiten(nothing, nothing, np.zeros(3), 10) is None
    _, population, mean, _ = drawn(4)
    assert whiten(population, population, mean, 40) is None  # away from where the gradients point


def found(score, given: World) -> np.ndarray:
    return score(given.view, given.candidates, RNG)


@attacks
def test_members_are_found_in_a_round_and_only_where_they_are(score) -> None:
    there = [world(seed, training=ONE_STEP) for seed in range(6)]
    absent = [world(seed, training=ONE_STEP, learns=False) for seed in range(6)]
    areas = [np.mean([auc(found(score, each), each.member) for each in side]) for side in (there, absent)]
    assert areas[0] > 0.6 and abs(areas[1] - 0.5) < 0.1


@attacks
def test_order_truth_and_auxiliary_views(score) -> None:
    given = world(1, told=True)
    plain = found(score, given)
    assert plain.dtype == np.float64 and np.isfinite(plain).all() and np.ptp(plain) > 0
    order = np.random.default_rng(3).permutation(len(given.candidates))
    party = given.view.candidate_party[order]
    moved = replace(given.view, candidate_party=party)
    np.testing.assert_array_equal(score(moved, given.candidates.take(order), RNG), plain[order])
    flipped = replace(given, member=~given.member)
    np.testing.assert_array_equal(found(score, flipped), plain)


@attacks
def test_in_the_open_world_a_candidate_is_scored_by_itself(score) -> None:
    given = world(2)
    view = given.view
    owned = Pool(given.candidates.take(np.arange(12)), np.full(12, -1))
    assumed = view.assumptions.model_copy(update={"auxiliary": "disjoint", "worlds": ["none"]})
    view = replace(view, auxiliary=owned, assumptions=assumed, candidate_party=None)
    asked = given.candidates.take(np.arange(12, 32))
    together = score(view, asked, RNG)
    alone = [score(view, asked.take(np.array([i])), RNG)[0] for i in range(3)]
    np.testing.assert_allclose(alone, together[:3], rtol=1e-5)


def test_both_attacks_read_the_same_rounds_once() -> None:
    given = world(4)
    asked = [given.candidates, given.candidates.take(np.arange(10)), given.candidates]
    first, few, again = (whitened.likelihood(given.view, each, RNG) for each in asked)
    np.testing.assert_array_equal(first, again)
    assert len(few) == 10
    fresh = replace(given.view)
    np.testing.assert_array_equal(
        whitened.covariance(given.view, given.candidates, RNG),
        whitened.covariance(fresh, given.candidates, RNG),
    )


@attacks
def test_where_no_update_can_be_read_nothing_is_said(score) -> None:
    given = world(0)
    last = replace(given.view, models={2: given.view.models[2]}, start=given.view.models[0])
    assert not score(last, given.candidates, RNG).any()


@attacks
def test_noise_hides_members(score) -> None:
    aucs = []
    for noise in (0.0, 20.0):
        worlds = [world(seed, privacy=dp(noise)) for seed in range(4)]
        aucs.append(np.mean([auc(found(score, each), each.member) for each in worlds]))
    assert aucs[1] < aucs[0]
