"""Poison is what it says, and stays as near to an honest update as it is to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.federation import Federation

from attacks.deviation import length
from attacks.poisoning import targeted
from attacks.signals import outputs


@given(st.integers(0, 500), st.floats(0, 3))
def test_a_blended_update_lies_between_and_no_farther_than_its_share(seed: int, share: float) -> None:
    stream = np.random.default_rng(seed)
    honest, bad = ({"w": stream.normal(size=(3, 2)), "b": stream.normal(size=2)} for _ in range(2))
    sent = targeted.blended(honest, bad, share)
    apart = length({name: sent[name] - honest[name] for name in honest})
    full = length({name: bad[name] - honest[name] for name in honest})
    assert apart == pytest.approx(min(full, share * length(honest)), abs=1e-9)
    steps = [(sent[n] - honest[n]) * full - (bad[n] - honest[n]) * apart for n in honest]
    assert max(np.abs(step).max() for step in steps) < 1e-9  # along the same line


@pytest.mark.parametrize("kind", targeted.KINDS)
def test_every_target_gets_its_copies_with_a_label_that_is_not_its_own(overfitted: Federation, kind) -> None:
    view, targets = overfitted.view, overfitted.candidates.take(np.arange(6))
    module = view.module(view.final_model)
    poison = targeted.poison(targets, kind, 3, module, view.own_train, 10, np.random.default_rng(0))
    assert len(poison) == 18 and (poison.labels != np.repeat(targets.labels, 3)).all()
    if kind == "mislabelled":
        np.testing.assert_array_equal(poison.features, np.repeat(targets.features, 3, axis=0))
    else:  # still on the target's side of the boundary, labelled as the other one
        answers = outputs.logits(module, poison.features).argmax(axis=1)
        np.testing.assert_array_equal(
            answers, np.repeat(outputs.logits(module, targets.features).argmax(axis=1), 3)
        )
        assert (poison.features != np.repeat(targets.features, 3, axis=0)).any()
