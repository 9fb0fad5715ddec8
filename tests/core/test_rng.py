from __future__ import annotations

import hashlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core import rng

KEYS = st.tuples(
    st.integers(0, 2**40), st.text(max_size=5), st.integers(0, 99), st.text(max_size=5), st.integers(0, 999)
)


@given(KEYS, KEYS)
def test_streams_agree_exactly_when_their_keys_do(one: tuple, other: tuple) -> None:
    def draw(key: tuple) -> list[int]:
        seed, purpose, game, party, round = key
        stream = rng.generator(seed, purpose, game=game, party=party, round=round)
        return stream.integers(0, 2**62, 4).tolist()

    assert (draw(one) == draw(other)) == (one == other)


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    # '1' + '1x' and '11' + 'x' spell the same text
    assert rng.integer(1, "1x") != rng.integer(11, "x")
    assert rng.integer(1, "a", party="b") != rng.integer(1, "ab")


def test_torch_streams_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first = torch.rand(3, generator=rng.torch_generator(1, "x", round=1))
    second = torch.rand(3, generator=rng.torch_generator(1, "x", round=2))
    assert not torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def test_known_value_stays_what_it_was() -> None:
    # A change here changes every published result.
    text = "1:7" + "8:training" + "1:1" + "10:hospital-2" + "1:3"
    expected = int(hashlib.sha256(text.encode()).hexdigest(), 16) >> (256 - 63)
    assert rng.integer(7, "training", game=1, party="hospital-2", round=3) == expected
    assert expected == 4576841842369031693


def test_numpys_global_functions_draw_from_the_key_and_are_left_as_they_were() -> None:
    before = np.random.get_state(legacy=False)

    def draw(round: int) -> list[float]:
        with rng.numpy_global(1, "x", round=round):
            return np.random.normal(size=4).tolist()

    assert draw(1) == draw(1) != draw(2)
    after = np.random.get_state(legacy=False)
    np.testing.assert_array_equal(before["state"]["key"], after["state"]["key"])
    assert before["state"]["pos"] == after["state"]["pos"]
