"""What is public of a federation, and known to every observer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import CentralDPSettings, DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

if TYPE_CHECKING:
    import torch


Weights = dict[str, np.ndarray]


AVERAGING = ("fedavg", "fedprox")
"""Strategies whose new global model is the average of the answers: a party can subtract its share."""


@dataclass(frozen=True)
class PublicSettings:
    """What every participant knows.

    input_shape: of one record's features; participants: parties that train in a round; options: the
    strategy's. sizes: training records of each party, in the order of partition ids; privacy: each party's
    DP-SGD, None where it is off; defences: what each party does beside it, None where that is nothing;
    central_dp: the server's, under which all parties weigh the same; own: the adversary's partition id.
    vocabulary: the tokenizer of letters, '' of tables.
    ``training`` is common to all: see `DefenceSettings.applied_to`.
    """

    model: ModelSettings
    input_shape: tuple[int, ...]
    classes: int
    rounds: int
    parties: int
    participants: int
    training: TrainingSettings
    strategy: str
    options: dict[str, float] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    privacy: tuple[Plan | None, ...] = ()
    defences: tuple[DefenceSettings | None, ...] = ()
    central_dp: CentralDPSettings | None = None
    own: int = 0
    vocabulary: str = ""

    @property
    def own_share(self) -> float:
        """The adversary's weight in the average of a round in which it takes part."""
        if self.sizes and self.participants == self.parties and self.central_dp is None:
            return self.sizes[self.own] / sum(self.sizes)
        return 1 / self.participants


def module_of(settings: PublicSettings, weights: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """Return the public architecture with these weights, in evaluation mode."""
    from fedsim.core.models import zoo
    from fedsim.core.models.weights import load_weights

    module = zoo.build(settings.model, settings.input_shape, settings.classes)
    load_weights(module, weights)
    return module.eval()
