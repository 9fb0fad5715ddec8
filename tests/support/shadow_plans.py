"""Small federations to simulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from attacks.shadows.members import Membership, draw_members
from attacks.shadows.plan import FederationPlan, PartyTraining
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings


def dp_plan(
    n: int, batch: int, epochs: int = 2, noise_multiplier: float = 0.8, clipping_norm: float = 0.7,
    clipping: Literal["flat", "adaptive"] = "flat",
) -> Plan:  # fmt: skip
    return Plan(
        sample_rate=min(1.0, batch / n), expected_batch=float(min(batch, n)),
        steps_per_round=epochs * -(-n // batch), noise_multiplier=noise_multiplier, rounds=3, delta=1e-5,
        clipping_norm=clipping_norm, accountant="rdp", epsilon=1.0, budget=float("inf"), clipping=clipping,
        clipping_quantile=0.4, clipping_rate=0.3,
    )  # fmt: skip


def small_plan(
    sizes: Sequence[int] = (9, 14, 5),
    private: Sequence[int] = (),
    training: dict | None = None,
    hidden: Sequence[int] = (6,),
    classes: int = 2,
    defences: Mapping[int, dict] | None = None,
    adaptive: Sequence[int] = (),
    **changes: object,
) -> FederationPlan:
    made = TrainingSettings(**{"batch": 4, "epochs": 2, **(training or {})})
    own = {k: DefenceSettings(**settings) for k, settings in (defences or {}).items()}

    def party(k: int, n: int) -> PartyTraining:
        defence = own.get(k, DefenceSettings())
        epochs = defence.applied_to(made).epochs
        dp = dp_plan(n, made.batch, epochs, clipping="adaptive" if k in adaptive else "flat")
        return PartyTraining(n, dp if k in private else None, defence)

    parties = tuple(party(k, n) for k, n in enumerate(sizes))
    values = {
        "model": ModelSettings(name="mlp", hidden=list(hidden)), "input_shape": (5,), "classes": classes,
        "rounds": 3, "training": made, "parties": parties, "participants": len(sizes),
    }  # fmt: skip
    return FederationPlan(**{**values, **changes})  # type: ignore[arg-type]


def some_pool(plan: FederationPlan, n: int = 60) -> Records:
    stream = np.random.default_rng(0)
    features = stream.normal(size=(n, *plan.input_shape)).astype(np.float32)
    return Records(features, stream.integers(0, plan.classes, n))


def w_0(plan: FederationPlan) -> dict[str, np.ndarray]:
    return weights_of(zoo.build(plan.model, plan.input_shape, plan.classes, seed=1))


def members_of(plan: FederationPlan, shadows: int, pool: Records) -> Membership:
    return draw_members(shadows, plan.sizes.tolist(), np.full(len(pool), -1), seed=4)


MODULES = """
from torch import nn

def noisy(shape, classes):
    return nn.Sequential(nn.Linear(*shape, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, classes))

def smooth(shape, classes):
    return nn.Sequential(nn.Linear(*shape, 8), nn.Tanh(), nn.Linear(8, classes))

class Recurrent(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.gru = nn.GRU(1, 6, batch_first=True)
        self.output = nn.Linear(6, classes)

    def forward(self, x):
        return self.output(self.gru(x[:, :, None])[0][:, -1])

def recurrent(shape, classes):
    return Recurrent(classes)
"""
