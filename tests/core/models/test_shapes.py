"""What is said of a model without building it, against the model that is built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.errors import InputError
from fedsim.core.models import layers, shapes, zoo
from fedsim.core.scenario.settings import STRATEGIES, FederationSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.server import strategy


@given(
    name=st.sampled_from(["logistic", "mlp", "cnn"]),
    hidden=st.lists(st.integers(1, 3), max_size=4),
    shape=st.one_of(
        st.tuples(st.integers(1, 5)), st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 20))
    ),
)
def test_what_is_accepted_can_be_built(name: str, hidden: list[int], shape: tuple[int, ...]) -> None:
    model = ModelSettings(name=name, hidden=hidden)
    try:
        shapes.check_input(model, shape)
    except InputError as error:
        with pytest.raises(InputError) as caught:
            zoo.build(model, shape, 2)
        assert str(caught.value) == str(error)
        return
    module = zoo.build(model, shape, 2)  # of no negative or empty layer
    assert all(min(parameter.shape) > 0 for parameter in module.parameters())
    assert shapes.has_hidden_units(model) == bool(layers.hidden_units(module))
    assert shapes.weights(model, shape, 2) == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stock_strategy_without_options_is_valid(name: str) -> None:
    """The reason why a check need not import Flower to try it."""
    assert strategy.build(FederationSettings(strategy=name), TrainingSettings())
