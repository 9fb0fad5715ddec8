"""What DP allows any attack, against a linear programme over all mechanisms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from fedsim.evaluation import guarantees

# What DP leaves


def largest_auc(epsilon: float, delta: float) -> float:
    """The bound as a linear programme: any chance of 'i above j' in four worlds that DP allows.

    Worlds: i in and j out, both out, both in, j in and i out; to maximise P(i above j) in the first plus
    P(j above i) in the last, halved.
    """
    factor, rows, limits = math.exp(epsilon), [], []
    for first, second in [(0, 1), (0, 2), (1, 3), (2, 3)]:
        for a, b in ((first, second), (second, first)):
            row = np.zeros(4)
            row[a], row[b] = 1, -factor
            rows += [row, -row]  # of 'i above j': x_a − e^ε x_b ≤ δ; of its complement
            limits += [delta, delta + factor - 1]
    found = linprog([-0.5, 0, 0, 0.5], A_ub=np.array(rows), b_ub=limits, bounds=(0, 1))
    return 0.5 - float(found.fun)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0, 5.0])  # beyond, the solver's tolerance is too coarse
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.05])
def test_the_bounds_of_dp_are_a_linear_programmes(epsilon: float, delta: float) -> None:
    assert guarantees.auc_bound(epsilon, delta) == pytest.approx(largest_auc(epsilon, delta), abs=1e-7)
    advantage = guarantees.advantage_bound(epsilon, delta)
    assert advantage == pytest.approx(2 * guarantees.auc_bound(epsilon, delta) - 1)
    assert guarantees.auc_bound(math.inf, delta) == 1


def test_laplace_noise_on_a_sum_reaches_the_bound() -> None:
    """Record i counts 1, record j −1; whoever is in moves the sum, and i is put above j where it is > 0."""
    stream, epsilon = np.random.default_rng(0), 1.0
    sums = np.where(stream.random(200_000) < 0.5, 1, -1)  # i in and j out, or j in and i out
    right = np.mean((sums + stream.laplace(0, 1 / epsilon, len(sums)) > 0) == (sums > 0))
    assert right == pytest.approx(guarantees.auc_bound(epsilon, 0), abs=0.003)
    assert right > math.e / (1 + math.e) + 0.05  # the area under one record's region is exceeded


def largest_tpr(fpr: float, epsilon: float, delta: float) -> float:
    """The linear program: TPR and r, r and FPR, each pair (ε, δ)-close in both directions."""
    e = math.exp(epsilon)
    rows, sides = [], []
    for a, b in ((0, 1), (1, 2)):  # variables: TPR, r, FPR
        for x, y in ((a, b), (b, a)):
            close, complement = np.zeros(3), np.zeros(3)
            close[x], close[y] = 1, -e  # x ≤ e y + δ
            complement[x], complement[y] = -1, e  # 1 − x ≤ e (1 − y) + δ
            rows += [close, complement]
            sides += [delta, e - 1 + delta]
    bounds = [(0, 1), (0, 1), (fpr, fpr)]
    return float(-linprog([-1, 0, 0], A_ub=np.array(rows), b_ub=sides, bounds=bounds).fun)


@given(fpr=st.floats(0, 1), epsilon=st.floats(0, 6), delta=st.floats(0, 0.3))
def test_the_tpr_that_dp_allows_is_a_linear_program_s(fpr: float, epsilon: float, delta: float) -> None:
    assert guarantees.tpr_bound(fpr, epsilon, delta) == pytest.approx(
        largest_tpr(fpr, epsilon, delta), abs=1e-6
    )


@given(tpr=st.floats(0, 1), fpr=st.floats(1e-4, 1), delta=st.floats(0, 0.1))
def test_the_epsilon_that_rates_need_is_the_smallest_that_allows_them(
    tpr: float, fpr: float, delta: float
) -> None:
    needed = guarantees.epsilon_needed(tpr, fpr, delta)
    assert guarantees.tpr_bound(fpr, needed + 1e-6, delta) >= tpr - 1e-9
    if 1e-6 < needed < math.inf:
        assert guarantees.tpr_bound(fpr, needed - 1e-6, delta) < tpr


def test_to_be_certain_of_a_member_needs_an_infinite_epsilon() -> None:
    assert guarantees.epsilon_needed(1.0, 0.5, 0.0) == math.inf
    assert guarantees.epsilon_needed(1.0, 0.5, 1e-5) < math.inf
    assert guarantees.epsilon_needed(1.0, 1.0, 0.0) == 0


def test_the_epsilon_that_rates_need_by_hand() -> None:
    # Two records apart, without δ: TPR ≤ e^{2ε} FPR where that is small.
    assert guarantees.epsilon_needed(0.04, 0.01, 0.0) == pytest.approx(math.log(4) / 2)
    assert guarantees.epsilon_needed(0.01, 0.02, 0.0) == 0.0
    assert guarantees.epsilon_needed(0.5, 0.0, 0.0) == math.inf


def test_without_dp_every_tpr_is_allowed() -> None:
    assert guarantees.tpr_bound(0.0, math.inf, 1e-5) == 1
    assert guarantees.tpr_bound(0.001, 1e6, 0.0) == 1
