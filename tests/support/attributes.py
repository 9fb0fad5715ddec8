"""A federation whose records carry a hidden yes/no column: two features that say nothing of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core.data.layout import ColumnLayout
from fedsim.core.data.records import Records
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from support.federation import initial, train

COLUMN = ColumnLayout("hidden", "category", 0, 2, ("no", "yes"))


@dataclass(frozen=True)
class Hidden:
    view: ParticipantView
    candidates: Records
    value: np.ndarray  # (n,) of 0 and 1
    member: np.ndarray


def drawn(stream: np.random.Generator, n: int, copied: bool) -> Records:
    """copied: the label is the hidden value; else it is one of six, at random."""
    value = stream.integers(0, 2, n)
    features = np.column_stack([2.0 * np.eye(2)[value], stream.normal(size=(n, 20))]).astype(np.float32)
    return Records(features, value if copied else stream.integers(0, 6, n))


def hidden_world(
    copied: bool = False, epochs: int = 60, members: int = 60, rounds: int = 15, seed: int = 0
) -> Hidden:
    """Three parties; epochs = 0: the models never saw a record."""
    stream = np.random.default_rng(seed)
    model = ModelSettings(name="mlp", hidden=[64])
    settings = PublicSettings(model, (22,), 6, rounds, 3, 3, TrainingSettings(), "fedavg")
    trains, heldouts = ([drawn(stream, members, copied) for _ in range(3)] for _ in range(2))
    models, replies = {0: initial(settings)}, {}
    for t in range(1, rounds + 1):
        answers = [train(settings, models[t - 1], records, epochs, 0.3) for records in trains]
        replies[t] = answers[0]
        models[t] = {name: np.mean([a[name] for a in answers], axis=0) for name in answers[0]}
    view = ParticipantView(settings, models, replies, trains[0], heldouts[0])
    candidates = Records.concatenate([*trains[1:], *heldouts[1:]])
    value = (candidates.features[:, 1] > 0).astype(np.int64)
    return Hidden(view, candidates, value, np.arange(len(value)) < len(value) // 2)
