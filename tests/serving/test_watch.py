"""Monitoring: probing is named, ordinary questions are not, and what cannot be seen is not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.serving import in_memory, new_key

from attacks.membership.outsider import noise_robustness
from attacks.views.outsider import OutsiderView
from fedsim.core.data.records import Records
from fedsim.core.data.released import ReleasedSchema
from fedsim.core.data.schema import Column, Schema
from fedsim.core.run_directory import RunDirectory
from fedsim.serving import log, neighbours
from fedsim.serving.app import Service
from fedsim.serving.client import RemoteModel
from fedsim.serving.neighbours import Neighbours
from fedsim.serving.watch import patterns

SCHEMA = ReleasedSchema(
    Schema(tuple(Column(name, "number", (0.0, 1.0)) for name in "abc"), "y", ("0", "1")), ()
)


def slowly(features: np.ndarray, radius: float) -> int:
    """The obvious twin: each record against every earlier one."""
    near = 0
    for i, x in enumerate(features.astype(np.float64)):
        distances = ((features[:i].astype(np.float64) - x) ** 2).sum(axis=1)
        near += bool(((distances > 1e-9) & (distances <= radius)).any())
    return near


@given(st.integers(0, 2**32), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_neighbours_are_counted_as_by_hand(seed: int, sizes: list[int]) -> None:
    draw = np.random.default_rng(seed)
    features = draw.uniform(-0.5, 0.5, (sum(sizes), 3)).astype(np.float32)
    features[draw.integers(len(features), size=2)] = features[0]
    counting, start, counted = Neighbours(SCHEMA), 0, 0
    for size in sizes:
        counted += counting.count("key", features[start : start + size])
        start += size
    assert counted == slowly(features, neighbours.NEAR * 3)


def test_each_key_has_neighbours_of_its_own_and_few_are_remembered() -> None:
    counting = Neighbours(SCHEMA)
    one = np.zeros((1, 3), dtype=np.float32)
    assert counting.count("a", one) == 0 and counting.count("b", one + 0.01) == 0
    assert counting.count("a", one + 0.01) == 1
    for number in range(neighbours.KEYS):
        counting.count(f"other {number}", one)
    assert counting.count("a", one + 0.02) == 0, "the key that asked longest ago was forgotten"
    far = np.random.default_rng(0).uniform(50, 90, (neighbours.WINDOW, 3)).astype(np.float32)
    counting.count("a", far)
    assert counting.count("a", one) == 0


def test_noisy_copies_and_boundary_searches_are_named_clinics_not(run: RunDirectory, made: Service) -> None:
    draw = np.random.default_rng(4)

    def model(name: str) -> RemoteModel:
        return RemoteModel("http://testserver", new_key(made, name), in_memory(made))

    def records(n: int) -> np.ndarray:
        features = np.zeros((n, 5), dtype=np.float32)
        features[:, :2] = draw.uniform(-2, 2, (n, 2))
        features[np.arange(n), 2 + draw.integers(3, size=n)] = 1
        return features

    clinic, copies, search, shy = (model(name) for name in ("clinic", "copies", "search", "shy"))
    for _ in range(20):
        clinic.ask(records(2))
    view = OutsiderView(copies.ask, 2, None)
    noise_robustness(view, Records(0.3 * records(8), np.zeros(8, np.int64)), draw)
    start, end = records(1), records(1)
    for _ in range(40):  # halving the way to the other class
        middle = ((start + end) / 2).astype(np.float32)
        same = search.ask(middle).argmax() == search.ask(start).argmax()
        start, end = (middle, end) if same else (start, middle)
    shy.ask(np.concatenate([start, end]))
    seen = {pattern.name: pattern for pattern in patterns(log.read(run.path / "serving"))}
    assert [name for name, pattern in seen.items() if pattern.probing] == ["copies", "search"]
    assert seen["clinic"].records == 40 and seen["clinic"].requests == 20
