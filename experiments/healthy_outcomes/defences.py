"""The defences of the ten steps: what each federation, release or key does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Defence:
    """One row of the page.

    against: whom it protects against, '' where it is none
    changes: of the scenario; policy, queries: of the researcher's key
    """

    name: str
    against: str
    changes: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    queries: int | None = None


def dp(epsilon: float) -> Defence:
    return Defence(f"DP-SGD ε = {epsilon:g}", "everyone", {"dp": {"all": {"epsilon": epsilon}}})


def training(name: str, against: str = "no guarantee", policy: str = "full", **settings: Any) -> Defence:
    return Defence(name, against, {"defences": {"all": settings}}, {"policy": policy})


def shipped(name: str, **settings: Any) -> Defence:
    return training(name, "what holds: below", shipped=settings)


def release(name: str, kind: str, **policy: Any) -> Defence:
    return Defence(name, "outsiders alone", {"release": kind}, policy)


def answers(name: str, queries: int | None = None, **policy: Any) -> Defence:
    return Defence(name, "outsiders alone", {}, policy, queries)


GUARDED = {"adversary": {"attacks": ["loss"], "output": {"policy": "memguard"}}}

DEFENCES = (
    Defence("nothing", ""),
    dp(8.0),
    dp(2.0),
    training("label smoothing 0.3", label_smoothing=0.3),
    training("dropout 0.5", dropout=0.5),
    training("1 epoch a round", epochs=1),
    training("RelaxLoss α = 0.8", relaxloss=0.8),
    training("HAMP, training alone", hamp_entropy=0.7, hamp_weight=0.05),
    training("HAMP, training and answers", policy="hamp", hamp_entropy=0.7, hamp_weight=0.05),
    training("SELENA K = 5, L = 2", distil="selena", teachers=5, left_out=2),
    training("DMP, public records", distil="dmp", teachers=1, distil_temperature=2.0),
    shipped("LocalDpMod, claims ε = 8", epsilon=8.0),
    shipped("percentile sharing", mechanism="percentile", percentile=90.0, gamma=0.05),
    shipped("sparse-vector sharing, claims ε = 0.1", mechanism="sparse-vector", epsilon=0.1, gamma=0.01),
    release("ensemble of the clinics' own models", "ensemble"),
    release("student of that ensemble", "student"),
    release("noisy votes, ε = 1 an answer", "ensemble", policy="votes", epsilon=1.0),
    answers("answers rounded to 1 decimal", policy="rounded", digits=1),
    answers("labels alone", policy="label"),
    Defence(
        "MemGuard, distortion 0.5", "outsiders alone", GUARDED, {"policy": "memguard", "distortion": 0.5}
    ),
    answers("Laplace, ε = 5 an answer", policy="laplace", epsilon=5.0),
    answers("a budget of 120 queries", queries=120),
)
