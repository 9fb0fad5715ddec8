"""Likelihood ratios of single records: right on scores whose ratio is known, silent where they would not
hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedsim.evaluation import evidence


def scores(shift: float, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores, the members' moved by ``shift``: ln LR of a score s is shift · s − shift² / 2."""
    stream = np.random.default_rng(seed)
    member = np.arange(2 * n) % 2 == 0
    return stream.normal(size=2 * n) + shift * member, member


def calibrated(shift: float, n: int = 400, seed: int = 0) -> evidence.Calibration:
    return evidence.calibrate(*scores(shift, n, seed), np.random.default_rng(1))


def test_ratios_are_those_of_two_normal_distributions() -> None:
    calibration = calibrated(1.0, 4000)
    assert calibration.refusal == ""
    asked = np.array([-1.0, 0.0, 0.5, 1.0, 2.0])
    expected = norm.pdf(asked, 1) / norm.pdf(asked)
    assert np.log(calibration.ratio(asked)) == pytest.approx(np.log(expected), abs=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_hold_on_records_left_out(seed: int) -> None:
    """Against fresh records, drawn again: of those called p, a share p are members."""
    calibration = calibrated(1.5, 1000, seed)
    fresh, member = scores(1.5, 5000, seed + 100)
    odds = calibration.ratio(fresh)
    probability = odds / (1 + odds)
    for low, high in ((0.1, 0.3), (0.3, 0.7), (0.7, 0.9)):
        inside = (probability >= low) & (probability < high)
        assert member[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.06)


def test_nothing_is_said_where_it_would_not_hold() -> None:
    assert "not shown to tell members" in calibrated(0.0).refusal
    assert "too few to calibrate on; 30 of each" in calibrated(3.0, n=20).refusal
    member = np.arange(200) % 2 == 0
    right = np.where(member, 0.8, 0.2)
    assert abs(evidence.spiegelhalter(np.full(200, 0.5) + 0.3 * (right - 0.5), member)) > 2.6


def test_the_test_of_calibration_is_its_published_formula() -> None:
    p, y = np.array([0.2, 0.9, 0.6]), np.array([False, True, False])
    top = (0 - 0.2) * (1 - 0.4) + (1 - 0.9) * (1 - 1.8) + (0 - 0.6) * (1 - 1.2)
    bottom = 0.6**2 * 0.2 * 0.8 + 0.8**2 * 0.9 * 0.1 + 0.2**2 * 0.6 * 0.4
    assert evidence.spiegelhalter(p, y) == pytest.approx(top / np.sqrt(bottom))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.02, 50))
def test_a_statement_follows_bayes_and_names_a_side_only_by_evidence(prior: float, ratio: float) -> None:
    calibration = calibrated(2.0, 60)
    said = evidence.state(calibration, ratio, prior)
    assert said.probability == pytest.approx(ratio * prior / (ratio * prior + 1 - prior))
    if said.member is True:
        assert ratio >= 3 and said.probability >= 0.9
    if said.member is False:
        assert ratio <= 1 / 3 and said.probability <= 0.1
    assert (
        1 / calibration.largest <= calibration.ratios.min() <= calibration.ratios.max() <= calibration.largest
    )
    again = evidence.state(calibration, ratio, prior)
    assert again == said or np.isnan(said.right.value)


def test_no_ratio_is_larger_than_the_records_can_show() -> None:
    calibration = calibrated(8.0, 50)
    assert calibration.largest == 51 and calibration.ratios.max() <= 51
    assert calibration.ratio(np.array([1e9]))[0] <= 51


def test_a_prior_is_a_probability() -> None:
    with pytest.raises(ValueError, match="prior 1"):
        evidence.state(calibrated(1.0), 2.0, 1.0)
