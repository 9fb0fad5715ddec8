"""Flower's stock strategies by name, or a user's own, made seeded and order-independent.

Stock Flower samples clients from the operating system's randomness and sums replies in the order in which
they arrive. Here the parties of a round are drawn by partition id from a stream of our own, and
replies are sorted by partition id before the strategy sees them; the strategies themselves are
Flower's, unchanged.

Central DP is Flower's as well (`with_central_dp`). Its unit is a party: federations are neighbours where one
of them lacks a party that the other has, the number of parties in a round being public (McMahan et al. 2018;
Andrew et al. 2021, whose count of clipped updates is of bits shifted by ½). Each party that takes part weighs
the same, whatever its number of records, and a round is one Gaussian mechanism of noise multiplier z: the
rounds in which a party takes part compose to its ε (`party_epsilon`). No amplification by the draw of parties
is claimed. The server adds the noise: it is trusted with each update, whoever clips it.

A user's own strategy is a 'module:callable' that returns a `flwr.serverapp.strategy.Strategy`, called with
``federation.options`` by keyword. It is sent each party's model ("arrays") and number of records ("metrics":
"num-examples"), sorted by party, and must answer with a model of the same layers. One seed, one result
holds where it draws from NumPy's global functions alone, which are seeded in every round. What it carries
from round to round besides the global model must be arrays, offered by two methods, or a resumed run is
another run:

    state_dict() -> dict[str, np.ndarray]         kept in the checkpoint after every round
    load_state_dict(arrays: dict[str, np.ndarray])    called before a run goes on
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from clients import messages
from fedsim.core import rng
from fedsim.core.errors import FedsimError, InputError, suggestion
from fedsim.core.imports import is_reference, load, short
from fedsim.core.scenario.settings import FederationSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.server.central_dp import is_central

CLASSES: dict[str, type[stock.FedAvg]] = {
    "fedavg": stock.FedAvg,
    "fedprox": stock.FedProx,
    "fedavgm": stock.FedAvgM,
    "fedadam": stock.FedAdam,
    "fedadagrad": stock.FedAdagrad,
    "fedyogi": stock.FedYogi,
    "fedmedian": stock.FedMedian,
    "fedtrimmedavg": stock.FedTrimmedAvg,
    "krum": stock.Krum,
    "multikrum": stock.MultiKrum,
    "bulyan": stock.Bulyan,
    "qfedavg": stock.QFedAvg,
}

# Sampling and message keys are ours to set; the rest of a strategy's arguments are its options.
_OURS = (
    "self", "fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes",
    "min_available_nodes", "weighted_by_key", "arrayrecord_key", "configrecord_key",
    "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "train_loss_key", "selection_rule",
)  # fmt: skip
# Who trains is ours to draw: of those drawn, a strategy of Flower's kind takes all, and waits for no more.
_TAKES_ALL = {"fraction_train": 1.0, "min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
# What a strategy keeps from round to round beside the global model.
_STATE = ("m_t", "v_t", "momentum_vector")

# Only in a plain mean is what a party moves bounded by the clipping norm over n: whatever else a strategy
# does with the updates would have to be done after the noise, which Flower adds last.
_MEANS = ("fedavg", "fedprox")


def build(settings: FederationSettings, training: TrainingSettings) -> Strategy:
    """Return Flower's strategy of this name, or the user's own, with its options.

    Raises:
        InputError: an option that the strategy does not have, a value that it refuses, or central DP around
            what is no mean; a 'module:callable' that cannot be imported or returns no strategy.
    """
    if settings.central_dp is not None and settings.strategy not in _MEANS:
        raise InputError(
            f"federation.central_dp: federation.strategy = '{settings.strategy}' does more than average, "
            f"which the noise does not cover; use {' or '.join(map(repr, _MEANS))}"
        )
    if is_reference(settings.strategy):
        return _own(settings)
    kind = CLASSES[settings.strategy]
    valid = [name for name in inspect.signature(kind.__init__).parameters if name not in _OURS]
    for name in settings.options:
        if name not in valid:
            raise InputError(
                f"federation.options.{name}: '{settings.strategy}' has no such option"
                + (suggestion(name, valid) if valid else "; it has none")
            )
    options: dict[str, Any] = dict(settings.options)
    if settings.strategy == "qfedavg":
        options = {"client_learning_rate": training.lr, "train_loss_key": "train-loss", **options}
    try:
        return kind(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"federation.options: {settings.strategy}: {error}") from error


def _own(settings: FederationSettings) -> Strategy:
    """Call the user's function; every reply that comes counts, however few."""
    where = f"federation.strategy = '{settings.strategy}'"
    make = load(settings.strategy, settings.folder, where)
    try:
        built = make(**settings.options)
    except Exception as error:
        raise InputError(f"{where}: calling it with {settings.options} failed: {short(error)}") from error
    if not isinstance(built, Strategy):
        raise InputError(
            f"{where}: it returned {type(built).__name__}, not a flwr.serverapp.strategy.Strategy"
        )
    if hasattr(built, "state_dict") != hasattr(built, "load_state_dict"):
        raise InputError(f"{where}: it has one of state_dict and load_state_dict; a resumed run needs both")
    for name, value in _TAKES_ALL.items():
        if hasattr(built, name):
            setattr(built, name, value)
    return built


