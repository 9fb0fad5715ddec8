"""What the other parties added to a global model, as far as a participant can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from attacks.shadows.plan import STRATEGIES, FederationPlan
from attacks.views.participant import ParticipantView
from attacks.views.settings import AVERAGING, Weights

ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
"""Strategies whose server divides by a running mean of squares: undone in round 1, before there is one."""


def readable(view: ParticipantView, plan: FederationPlan, rounds: Sequence[int]) -> list[int]:
    """Return those of the rounds whose mean answer follows from the models that were seen.

    Of a server with momentum it takes three models in a row; of an adaptive one only round 1 can be undone.
    Where parties come and go, those in which the adversary took part, and another did.
    """
    seen = [
        t for t in rounds if {t - 1, t} <= view.models.keys() | ({0} if view.start is not None else set())
    ]
    if plan.participants < len(plan.parties):
        seen = [t for t in seen if t in view.own_replies and plan.participants > 1]
    if plan.strategy in ADAPTIVE:
        return [t for t in seen if t == 1]
    if plan.strategy == "fedavgm":
        return [t for t in seen if t == 1 or t - 2 in view.models]
    return [t for t in seen if plan.strategy in STRATEGIES]


def others_update(view: ParticipantView, plan: FederationPlan, t: int, names: Sequence[str]) -> np.ndarray:
    """Return U = Σ_{k≠own} (n_k/N)(w_t^k − w_{t−1}), (p,) float64, the parameters ``names`` in a row.

    The server's step is undone first: of FedAvg and FedProx there is none; w_t = w_{t−1} − η v_t and
    v_t = βv_{t−1} − Δ_t of FedAvgM (Hsu, Qi & Brown 2019); w_1 = w_0 + r(1 − β₁)Δ / (b|Δ| + τ) of the
    adaptive ones (Reddi et al. 2021, algorithm 2), b = √(1 − β₂), 1 under FedAdagrad.
    """

    def flat(weights: Weights) -> np.ndarray:
        return np.concatenate([np.ravel(weights[name]) for name in names]).astype(np.float64)

    models = {s: flat(_model(view, s)) for s in (t - 2, t - 1, t) if s >= 0 and (s == 0 or s in view.models)}
    step = _mean_answer(plan, models, t)
    reply = view.own_replies.get(t)
    if reply is not None:
        step -= view.settings.own_share * (flat(reply) - models[t - 1])
    return step


def _model(view: ParticipantView, t: int) -> Weights:
    return view.initial if t == 0 else view.models[t]


def _mean_answer(plan: FederationPlan, models: dict[int, np.ndarray], t: int) -> np.ndarray:
    """Return Δ_t, the mean of the answers less w_{t−1}."""
    step = models[t] - models[t - 1]
    if plan.strategy in AVERAGING:
        return step
    if plan.strategy == "fedavgm":
        rate, momentum = plan.option("server_learning_rate"), plan.option("server_momentum")
        before = models[t - 1] - models[t - 2] if t > 1 else np.zeros_like(step)
        return (step - momentum * before) / rate
    return _adaptive_first_step(plan, step)


def _adaptive_first_step(plan: FederationPlan, step: np.ndarray) -> np.ndarray:
    rate = plan.option("eta")
    beta1, beta2 = plan.option("beta_1"), plan.option("beta_2")
    if plan.strategy == "fedadam":
        rate *= math.sqrt(1 - beta2**2) / (1 - beta1**2)  # Flower's correction of its first round
    scale = 1.0 if plan.strategy == "fedadagrad" else math.sqrt(1 - beta2)
    moved = np.abs(step) / (rate * (1 - beta1))
    # Rounded to float32, a step may lie at its limit 1/b, which no finite Δ reaches.
    left = np.maximum(1 - scale * moved, 1e-6)
    return np.asarray(np.sign(step) * plan.option("tau") * moved / left)
