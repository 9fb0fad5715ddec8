"""The loss against its definition, and its slope against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.training import losses


def a_batch(records: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.default_rng(seed)
    logits = torch.tensor(stream.normal(size=(records, classes)) * 3)
    return logits, torch.tensor(stream.integers(0, classes, records))


@given(st.integers(1, 6), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 99))
def test_cross_entropy_is_what_its_definition_says(
    records: int, classes: int, smoothing: float, seed: int
) -> None:
    logits, labels = a_batch(records, classes, seed)
    targets = losses.soft_targets(labels, classes, smoothing).double()
    expected = []
    for z, y in zip(logits.numpy(), labels.numpy(), strict=True):
        log_p = z - np.log(np.exp(z).sum())
        expected.append(-((1 - smoothing) * log_p[y] + smoothing / classes * log_p.sum()))
    np.testing.assert_allclose(losses.per_record(logits, targets), expected, rtol=1e-5)
    assert float(losses.total(logits, targets)) == pytest.approx(np.sum(expected), rel=1e-5)
    assert float(losses.mean(logits, targets)) == pytest.approx(np.mean(expected), rel=1e-5)
    if smoothing == 0:
        np.testing.assert_allclose(losses.per_record(logits, labels), expected, rtol=1e-9)


@given(st.integers(1, 6), st.integers(2, 5), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_the_slope_is_autograds(records: int, classes: int, smoothing: float, seed: int) -> None:
    logits, labels = a_batch(records, classes, seed)
    targets = losses.soft_targets(labels, classes, smoothing).double()
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(losses.total(logits, targets), logits)
    np.testing.assert_allclose(losses.slope(logits.detach(), targets), slope, atol=1e-7)


def test_targets_are_probabilities_and_soften_with_the_share() -> None:
    labels = torch.tensor([2, 0])
    np.testing.assert_array_equal(losses.soft_targets(labels, 3), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(losses.soft_targets(labels, 3, 0.3)[0], [0.1, 0.1, 0.8], rtol=1e-6)
