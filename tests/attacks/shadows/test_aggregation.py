"""The server's step, from the equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.shadow_plans import small_plan

from attacks.shadows import aggregation
from attacks.shadows.plan import STRATEGIES


def server_by_equation(strategy: str, w: np.ndarray, answers: list[np.ndarray]) -> np.ndarray:
    """Reddi et al. 2021, algorithm 2, and Hsu et al. 2019, number by number."""
    m = v = np.zeros_like(w)
    for t, mean in enumerate(answers, start=1):
        delta = mean - w
        if strategy == "fedavgm":
            m = 0.6 * m - delta
            w = w - 0.5 * m
            continue
        b1 = 0.0 if strategy == "fedadagrad" else 0.9
        m = b1 * m + (1 - b1) * delta
        v = {
            "fedadagrad": v + delta**2,
            "fedadam": 0.99 * v + 0.01 * delta**2,
            "fedyogi": v - 0.01 * delta**2 * np.sign(v - delta**2),
        }[strategy]
        rate = 0.1 * (np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1)) if strategy == "fedadam" else 1)
        w = w + rate * m / (np.sqrt(v) + 1e-3)
    return w


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_server_steps(strategy: str) -> None:
    options = {"server_momentum": 0.6, "server_learning_rate": 0.5} if strategy == "fedavgm" else {"eta": 0.1}
    step = aggregation.server(small_plan(strategy=strategy, options=options))
    stream = np.random.default_rng(0)
    start, *answers = stream.normal(size=(5, 6))
    w = [torch.tensor(start)]
    for answer in answers:
        w = step(w, [torch.tensor(answer)])
    np.testing.assert_allclose(w[0].numpy(), server_by_equation(strategy, start, answers), rtol=1e-10)


def test_defaults_of_the_strategies_are_flowers() -> None:
    import inspect

    from fedsim.server import strategy

    for name, options in STRATEGIES.items():
        parameters = inspect.signature(strategy.CLASSES[name].__init__).parameters
        theirs = {key: parameters[key].default for key in options if key in parameters}
        assert theirs == {key: options[key] for key in theirs}
        assert set(options) - set(theirs) <= {"beta_1", "beta_2"}
