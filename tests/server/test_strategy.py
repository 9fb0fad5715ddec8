from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy
from hypothesis import given
from hypothesis import strategies as st

from clients import messages
from fedsim.core.errors import InputError
from fedsim.core.scenario.protection import CentralDPSettings
from fedsim.core.scenario.settings import STRATEGIES, FederationSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.engines import flower_internals
from fedsim.server import central_dp, strategy
from fedsim.server.strategy import CLASSES, Drawn

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
    drawn = Drawn([2, 3, 4, 5, 6])
    list(built.configure_train(round, start, ConfigRecord(), drawn))  # type: ignore[arg-type]
    aggregated, _ = built.aggregate_train(round, replies)
    assert aggregated is not None
    return strategy.cast_like(aggregated, start)["w"].numpy()


def test_every_name_of_the_scenario_is_a_strategy_of_flower() -> None:
    assert set(CLASSES) == set(STRATEGIES)


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


# Central DP


def central(**settings: object) -> FederationSettings:
    return FederationSettings(central_dp=settings)  # type: ignore[arg-type]


def wrapped(settings: FederationSettings, participants: int) -> Strategy:
    assert settings.central_dp is not None
    inner = strategy.build(settings, TRAINING)
    return central_dp.with_central_dp(inner, settings.central_dp, participants)


def private_round(built: Strategy, values: list[float], round: int = 1, bits: list[int] | None = None) -> Any:
    """One round from w = 0 of parties that answer constants; returns the new w, (2, 2) float32."""
    start = messages.to_arrays({"w": np.zeros((2, 2), dtype=np.float32)})
    drawn = Drawn(list(range(2, 2 + len(values))))
    list(built.configure_train(round, start, ConfigRecord(), drawn))  # type: ignore[arg-type]
    replies = [reply(node, value, n=1) for node, value in enumerate(values, start=2)]
    for each, bit in zip(replies, bits or [], strict=False):
        each.content["metrics"] = messages.metrics({"num-examples": 1, messages.NORM_BIT: bit})
    aggregated = strategy.aggregate(built, round, replies, seed=5, game=0)
    assert aggregated is not None
    return aggregated["w"].numpy()


NOISELESS = 1e-9


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"fedavg", "fedprox"}))
def test_central_dp_is_refused_around_what_is_no_mean(name: str) -> None:
    settings = FederationSettings(strategy=name, central_dp={})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"'{name}' does more than average.*use 'fedavg' or 'fedprox'"):
        strategy.build(settings, TRAINING)


def test_the_server_clips_to_the_norm_and_averages() -> None:
    built = wrapped(central(noise_multiplier=NOISELESS, clipping_norm=2.0), 2)
    # ‖Δ‖ of a constant v is 2v: 0.5 is left as it is, 5.0 becomes 1.0
    np.testing.assert_allclose(private_round(built, [0.5, 5.0]), 0.75, rtol=1e-6)


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
@pytest.mark.parametrize("where", ["server", "client"])
def test_the_noise_is_that_of_the_mechanism(where: str, clipping: str) -> None:
    """σ of an entry is z_Δ C / n for the n replies that came, whatever was planned; C is the old norm."""
    z, norm, n = 0.5, 3.0, 4
    settings = central(where=where, clipping=clipping, noise_multiplier=z, clipping_norm=norm)
    bits = [1] * n if (where, clipping) == ("client", "adaptive") else None
    drawn = []
    for round in range(1, 401):
        drawn.append(private_round(wrapped(settings, 9), [0.0001] * n, round, bits).ravel())
    expected = z * norm / n
    if clipping == "adaptive":
        assert settings.central_dp is not None
        count = central_dp.count_noise(settings.central_dp, 9)
        expected = (z**-2 - (2 * count) ** -2) ** -0.5 * norm / n
    assert np.std(drawn) == pytest.approx(expected, rel=0.08)  # 4.5 standard errors of 1600 draws


@pytest.mark.parametrize("value", [1e-6, 1e3])
def test_why_flowers_adaptive_wrapper_is_corrected(value: float) -> None:
    """Fails when Flower follows the paper: then `_AsPublished` is to go. No update clipped, or all of 40."""
    settings = central(clipping="adaptive", noise_multiplier=1.0, clipping_rate=2.0)
    ours: Any = wrapped(settings, 40)
    flowers = stock.DifferentialPrivacyServerSideAdaptiveClipping(
        strategy.build(settings, TRAINING), 1.0, 40, 1.0, 0.5, 2.0, 2.0
    )
    model, theirs = private_round(ours, [value] * 40), private_round(flowers, [value] * 40)
    clipped = value / max(1.0, 2 * value)  # of one entry, at the norm 1
    np.testing.assert_allclose((theirs - clipped) / (model - clipped), flowers.clipping_norm, rtol=1e-2)
    assert ours.clipping_norm * flowers.clipping_norm == pytest.approx(1.0, rel=1e-6)
    assert (ours.clipping_norm < 0.5) == (value < 1), "the paper's: down where nothing is clipped"


@pytest.mark.parametrize("where", ["server", "client"])
def test_the_adaptive_norm_goes_to_the_quantile_and_is_kept(where: str) -> None:
    settings = central(where=where, clipping="adaptive", noise_multiplier=0.01, clipping_norm=0.1)
    norms = np.linspace(0.2, 2.0, 10)
    built = wrapped(settings, 10)
    for round in range(1, 61):
        norm = float(built.clipping_norm)  # type: ignore[attr-defined]
        private_round(built, list(norms / 2), round, [int(v > norm) for v in norms])
        again = wrapped(settings, 10)
        strategy.restore(again, strategy.state_of(built))
        built = again
    assert built.clipping_norm == pytest.approx(np.median(norms), rel=0.15)  # type: ignore[attr-defined]


def test_noise_is_the_seeds_rounds_and_games_alone() -> None:
    first = private_round(wrapped(central(), 2), [0.1, 0.2])
    np.random.random(7)
    np.testing.assert_array_equal(private_round(wrapped(central(), 2), [0.1, 0.2]), first)
    assert not np.array_equal(private_round(wrapped(central(), 2), [0.1, 0.2], round=2), first)


@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (4.0, 40)])
def test_a_partys_epsilon_is_googles_of_as_many_gaussians(z: float, rounds: int) -> None:
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(z), rounds))
    settings = CentralDPSettings(noise_multiplier=z, delta=1e-6)
    assert central_dp.party_epsilon(settings, rounds) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-3)


@given(st.floats(0.01, 20), st.integers(1, 500))
def test_updates_and_count_together_have_the_noise_multiplier_asked_for(z: float, participants: int) -> None:
    settings = central(clipping="adaptive", noise_multiplier=z)
    assert settings.central_dp is not None
    built: Any = wrapped(settings, participants)
    count = built.clipped_count_stddev
    assert count == central_dp.count_noise(settings.central_dp, participants)
    assert (built.noise_multiplier**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(z)
    assert built.noise_multiplier <= 1.16 * z
