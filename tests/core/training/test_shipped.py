"""Filters as frameworks ship them, against these frameworks, and their ε against another accountant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from flwr.supercore.differential_privacy import compute_clip_model_update
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.open_training import stream as torch_stream

from fedsim.core.privacy import shipped as privacy
from fedsim.core.scenario.protection import DefenceSettings, ShippedSettings
from fedsim.core.training import shipped, updates
from fedsim.core.training.draws import PartyDraws

UPDATE = np.random.default_rng(0).normal(size=400)


class NoNoise(np.random.Generator):
    """Draws zeros where noise is asked for."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: object = None) -> np.ndarray:  # type: ignore[override]
        return np.zeros(size)  # type: ignore[call-overload]


@pytest.mark.parametrize("norm", [0.5, 1e3])
def test_it_clips_as_flower_s_mod_does(norm: float) -> None:
    sent = np.ones_like(UPDATE)
    answer = [sent + UPDATE]
    compute_clip_model_update(answer, [sent], norm)
    settings = ShippedSettings(clipping_norm=norm)
    np.testing.assert_allclose(shipped.filtered(UPDATE, settings, NoNoise()), answer[0] - sent, atol=1e-12)
    assert not shipped.filtered(np.zeros(3), settings, NoNoise()).any()  # of which Flower's makes NaN


def test_its_noise_is_that_of_the_classical_formula() -> None:
    settings = ShippedSettings(epsilon=0.5, delta=1e-5, sensitivity=0.3, clipping_norm=1e-9)
    told = shipped.filtered(np.ones(200_000), settings, np.random.default_rng(1))
    assert told.std() == pytest.approx(0.3 * math.sqrt(2 * math.log(1.25e5)) / 0.5, rel=0.01)
    assert ShippedSettings(mechanism="gaussian").deviation == 2 * ShippedSettings().deviation


@given(arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1, 1)), st.floats(0, 100))
def test_percentile_sharing_entry_by_entry(update: np.ndarray, share: float) -> None:
    told = shipped.percentile(update, share, 0.01)
    cutoff = np.percentile([abs(entry) for entry in update], share)
    for entry, sent in zip(update, told, strict=True):
        expected = 0.0 if -cutoff < entry < cutoff else min(max(entry, -0.01), 0.01)
        assert sent == expected


def test_the_sparse_vector_filter_sends_entries_as_they_are() -> None:
    """What was chosen by the noisy threshold and not drawn afterwards carries no noise and is not clipped."""
    settings = ShippedSettings(mechanism="sparse-vector", fraction=0.2)
    told = shipped.filtered(UPDATE, settings, np.random.default_rng(2))
    raw = (told == UPDATE) & (UPDATE != 0)
    assert raw.sum() > 10 and np.abs(told[raw]).max() > settings.reach
    noised = (told != 0) & ~raw
    assert 0 < noised.sum() <= 80 and np.abs(told[noised]).max() <= settings.reach
    assert privacy.holds(settings, 1) == math.inf


@pytest.mark.parametrize(
    ("mechanism", "rounds"), [("flower-local-dp", 1), ("flower-local-dp", 20), ("gaussian", 20)]
)
def test_the_epsilon_that_holds_is_another_accountant_s(mechanism: str, rounds: int) -> None:
    settings = ShippedSettings(mechanism=mechanism, epsilon=2.0)  # type: ignore[arg-type]
    accountant = PLDAccountant()
    multiplier = settings.deviation / (2 * settings.clipping_norm)
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(multiplier), rounds))
    assert privacy.holds(settings, rounds) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)
    if mechanism == "flower-local-dp":
        assert privacy.holds(settings, rounds) > privacy.claimed(settings)


def test_it_says_what_it_claims_and_what_holds() -> None:
    assert privacy.in_words(ShippedSettings(mechanism="percentile"), 5) == "claims no ε; no ε holds"
    assert privacy.in_words(ShippedSettings(), 20).startswith("claims ε = 1; over 20 rounds ε = ")


def test_it_is_applied_to_the_update_that_is_sent_and_repeats() -> None:
    defence = DefenceSettings(shipped=ShippedSettings(epsilon=5.0))
    update = {"a": UPDATE[:300].reshape(3, 100), "b": UPDATE[300:]}
    first, again = (updates.shaped(update, defence, PartyDraws(torch_stream(), None)) for _ in range(2))
    assert first["a"].shape == (3, 100)
    for name in update:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.allclose(first[name], update[name])
