from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import log_ndtr
from scipy.stats import norm

from fedsim.core.privacy import gaussian, ledger

EPSILONS, DELTAS = st.floats(0.01, 100), st.floats(1e-9, 0.9)


def delta_by_the_formula(epsilon: float, z: float) -> float:
    """Balle & Wang 2018, theorem 8, as it stands."""
    centre, shift = 1 / (2 * z), epsilon * z
    first, second = float(log_ndtr(centre - shift)), epsilon + float(log_ndtr(-centre - shift))
    return max(0.0, -math.exp(first) * math.expm1(min(0.0, second - first)))


@given(EPSILONS, DELTAS)
def test_the_conversions_are_the_formulas(epsilon: float, delta: float) -> None:
    z = gaussian.noise_for(epsilon, delta)
    assert delta_by_the_formula(epsilon, z) == pytest.approx(delta, rel=1e-6)
    assert gaussian.delta_of(epsilon, z) == pytest.approx(delta_by_the_formula(epsilon, z), rel=1e-6)
    assert delta_by_the_formula(gaussian.epsilon_of(delta, z), z) == pytest.approx(delta, rel=1e-6)


@given(EPSILONS, DELTAS)
def test_epsilon_delta_and_noise_are_inverses(epsilon: float, delta: float) -> None:
    z = gaussian.noise_for(epsilon, delta)
    assert gaussian.delta_of(epsilon, z) == pytest.approx(delta, rel=1e-6)
    assert gaussian.epsilon_of(delta, z) == pytest.approx(epsilon, rel=1e-5)


@given(st.floats(0.3, 20), st.floats(0, 5))
def test_delta_is_the_integral_of_what_one_density_has_above_the_other(z: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return max(0.0, float(norm.pdf(x, 1, z) - math.exp(epsilon) * norm.pdf(x, 0, z)))

    start = 0.5 + epsilon * z**2  # where the two are equal
    expected = quad(excess, start, max(start, 1) + 12 * z, epsabs=1e-14, limit=200)[0]
    assert gaussian.delta_of(epsilon, z) == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 4.377178), (2.0, 9.997256), (1.859714, 9.143879)])
def test_published_values(mu: float, epsilon: float) -> None:
    assert gaussian.epsilon_of(1e-5, 1 / mu) == pytest.approx(epsilon, abs=5e-6)


@pytest.mark.parametrize(("z", "k"), [(1.0, 1), (4.0, 40), (10.0, 100)])
def test_releases_compose_as_the_accountant_says(z: float, k: int) -> None:
    upper = ledger.Ledger().add(z, 1.0, k).epsilon(1e-5, "prv")  # its own error bound of .01 included
    assert 0 <= upper - gaussian.epsilon_of(1e-5, z, k) <= 0.02


def test_nothing_released_costs_nothing() -> None:
    assert gaussian.epsilon_of(1e-5, 1.0, 0) == 0.0
    assert gaussian.epsilon_of(0.9, 100.0) == 0.0
