"""Membership as a step to poisoning: records aimed at people who are called members, against chance.

The adversary picks targets among the candidates by a membership score (or at random, the baseline), trains
on a few records that contradict theirs, and so turns the model's answer about them:

mislabelled   copies of a target with a wrong label (Tramèr et al. 2022; label flipping, Biggio et al. 2012)
boundary      the point farthest from the target, towards its nearest own record of another class, of which
              the model still says what it says of the target, labelled as that other class (ours, in the
              spirit of Shafahi et al. 2018)

`blended` keeps an update near to an honest one, so that robust aggregation lets it pass: the idea of
FedPoisonMIA, here with the length of one's own honest update as the measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from attacks import deviation
from attacks.declaration import EVERY_MODEL
from attacks.deviation import length
from attacks.further import further
from attacks.signals import outputs
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

Kind = Literal["mislabelled", "boundary"]
KINDS: tuple[Kind, ...] = ("mislabelled", "boundary")

Weights = Mapping[str, np.ndarray]

POINTS = 21
"""Points tried on the segment from a target to a record of another class."""


@further(
    "poison", "targeted poisoning", infers="nothing: it turns the model's answer about a person",
    needs="the record and label of each target", sees=EVERY_MODEL,
    assumes="whoever is called a member is one, so that her party is the one that suffers",
    baseline="the same poison aimed at random", source="ours, after Tramèr et al. 2022 and FedPoisonMIA",
)  # fmt: skip
def poison(
    targets: Records,
    kind: Kind,
    copies: int,
    module: torch.nn.Module,
    owned: Records,
    classes: int,
    rng: np.random.Generator,
) -> Records:
    """Return ``copies`` poisoned records of each target, (n · copies) records.

    module: the model as the adversary was sent it; owned: its own records, where 'boundary' looks for others
    of another class. A target to which it owns none of another class is mislabelled instead.
    """
    wrong = deviation.poison(targets, copies, classes, rng)
    if kind == "mislabelled":
        return wrong
    own = owned.features.reshape(len(owned), -1)
    features, labels = wrong.features.copy(), wrong.labels.copy()
    for k in range(len(targets)):
        others = np.flatnonzero(owned.labels != targets.labels[k])
        if not len(others):
            continue
        target = targets.features[k].reshape(-1)
        nearest = others[np.argmin(((own[others] - target) ** 2).sum(axis=1))]
        place = slice(k * copies, (k + 1) * copies)
        features[place] = _before_the_boundary(module, targets.features[k], owned.features[nearest])
        labels[place] = owned.labels[nearest]
    return Records(features, labels)


def _before_the_boundary(module: torch.nn.Module, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the point from start towards end that lies last before the model's answer changes."""
    shares = np.linspace(0, 1, POINTS, dtype=np.float32).reshape(-1, *[1] * start.ndim)
    points = (1 - shares) * start + shares * end
    answers = outputs.logits(module, points).argmax(axis=1)
    changed = np.flatnonzero(answers != answers[0])
    return np.asarray(points[changed[0] - 1 if len(changed) else POINTS // 2])


def blended(honest: Weights, poisoned: Weights, share: float) -> dict[str, np.ndarray]:
    """Return Δ_h + min(1, s‖Δ_h‖ / ‖Δ_p − Δ_h‖)(Δ_p − Δ_h): as poisoned as its distance may show.

    honest, poisoned: the updates Δ_h, Δ_p by parameter name; share: s
    """
    apart = {name: poisoned[name] - array for name, array in honest.items()}
    far = length(apart)
    factor = 1.0 if far == 0 else min(1.0, share * length(dict(honest)) / far)
    return {name: array + factor * apart[name] for name, array in honest.items()}