@contextmanager
def blamed(settings: FederationSettings, round: int) -> Iterator[None]:
    """Say in one sentence what a user's own strategy raised; whatever Flower's raise is a bug.

    Raises:
        FedsimError: the body raised, under a strategy of the user's own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FedsimError) or not is_reference(settings.strategy):
            raise
        raise FedsimError(
            f"round {round}: federation.strategy = '{settings.strategy}' failed: {short(error)}"
        ) from error


def sample(
    partitions: Iterable[int], settings: FederationSettings, seed: int, game: int, round: int
) -> list[int]:
    """Return the partition ids that train in this round, sorted: uniform without replacement."""
    everyone = sorted(partitions)
    if settings.fraction == 1.0:
        return everyone
    stream = rng.generator(seed, "participation", game=game, round=round)
    chosen = stream.choice(len(everyone), settings.participants(len(everyone)), replace=False)
    return sorted(everyone[index] for index in chosen)


def metrics_needed(settings: FederationSettings) -> list[str]:
    """Return the metrics of a party's reply that the strategy reads."""
    central = settings.central_dp
    needed = ["num-examples"]
    if settings.strategy == "qfedavg":
        needed.append("train-loss")
    if central is not None and (central.where, central.clipping) == ("client", "adaptive"):
        needed.append(messages.NORM_BIT)
    return needed


def aggregate(
    strategy: Strategy, round: int, replies: list[Message], seed: int, game: int
) -> ArrayRecord | None:
    """Return the new global model, None where the strategy gave none; ``replies`` by partition id.

    Central DP draws its noise from NumPy's global functions, and scales it to the replies that there are;
    Flower's other strategies draw nothing.
    """
    if is_central(strategy):
        cast(Any, strategy).num_sampled_clients = len(replies)
    draws = type(strategy) not in CLASSES.values()  # one of the user's own, or central DP around one
    stream = rng.numpy_global(seed, "central dp noise", game=game, round=round)
    with stream if draws else nullcontext():
        return strategy.aggregate_train(round, replies)[0]


def state_of(strategy: Strategy) -> dict[str, np.ndarray]:
    """Return the strategy's own arrays, such as server momentum, to be kept in a checkpoint."""
    arrays = {}
    if is_central(strategy):
        wrapper = cast(Any, strategy)
        arrays, strategy = {messages.CLIPPING_NORM: np.array([wrapper.clipping_norm])}, wrapper.strategy
    if isinstance(strategy, KeepsArrays):
        return arrays | {f"own/{name}": np.asarray(array) for name, array in strategy.state_dict().items()}
    for attribute in _STATE:
        value = getattr(strategy, attribute, None)
        if isinstance(value, list):
            value = {f"#{index}": array for index, array in enumerate(value)}
        for name, array in (value or {}).items():
            arrays[f"{attribute}/{name}"] = np.asarray(array)
    return arrays


def restore(strategy: Strategy, arrays: Mapping[str, np.ndarray]) -> None:
    """Undo `state_of`."""
    if is_central(strategy):
        wrapper = cast(Any, strategy)
        wrapper.clipping_norm, strategy = arrays[messages.CLIPPING_NORM].item(), wrapper.strategy
    if isinstance(strategy, KeepsArrays):
        own = {name: array for name, array in arrays.items() if name.startswith("own/")}
        strategy.load_state_dict({name.removeprefix("own/"): array for name, array in own.items()})
        return
    for attribute in _STATE:
        prefix = f"{attribute}/"
        part = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        if not part:
            continue
        numbered = all(name.startswith("#") for name in part)
        as_list = [part[f"#{index}"] for index in range(len(part))] if numbered else None
        setattr(strategy, attribute, as_list if as_list is not None else part)


@runtime_checkable
class KeepsArrays(Protocol):
    """A strategy that carries arrays of its own from round to round, so that a run can be resumed."""

    def state_dict(self) -> Mapping[str, np.ndarray]:
        """Return the arrays, by name."""
        ...

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Undo `state_dict`."""
        ...


def cast_like(arrays: ArrayRecord, reference: ArrayRecord) -> ArrayRecord:
    """Return ``arrays`` in the dtypes and key order of ``reference``.

    The adaptive strategies multiply by a NumPy float64 and would double the model's precision.
    """
    given = messages.to_numpy(arrays)
    return messages.to_arrays(
        {name: given[name].astype(array.dtype, copy=False) for name, array in reference.items()}
    )


@dataclass(frozen=True)
class Drawn:
    """All that a strategy asks of a grid: the nodes to send to, here those drawn for this round.

    Stock strategies sample from ``get_node_ids()``; with a fraction of 1 they then take all of these.
    """

    node_ids: list[int]

    def get_node_ids(self) -> list[int]:
        """Return the nodes drawn."""
        return self.node_ids
