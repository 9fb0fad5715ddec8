"""What is computed a piece at a time equals what is computed at once, whatever the size of the pieces."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from support.rounds import world
from support.shadow_plans import members_of, small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.matrix import design
from attacks.matrix.joint import stacking
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.released import answers
from attacks.rounds import channel, decoding, signatures, whitened
from attacks.shadows import simulate as shadows
from attacks.views.outsider import OutsiderView


def by_rounds() -> np.ndarray:
    """Log likelihood ratios of round decoding by gradients alone, (n,)."""
    given = world()
    effort = decoding.Effort(rounds=(1, 2), sets=40, repeats=0)
    return decoding.decode(given.view, given.candidates, 9, effort).scores


def by_whitening() -> np.ndarray:
    given = world()
    return whitened.covariance(given.view, given.candidates, np.random.default_rng(0))


def by_joint_inference() -> np.ndarray:
    stream = np.random.default_rng(0)
    member = stream.random((41, 12)) < 0.5
    phi = stream.normal(size=(41, 2, 12)).astype(np.float32) + member[:, None]
    matrix = SignalMatrix(
        target=phi[0],
        shadows=phi[1:],
        inside=np.where(member[1:], 0, -1).astype(np.int8),
        rounds=np.arange(2),
        labels=np.zeros(12, np.int64),
        party=np.zeros(12, np.int8),
        target_weights=np.zeros((1, 3), np.float32),
        shadow_weights=np.zeros((40, 1, 3), np.float32),
    )
    return stacking.score(matrix, np.random.default_rng(1))


def of_shadows() -> np.ndarray:
    plan = small_plan(classes=3)
    pool = some_pool(plan)
    members = members_of(plan, 6, pool)
    found = simulate(plan, w_0(plan), pool, members, pool.take(np.arange(5)), rounds=[0, 3], seed=3)
    return np.asarray(found.phi)


def of_an_outsider() -> np.ndarray:
    class Echo:
        classes = 2

        def ask(self, features: np.ndarray) -> np.ndarray:
            return features[:, :2].astype(float)

    view: OutsiderView = Echo()  # type: ignore[assignment]
    features = np.random.default_rng(0).normal(size=(23, 4))
    return answers._ask(view, features, answers._Counter(23, None))


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(
    ("module", "name", "unit", "compute"),
    [
        (channel, "COLUMNS", 1, by_rounds),
        (signatures, "GRADIENT_BYTES", 4 * 276, by_rounds),
        (whitened, "GRADIENT_BYTES", 4 * 276, by_whitening),
        (design, "CHUNK", 40, by_joint_inference),
        (shadows, "SIGNAL_LOGITS", 15, of_shadows),
        (answers, "ASKED_TOGETHER", 1, of_an_outsider),
    ],
    ids=["coordinates", "signatures", "gradients", "columns of shadows", "logits", "answers"],
)
def test_pieces_of_every_size_give_the_same(
    module: ModuleType,
    name: str,
    unit: int,
    compute: Callable[[], np.ndarray],
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """unit: what one column, record or shadow counts for in the constant ``name``."""
    whole = compute()
    monkeypatch.setattr(module, name, size * unit)
    np.testing.assert_allclose(compute(), whole, rtol=1e-4, atol=1e-5)
    assert np.isfinite(whole).all() and np.ptp(whole) > 0
