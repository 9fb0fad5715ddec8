from __future__ import annotations

import itertools

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from clients import messages
from fedsim import strategy
from fedsim.engines import flower_internals
from fedsim.errors import InputError
from fedsim.scenario import STRATEGIES, FederationSettings, TrainingSettings

TRAINING = TrainingSettings()


@pytest.fixture(autouse=True)
def _identity() -> None:
    flower_internals.assume_identity(1)


def reply(node: int, value: float, n: int = 10) -> Message:
    sent = Message(RecordDict(), node, "train")
    content = RecordDict(
        {
            "arrays": messages.to_arrays({"w": np.full((2, 2), value, dtype=np.float32)}),
            "metrics": messages.metrics({"num-examples": n, "train-loss": 0.5}),
        }
    )
    return Message(content, reply_to=sent)


def one_round(built: Strategy, round: int, value: float, replies: list[Message]) -> np.ndarray:
    start = messages.to_arrays({"w": np.full((2, 2), value, dtype=np.float32)})
    drawn = strategy.Drawn([2, 3, 4, 5, 6])
    list(built.configure_train(round, start, ConfigRecord(), drawn))  # type: ignore[arg-type]
    aggregated, _ = built.aggregate_train(round, replies)
    assert aggregated is not None
    return strategy.cast_like(aggregated, start)["w"].numpy()


def test_every_name_of_the_scenario_is_a_strategy_of_flower() -> None:
    assert set(strategy.CLASSES) == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_aggregates_and_keeps_the_models_dtype(name: str) -> None:
    built = strategy.build(FederationSettings(strategy=name), TRAINING)
    model = one_round(built, 1, 0.0, [reply(node, node / 10) for node in (2, 3, 4, 5, 6)])
    assert model.dtype == np.float32 and np.isfinite(model).all()
    assert 0 < model[0, 0] <= 0.6 or name == "qfedavg"


def test_fedavg_is_the_weighted_mean() -> None:
    built = strategy.build(FederationSettings(), TRAINING)
    model = one_round(built, 1, 0.0, [reply(2, 1.0, n=30), reply(3, 5.0, n=10)])
    np.testing.assert_allclose(model, 2.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "fedyogi", "fedadagrad"])
def test_restored_strategy_goes_on_bit_for_bit(name: str) -> None:
    options = {"server_momentum": 0.9} if name == "fedavgm" else {}
    settings = FederationSettings(strategy=name, options=options)
    whole, first, second = (strategy.build(settings, TRAINING) for _ in range(3))
    replies = [[reply(node, node / 10 + t) for node in (2, 3)] for t in range(2)]
    model = one_round(whole, 1, 0.0, replies[0])
    expected = one_round(whole, 2, float(model[0, 0]), replies[1])
    model = one_round(first, 1, 0.0, replies[0])
    strategy.restore(second, strategy.state_of(first))
    assert strategy.state_of(first), "this strategy has a state to keep"
    np.testing.assert_array_equal(one_round(second, 2, float(model[0, 0]), replies[1]), expected)


def test_options_are_checked_by_name() -> None:
    settings = FederationSettings(strategy="fedprox", options={"proximal_moo": 0.1})
    with pytest.raises(InputError, match=r"federation.options.proximal_moo: .*'proximal_mu'\?"):
        strategy.build(settings, TRAINING)
    with pytest.raises(InputError, match="'fedavg' has no such option; it has none"):
        strategy.build(FederationSettings(options={"x": 1}), TRAINING)


def test_participation_is_seeded_uniform_and_of_the_right_size() -> None:
    settings = FederationSettings(fraction=0.4)
    drawn = [strategy.sample(range(5), settings, 1, 0, round) for round in range(1, 2001)]
    assert drawn == [strategy.sample(reversed(range(5)), settings, 1, 0, t) for t in range(1, 2001)]
    assert {len(each) for each in drawn} == {2}
    counts = np.bincount(list(itertools.chain(*drawn)), minlength=5) / 2000
    np.testing.assert_allclose(counts, 0.4, atol=0.05)  # five standard errors
    assert drawn != [strategy.sample(range(5), settings, 2, 0, round) for round in range(1, 2001)]
