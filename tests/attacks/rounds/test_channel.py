"""The channel against explicit matrices, explicit refits, and a channel whose best decoder is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.rounds.channel import COLUMNS, Intercepts, Products, Reading, Variances, read_rows, read_targets

PRIOR = 0.5


def example(
    seed: int, noise: float = 0.0, n: int = 7, others: int = 5, size: int = 9
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Variances]:
    """Rows (n + others, size), an update, targets, and variances; the last row is a further vector."""
    stream = np.random.default_rng(seed)
    rows, targets = stream.normal(size=(n + others, size)), stream.normal(size=(4, size))
    bits, sampled = np.zeros(n + others), stream.uniform(0.2, 1, n + others)
    bits[: n - 2], bits[-1], sampled[-1] = 0.25, 1.3, 0.0
    return rows, stream.normal(size=size), targets, Variances(bits, sampled, noise)


def slow(
    rows: np.ndarray, x: np.ndarray, target: np.ndarray, variances: Variances, ridge: float, own: int | None
) -> tuple[float, float, float]:
    """A, H and σ by explicit q × q matrices, each fitted anew without what it must not have seen."""
    keep = np.arange(len(rows)) != own if own is not None else np.ones(len(rows), bool)
    unit = (ridge + variances.noise) * np.eye(len(x))

    def weights(left_out: int | None = None) -> np.ndarray:
        used = keep & (np.arange(len(rows)) != left_out)
        covariance = (rows[used].T * variances.weight[used]) @ rows[used] + unit
        return np.linalg.solve(covariance, target)

    variance = variances.noise * np.sum(weights() ** 2)
    for j in np.flatnonzero(keep):
        variance += variances.bits[j] * (rows[j] @ weights()) ** 2
        variance += variances.sampled[j] * (rows[j] @ weights(j)) ** 2
    return float(weights() @ x), float(weights() @ target), float(np.sqrt(variance))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 0.1, 3.0]), st.sampled_from([0.0, 0.5]))
def test_rows_are_read_as_by_explicit_refits_without_them(seed: int, ridge: float, noise: float) -> None:
    rows, x, targets, variances = example(seed, noise)
    reading = read_rows(Products.of(rows, x, targets), variances, ridge, 7)
    expected = np.array([slow(rows, x, rows[i], variances, ridge, i) for i in range(7)])
    for i, part in enumerate((reading.amplitude, reading.gain, reading.deviation)):
        np.testing.assert_allclose(part, expected[:, i], rtol=1e-6)


@pytest.mark.parametrize("size", [COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 100])
def test_products_are_of_all_coordinates_however_many_are_formed_at_a_time(size: int) -> None:
    rows, x, targets, _ = example(0, size=size)
    products = Products.of(rows.astype(np.float32), x, targets)
    rows = rows.astype(np.float32).astype(np.float64)
    expected = (rows @ rows.T, rows @ x, rows @ targets.T, np.square(targets).sum(axis=1), targets @ x)
    for found, whole in zip(products._parts(), expected, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9 * size)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 0.1, 3.0]), st.sampled_from([0.0, 0.5]))
def test_targets_are_read_as_by_explicit_matrices(seed: int, ridge: float, noise: float) -> None:
    rows, x, targets, variances = example(seed, noise)
    reading = read_targets(Products.of(rows, x, targets), variances, ridge)
    expected = np.array([slow(rows, x, target, variances, ridge, None) for target in targets])
    for i, part in enumerate((reading.amplitude, reading.gain, reading.deviation)):
        np.testing.assert_allclose(part, expected[:, i], rtol=1e-6)


def with_intercepts(seed: int, noise: float) -> tuple[Intercepts, tuple, list[tuple[float, float, float]]]:
    """`example` with two intercepts, and its rows and targets read by explicit wide matrices."""
    rows, x, targets, variances = example(seed, noise)
    stream = np.random.default_rng(seed + 1)
    centres = Intercepts(stream.uniform(0, 1, (len(rows), 2)), stream.uniform(0, 1, (len(targets), 2)))
    size, ridge = len(x), 0.1
    wide, plain = np.hstack([rows, centres.rows]), np.pad(rows, ((0, 0), (0, 2)))
    expected = []
    for own in [*range(7), None, None, None, None]:
        target = len(expected) - 7 if own is None else own
        vector = np.r_[targets[target], centres.targets[target]] if own is None else wide[own]
        content = np.r_[targets[target], 0, 0] if own is None else plain[own]
        keep = np.arange(len(rows)) != own if own is not None else np.ones(len(rows), bool)

        def weights(left_out: int | None = None, vector=vector, keep=keep) -> np.ndarray:
            used = keep & (np.arange(len(rows)) != left_out)
            covariance = (wide[used].T * variances.weight[used]) @ wide[used]
            return np.linalg.solve(covariance + (ridge + noise) * np.eye(size + 2), vector)

        variance = noise * np.sum(weights()[:size] ** 2)
        for j in np.flatnonzero(keep):
            variance += variances.bits[j] * (plain[j] @ weights()) ** 2
            variance += variances.sampled[j] * (plain[j] @ weights(j)) ** 2
        expected.append((weights()[:size] @ x, weights() @ content, float(np.sqrt(variance))))
    return centres, (Products.of(rows, x, targets), variances, ridge), expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_intercepts_are_coordinates_in_which_the_update_is_nothing(seed: int, noise: float) -> None:
    centres, (products, variances, ridge), expected = with_intercepts(seed, noise)
    found = Reading.joined([
        read_rows(products, variances, ridge, 7, centres), read_targets(products, variances, ridge, centres),
    ])  # fmt: skip
    for i, part in enumerate((found.amplitude, found.gain, found.deviation)):
        np.testing.assert_allclose(part, np.array(expected)[:, i], rtol=1e-6)


def test_with_an_intercept_a_row_is_read_as_if_the_others_were_centred_without_it() -> None:
    stream, ridge, n = np.random.default_rng(5), 1e-6, 12
    raw, x = stream.normal(size=(n, 30)), stream.normal(size=30)
    rows, variances = raw - raw.mean(axis=0), Variances(np.zeros(n), np.full(n, 0.7))
    centre = Intercepts(np.full((n, 1), 1000.0), np.ones((0, 1)))  # large beside the rows: no prior on it
    reading = read_rows(Products.of(rows, x, rows[:0]), variances, ridge, n, centre)
    for i in range(n):
        others = np.delete(raw, i, axis=0)
        middle = others.mean(axis=0)
        covariance = 0.7 * (others - middle).T @ (others - middle) + ridge * np.eye(30)
        expected = np.linalg.solve(covariance, raw[i] - middle) @ x
        assert reading.amplitude[i] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("known", [False, True])
def test_of_fewer_rows_than_coordinates_spreads_are_true_only_with_the_intercept(known: bool) -> None:
    """60 signatures less their mean, an update of 60 unknown draws: nobody's membership is in it."""
    stream, spread = np.random.default_rng(0), []
    for _ in range(40):
        raw = stream.normal(size=(60, 300)) / np.sqrt(np.arange(1, 301))
        rows = raw - raw.mean(axis=0)
        x = (stream.normal(size=(60, 300)) / np.sqrt(np.arange(1, 301))).sum(axis=0) - 60 * raw.mean(axis=0)
        weights = Variances(np.zeros(60), np.full(60, 60 * (1 + 60 / 60) / 60))
        centre = Intercepts(np.ones((60, 1)), np.ones((0, 1))) if known else None
        reading = read_rows(Products.of(rows, x, rows[:0]), weights, 1e-5, 60, centre)
        spread.append(np.mean((reading.amplitude / reading.deviation) ** 2))
    assert (0.7 < np.mean(spread) < 1.5) == known, np.mean(spread)


