"""What a party makes of its update before it sends it, against its definition entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedsim.core import rng
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training import updates
from fedsim.core.training.draws import PartyDraws

UPDATES = arrays.arrays(
    np.float64,
    st.integers(1, 30),
    elements=st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False),
)


def stream(seed: int = 0) -> np.random.Generator:
    return rng.generator(seed, "update")


def draws() -> PartyDraws:
    return PartyDraws(None, None, stream())


@given(UPDATES, st.floats(1e-3, 1e4))
def test_a_clipped_update_is_as_long_as_allowed_and_points_where_it_did(update, norm) -> None:
    found = updates.clipped(update, norm)
    length = np.linalg.norm(update)
    assert np.linalg.norm(found) <= norm * (1 + 1e-12)
    np.testing.assert_allclose(found, update if length <= norm else update / length * norm, rtol=1e-9)


@given(UPDATES, st.floats(1e-3, 1.0))
def test_a_sparse_update_keeps_the_largest_entries_as_they_are(update, share) -> None:
    found = updates.sparsified(update, share)
    kept = math.ceil(share * len(update))
    by_size = sorted(range(len(update)), key=lambda i: (-abs(update[i]), i))
    expected = [update[i] if i in by_size[:kept] else 0.0 for i in range(len(update))]
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(UPDATES, st.integers(1, 16), st.integers(0, 5))
def test_quantised_entries_are_one_of_two_neighbours_on_the_grid(update, bits, seed) -> None:
    found = updates.quantised(update, bits, stream(seed).random(len(update)))
    reach = np.abs(update).max()
    grid = np.linspace(-reach, reach, 2**bits)
    for before, after in zip(update, found, strict=True):
        if before == 0:
            assert after == 0
            continue
        assert np.abs(grid - after).min() <= 1e-9 * reach
        assert abs(after - before) < 2 * reach / (2**bits - 1) * (1 + 1e-9)


@pytest.mark.parametrize("bits", [1, 3])
def test_quantisation_is_right_on_average_and_cannot_be_told_from_the_grid_by_its_mean(bits: int) -> None:
    update = np.array([0.9, -0.31, 0.02, 0.0, -1.0])
    source, repetitions = stream(), 20_000
    mean = np.mean([updates.quantised(update, bits, source.random(5)) for _ in range(repetitions)], axis=0)
    deviation = (
        2 / (2**bits - 1) / 2 / math.sqrt(repetitions)
    )  # a two-valued variable's is at most half its span
    np.testing.assert_allclose(mean, update, atol=5 * deviation)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"clip_update": 2.5}, [[1.5, -2.0], [0.0, 0.0]]),
        ({"sparsify": 0.25}, [[0.0, -4.0], [0.0, 0.0]]),
        ({"clip_update": 2.5, "sparsify": 0.25}, [[0.0, -2.0], [0.0, 0.0]]),
        ({"sparsify": 0.5, "quantise": 1}, [None, [0.0, 0.0]]),
    ],
)
def test_shaping_clips_then_sparsifies_over_all_parameters_then_quantises_each(settings, expected) -> None:
    update = {"b": np.array([3.0, -4.0], np.float32), "a": np.zeros(2, np.float32)}
    found = updates.shaped(update, DefenceSettings(**settings), draws())
    assert list(found) == ["b", "a"]
    for array, wanted in zip(found.values(), expected, strict=True):
        assert array.dtype == np.float32
        if wanted is not None:
            np.testing.assert_allclose(array, wanted, rtol=1e-6)
    if "quantise" in settings:
        assert set(np.abs(found["b"])) == {4.0}


@given(UPDATES)
def test_a_full_share_and_a_wide_bound_change_nothing(update) -> None:
    settings = DefenceSettings(clip_update=1e9, sparsify=1.0)
    found = updates.shaped({"w": update}, settings, draws())
    np.testing.assert_array_equal(found["w"], update.astype(np.float32))
    assert settings.changes_update
    assert not DefenceSettings(l1=1, dropout=0.5).changes_update
