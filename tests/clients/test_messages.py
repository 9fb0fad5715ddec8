from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clients import messages

ANY = arrays.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.int8]),
    shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(ANY)
def test_packed_arrays_are_flowers_own_byte_for_byte(array: np.ndarray) -> None:
    packed = messages.to_arrays({"w": array})["w"]
    assert packed.data == Array(np.ascontiguousarray(array).reshape(array.shape)).data
    np.testing.assert_array_equal(packed.numpy(), array)
    unpacked = messages.to_numpy(ArrayRecord({"w": packed}))["w"]
    assert unpacked.dtype == array.dtype and unpacked.shape == array.shape
    np.testing.assert_array_equal(unpacked, array)


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(4, dtype=">i4")])
def test_arrays_packed_by_others_are_read_too(array: np.ndarray) -> None:
    theirs = ArrayRecord({"w": Array(array)})
    np.testing.assert_array_equal(messages.to_numpy(theirs)["w"], array)


def test_the_size_of_a_message_is_that_of_its_parts_and_that_of_a_reply_goes_with_it() -> None:
    content = RecordDict(
        {
            "arrays": messages.to_arrays({"w": np.zeros((10, 10), dtype=np.float32)}),
            "config": ConfigRecord({"text": "four", "none": "", "raw": b"abc", "list": ["a", "bc"]}),
            "metrics": MetricRecord({"loss": 0.5, "by-class": [1.0, 2.0]}),
        }
    )
    header = 128  # of .npy
    arrays, config = 1 + header + 400, (4 + 4) + (4 + 0) + (3 + 3) + (4 + 3)
    metrics = (4 + 8) + (8 + 16)
    assert messages.size_of(content) == arrays + config + metrics
    assert messages.largest_reply(Message(content, 2, "train")) == 2 * (arrays + config + metrics) + 2**20
    assert messages.largest_reply(Message(content, 2, messages.ATTACK)) == np.inf
