"""Randomness from the operating system: its distribution, and that it never comes twice."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from scipy import stats

from fedsim.core.training import secure


def test_normal_numbers_have_the_deviation_and_the_shape_of_a_normal_distribution() -> None:
    found = secure.normal_(torch.empty(300, 200), 2.5)
    assert found.dtype == torch.float32 and found.shape == (300, 200)
    z = found.double().numpy().ravel() / 2.5
    # Limits that a correct sampler exceeds once in some 10⁵ runs.
    assert abs(z.mean()) < 4.5 / np.sqrt(len(z))
    assert z.var() == pytest.approx(1, abs=4.5 * np.sqrt(2 / len(z)))
    assert stats.kstest(z, "norm").pvalue > 1e-5


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    u = secure.uniform(50_000).numpy()
    assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-5


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_the_extremes_of_the_source_are_finite_and_symmetric(byte: int, monkeypatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda n: bytes([byte]) * n)
    assert 0 <= float(secure.uniform(1)[0]) < 1
    assert np.isfinite(secure.normal_(torch.empty(4), 1.0).numpy()).all()


def test_each_number_is_a_sum_of_four_whose_tails_are_as_precise_on_both_sides(monkeypatch) -> None:
    sign = iter([1, 1, 1, 1, 0, 0, 0, 0])
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n) if n == 8 else bytes([next(sign)] * n))
    up, down = (float(secure.normal_(torch.empty(1, dtype=torch.float64), 1.0)) for _ in range(2))
    assert up == -down
    assert abs(up) == pytest.approx(2 * -stats.norm.ppf(0.5 * 2.0**-54), rel=1e-12)  # 4 z / √4


def test_the_global_streams_do_not_matter() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(secure.normal_(torch.empty(8), 1.0))
    assert not torch.equal(*drawn)
