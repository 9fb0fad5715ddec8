"""What an outsider can ask: the released model, behind its output policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.core.privacy.output import NO_BACKING, Backing, answered, softmax
from fedsim.core.scenario.protection import OutputPolicy


@dataclass(frozen=True)
class OutsiderView:
    """The released model behind its output policy.

    ask: features (n, …) float32 → (n, classes) float64, the probabilities released; NaN where none is
    queries: records that may be queried, None where there is no limit
    """

    ask: Callable[[np.ndarray], np.ndarray]
    classes: int
    queries: int | None


@dataclass(frozen=True)
class ReleasedModel:
    """A model that answers through an output policy.

    logits: features (n, …) float32 → (n, classes) float64. They stay behind the policy.
    backing: what the policy needs besides
    """

    logits: Callable[[np.ndarray], np.ndarray]
    classes: int
    policy: OutputPolicy
    backing: Backing = NO_BACKING

    def view(self, rng: np.random.Generator) -> OutsiderView:
        """Return the view of one who can ask the model within the policy's query budget.

        rng: of the noise in the answers, drawn anew at every query.
        """
        left = self.policy.queries

        def ask(features: np.ndarray) -> np.ndarray:
            nonlocal left
            if left is not None:
                if len(features) > left:
                    raise RuntimeError(
                        f"{len(features)} queries, but {left} of {self.policy.queries} are left"
                    )
                left -= len(features)
            return answered(softmax(self.logits(features)), self.policy, rng, self.backing)

        return OutsiderView(ask, self.classes, self.policy.queries)