def test_products_of_rounds_add_up_to_those_of_rows_joined_end_to_end() -> None:
    first, second = example(1), example(2, size=13)
    parts = [Products.of(*each[:3]) for each in (first, second)]
    joined = (np.concatenate(pair, axis=-1) for pair in zip(first[:3], second[:3], strict=True))
    whole, added = Products.of(*joined), Products.total(parts)
    np.testing.assert_allclose(added.gram, whole.gram)
    np.testing.assert_allclose(added.target_received, whole.target_received)
    np.testing.assert_allclose(parts[0].scaled(3.0).cross, 3 * parts[0].cross)


# ------------------------------------------------------------------------- a channel that is truly Gaussian
def transmission(
    stream: np.random.Generator, n: int = 200, unknown: int = 100, size: int = 40
) -> tuple[Reading, np.ndarray, np.ndarray]:
    """What is read of one use of a synthetic channel, who was in it, and the best possible ratios.

    Signatures, unknown members and residuals are Gaussian with covariances that the reader must learn.
    """
    spectrum = 1 / np.arange(1, size + 1)
    population, background = np.sqrt(spectrum), np.sqrt(spectrum[::-1]) * 2
    s = stream.normal(size=(n, size)) * population
    s -= s.mean(axis=0)
    member = stream.random(n) < PRIOR
    x = (member - PRIOR) @ s + (stream.normal(size=(unknown, size)) * population).sum(axis=0)
    x += stream.normal(size=size) * background
    residuals = stream.normal(size=(400, size)) * background
    rows = np.concatenate([s, residuals])
    bits = np.r_[np.full(n, 0.25), np.zeros(400)]
    sampled = np.r_[np.full(n, unknown / n), np.full(400, 1 / 400)]
    reading = read_rows(Products.of(rows, x, s[:0]), Variances(bits, sampled), 1e-2, n)
    covariance = np.diag(unknown * spectrum + background**2)
    whole = covariance + PRIOR * (1 - PRIOR) * s.T @ s
    best = []
    for row in s:
        solved = np.linalg.solve(whole - 0.25 * np.outer(row, row), row)
        best.append(solved @ x)  # π = ½: the ratio of two Gaussians a signature apart
    return reading, member, np.array(best)


