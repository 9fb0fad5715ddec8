from __future__ import annotations

import pickle
from collections.abc import Callable

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
    assert packed == Array(np.ascontiguousarray(array).reshape(array.shape))
    assert pickle.loads(pickle.dumps(packed)) == packed
    np.testing.assert_array_equal(packed.numpy(), array)
    unpacked = messages.to_numpy(ArrayRecord({"w": packed}))["w"]
    assert unpacked.dtype == array.dtype and unpacked.shape == array.shape
    np.testing.assert_array_equal(unpacked, array)


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.arange(4, dtype=">i4")])
def test_arrays_packed_by_others_are_read_too(array: np.ndarray) -> None:
    theirs = ArrayRecord({"w": Array(array)})
    np.testing.assert_array_equal(messages.to_numpy(theirs)["w"], array)
    np.testing.assert_array_equal(messages.Readable(theirs["w"]).numpy(), array)


@given(ANY)
def test_a_strategy_reads_the_numbers_that_flower_s_own_array_gives_it(array: np.ndarray) -> None:
    packed = messages.to_arrays({"w": array})["w"]
    read, expected = messages.Readable(packed).numpy(), packed.numpy()
    assert read.dtype == expected.dtype and read.shape == expected.shape
    np.testing.assert_array_equal(read, expected)
    read[...] = 0  # as a strategy may, and the message stays what it was
    np.testing.assert_array_equal(messages.Readable(packed).numpy(), expected)


def test_a_record_of_arrays_is_flower_s_own() -> None:
    arrays = dict(messages.to_arrays({"w": np.arange(3.0), "b": np.zeros(())}))
    assert messages.record_of(arrays) == ArrayRecord(arrays)
    assert messages.record_of(arrays).object_id == ArrayRecord(arrays).object_id


@pytest.mark.parametrize("look", [messages.arrays_in, messages.config_in, messages.metrics_in])
def test_a_record_is_found_by_name_and_kind_as_flower_finds_it(look: Callable) -> None:
    records = {
        "arrays": messages.to_arrays({"w": np.zeros(2)}), "config": ConfigRecord({"a": 1}),
        "metrics": messages.metrics({"b": 2.0}),
    }  # fmt: skip
    content = RecordDict(records)
    views = {
        messages.arrays_in: content.array_records, messages.config_in: content.config_records,
        messages.metrics_in: content.metric_records,
    }  # fmt: skip
    for name in (*records, "absent"):
        if name in views[look]:
            assert look(content, name) is views[look][name]
        else:
            with pytest.raises(KeyError):
                look(content, name)


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
