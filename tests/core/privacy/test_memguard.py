"""MemGuard, and the answers of HAMP and of votes, against their papers' definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsim.core.models.released import Ensemble
from fedsim.core.privacy import memguard
from fedsim.core.privacy.output import Backing, answered, softmax, spent
from fedsim.core.scenario.protection import OutputPolicy


def answers(n: int, classes: int, sure: float, seed: int) -> np.ndarray:
    return softmax(sure * np.random.default_rng(seed).normal(size=(n, classes)))


@pytest.fixture(scope="module", params=[2, 4])
def world(request: pytest.FixtureRequest) -> tuple[nn.Module, np.ndarray]:
    """A classifier that takes sure answers for members', and answers of both kinds."""
    members, others = answers(200, request.param, 6, 0), answers(200, request.param, 1.5, 1)
    guard = memguard.train_guard(members, others, seed=3)
    return guard, np.concatenate([answers(40, request.param, 6, 2), answers(40, request.param, 1.5, 3)])


def odds(guard: nn.Module, p: np.ndarray) -> np.ndarray:
    ranked = torch.from_numpy(-np.sort(-p, axis=1)).float()
    with torch.no_grad():
        z = guard(ranked).numpy()
    return z[:, 1] - z[:, 0]


def test_the_class_stays_and_the_classifier_is_closer_to_a_coin(world: tuple[nn.Module, np.ndarray]) -> None:
    guard, p = world
    told = memguard.guarded(p, guard, distortion=10.0, coins=np.zeros(len(p)))
    assert (told.argmax(axis=1) == p.argmax(axis=1)).all()
    np.testing.assert_allclose(told.sum(axis=1), 1)
    before, after = np.abs(odds(guard, p)), np.abs(odds(guard, told))
    assert (after <= before + 1e-6).all() and np.median(after) < 0.5 * np.median(before)
    assert np.mean(np.any(told != p, axis=1)) > 0.5


def test_the_expected_distortion_is_within_its_budget(world: tuple[nn.Module, np.ndarray]) -> None:
    """Exactly: share of coins below which noise is added, times its length."""
    guard, p = world
    always = memguard.guarded(p, guard, distortion=1e9, coins=np.zeros(len(p)))
    length = np.abs(always - p).sum(axis=1)
    for coin in (0.1, 0.5, 0.9):
        told = memguard.guarded(p, guard, distortion=0.2, coins=np.full(len(p), coin))
        moved = np.any(told != p, axis=1)
        np.testing.assert_array_equal(
            moved, (length > 0) & (coin < np.minimum(0.2 / np.maximum(length, 1e-12), 1))
        )


def test_a_model_without_an_answer_stays_without(world: tuple[nn.Module, np.ndarray]) -> None:
    guard, p = world
    broken = p[:3].copy()
    broken[1] = np.nan
    told = memguard.guarded(broken, guard, 1.0, np.zeros(3))
    assert np.isnan(told[1]).all() and np.isfinite(told[[0, 2]]).all()


@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 5))
def test_hamp_tells_the_order_and_nothing_of_the_scores(n: int, classes: int, seed: int) -> None:
    p, references = answers(n, classes, 3, seed), answers(50, classes, 1, seed + 100)
    told = answered(p, OutputPolicy(policy="hamp"), np.random.default_rng(seed), Backing(references))
    chosen = references[np.random.default_rng(seed).integers(50, size=n)]
    for row, own, other in zip(told, p, chosen, strict=True):
        assert sorted(row) == sorted(other)
        assert list(np.argsort(row, kind="stable")) == list(np.argsort(own, kind="stable"))


def test_votes_are_report_noisy_max_with_the_stated_epsilon() -> None:
    """Of two counts that differ by d the first wins with the probability that two Laplace draws give."""
    policy, n = OutputPolicy(policy="votes", epsilon=1.0), 200_000
    shares = np.tile([[6 / 10, 4 / 10]], (n, 1))
    told = answered(shares, policy, np.random.default_rng(0), Backing(voters=10))
    b, d = 2.0, 2.0
    loses = 0.5 * np.exp(-d / b) * (1 + d / (2 * b))  # P(Lap − Lap > d), Laplace of scale b each
    assert told[:, 1].mean() == pytest.approx(loses, abs=4 * np.sqrt(loses / n))
    # One record moves one vote: the odds of any outcome change by e^ε at most.
    other = answered(
        np.tile([[5 / 10, 5 / 10]], (n, 1)), policy, np.random.default_rng(1), Backing(voters=10)
    )
    for k in (0, 1):
        assert abs(np.log(told[:, k].mean() / other[:, k].mean())) <= policy.epsilon + 0.02
    assert spent(policy, 3) == (3.0, 0.0)


def test_a_policy_without_its_backing_is_refused() -> None:
    for name in ("hamp", "memguard", "votes"):
        with pytest.raises(ValueError, match=f"'{name}' needs"):
            answered(answers(2, 2, 1, 0), OutputPolicy(policy=name), np.random.default_rng(0))  # type: ignore[arg-type]


class Constant(nn.Module):
    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(x)]


def test_an_ensemble_is_the_mean_of_probabilities_or_the_shares_of_votes() -> None:
    members = [Constant([[2.0, 0.0, 1.0]]), Constant([[0.0, 1.0, 0.0]]), Constant([[3.0, 0.0, 0.0]])]
    x = torch.zeros(1, 1)
    mean = np.mean([softmax(member.logits.numpy().astype(float)) for member in members], axis=0)
    np.testing.assert_allclose(softmax(Ensemble(members)(x).numpy()), mean, rtol=1e-7)
    np.testing.assert_allclose(softmax(Ensemble(members, votes=True)(x).numpy()), [[2 / 3, 1 / 3, 0]])
