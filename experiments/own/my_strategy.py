"""A Flower strategy of one's own, named in `scenario.toml`: the mean of the answers, with momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class Momentum(FedAvg):
    """w_t = w_{t−1} + v_t, v_t = β v_{t−1} + (mean of the answers − w_{t−1})."""

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__()
        self.beta = beta
        self.sent: dict[str, np.ndarray] = {}
        self.velocity: dict[str, np.ndarray] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.sent = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        for name, start in self.sent.items():
            step = mean[name].numpy() - start
            self.velocity[name] = self.beta * self.velocity.get(name, np.zeros_like(step)) + step
        moved = {name: Array(start + self.velocity[name]) for name, start in self.sent.items()}
        return ArrayRecord(moved), metrics

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a resumed run needs besides the global model."""
        return self.velocity

    def load_state_dict(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.velocity = dict(arrays)


def make(beta: float = 0.5) -> FedAvg:
    """Return the strategy; federation.options are its arguments."""
    return Momentum(beta)
