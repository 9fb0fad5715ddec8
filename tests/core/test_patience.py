"""Pauses between two looks for something that another process brings."""

from __future__ import annotations

import time

import pytest

from fedsim.core.patience import Patience


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in a time that passes by them alone."""
    made: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: sum(made))
    monkeypatch.setattr(time, "sleep", made.append)
    return made


def test_pauses_grow_with_what_was_waited_between_their_bounds(pauses: list[float]) -> None:
    patience = Patience(0.1, 3.0)
    while sum(pauses) < 60:
        patience.wait()
    assert pauses[:5] == [0.1] * 5 and pauses[-1] == 3.0
    assert pauses == sorted(pauses)
    late = [pause / sum(pauses[: k + 1]) for k, pause in enumerate(pauses) if pause > 0.1]
    assert max(late) <= 0.2, "what comes is found by a fifth of the wait later, at most"
    assert len(pauses) < 45


def test_what_came_makes_it_look_often_again(pauses: list[float]) -> None:
    patience = Patience(0.1, 3.0)
    while pauses[-1:] != [3.0]:
        patience.wait()
    patience.renew()
    patience.wait()
    assert pauses[-1] == 0.1


def test_a_pause_ends_with_what_is_left_to_wait(pauses: list[float]) -> None:
    patience = Patience(0.1, 3.0)
    patience.wait(0.03)
    patience.wait(-1.0)
    assert pauses == [0.03, 0.0]