@pytest.fixture(scope="module")
def transmissions() -> list[tuple[Reading, np.ndarray, np.ndarray]]:
    return [transmission(np.random.default_rng(seed)) for seed in range(20)]


def test_ratios_are_close_to_the_best_that_any_reader_of_one_record_could_have(
    transmissions: list[tuple[Reading, np.ndarray, np.ndarray]],
) -> None:
    ratios = np.concatenate([reading.likelihood_ratio(PRIOR) for reading, _, _ in transmissions])
    best = np.concatenate([each for _, _, each in transmissions])
    assert np.corrcoef(ratios, best)[0, 1] > 0.9


def test_ratios_are_tempered_only_where_amplitudes_spread_more_than_the_channel_says(
    transmissions: list[tuple[Reading, np.ndarray, np.ndarray]],
) -> None:
    plain = [reading.tempering(PRIOR) for reading, _, _ in transmissions]
    assert max(plain) <= 1 and np.mean(plain) > 0.85
    wide = [
        Reading(2 * one.amplitude, one.gain, one.deviation).tempering(PRIOR) for one, _, _ in transmissions
    ]
    assert np.mean(wide) < 0.35, "four times the variance, a quarter of the ratio"


@pytest.mark.parametrize("separation", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("wider", [1.0, 4.0, 20.0])
def test_a_deviation_that_is_too_small_is_seen_whatever_separation_it_claims(
    separation: float, wider: float
) -> None:
    """σ' = ``wider`` σ: ratios are divided by its square; what members add to the spread is no part of it."""
    stream, n = np.random.default_rng(0), 200_000
    member = stream.random(n) < PRIOR
    amplitude = (member - PRIOR) * separation + wider * stream.normal(size=n)
    reading = Reading(amplitude, np.full(n, separation), np.ones(n))
    tolerance = 0.02 + 0.02 * separation**2 / wider**2 / 4
    assert reading.tempering(PRIOR) == pytest.approx(wider**-2.0, rel=tolerance)


def test_standardised_amplitudes_are_calibrated_in_mean_and_spread(
    transmissions: list[tuple[Reading, np.ndarray, np.ndarray]],
) -> None:
    z = [reading.standardised(PRIOR) for reading, _, _ in transmissions]
    outside = np.concatenate([each[~m] for each, (_, m, _) in zip(z, transmissions, strict=True)])
    inside = np.concatenate([each[m] for each, (_, m, _) in zip(z, transmissions, strict=True)])
    expected = np.concatenate([reading.separation[m] for reading, m, _ in transmissions]).mean()
    assert abs(outside.mean()) < 0.1
    assert 0.9 < outside.std() < 1.15
    assert abs(inside.mean() - expected) < 0.1


def test_noise_of_known_variance_lowers_the_separation() -> None:
    rows, x, targets, quiet = example(3)
    loud = Variances(quiet.bits, quiet.sampled, 5.0)
    products = Products.of(rows, x, targets)
    # λ = ridge + τ² is the same, and so is V: only what the amplitudes vary by differs.
    pairs = (
        (read_rows(products, loud, 0.1, 7), read_rows(products, quiet, 5.1, 7)),
        (read_targets(products, loud, 0.1), read_targets(products, quiet, 5.1)),
    )
    for noisy, silent in pairs:
        np.testing.assert_allclose(noisy.gain, silent.gain)
        assert (noisy.deviation > silent.deviation).all()


@pytest.mark.parametrize("stretched", [1.0, 1.5, 4.0])
def test_a_gain_that_is_larger_than_predicted_is_seen_where_all_the_noise_is_known(stretched: float) -> None:
    stream, n, separation = np.random.default_rng(0), 50_000, 1.4
    member = stream.random(n) < PRIOR
    amplitude = stretched * separation**2 * (member - PRIOR) + separation * stream.normal(size=n)
    reading = Reading(amplitude, np.full(n, separation**2), np.full(n, separation))
    assert reading.stretching(PRIOR) == pytest.approx(stretched, rel=0.05)
    narrow = replace(reading, deviation=2 * reading.deviation)
    assert narrow.stretching(PRIOR) == 1 or stretched > 2, "what spreads less than said is not stretched"
