"""What an outsider can ask: the released model, behind its output policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.core.privacy.output import answered, softmax
from fedsim.core.scenario.protection import OutputPolicy


@dataclass(frozen=True)
class OutsiderView:
    """The released model behind its output policy.

    ask: features (n, …) float32 → (n, classes) float64, what is told of the probabilities; NaN: not told
    queries: records that may be asked about, None where there is no limit
    """

    ask: Callable[[np.ndarray], np.ndarray]
    classes: int
    queries: int | None


def released(
    logits: Callable[[np.ndarray], np.ndarray], classes: int, policy: OutputPolicy, rng: np.random.Generator
) -> OutsiderView:
    """Return the view of one who can ask a model within the policy's query budget.

    logits: features (n, …) float32 → (n, classes) float64. They stay behind the policy.
    rng: of the noise in the answers, drawn anew at every query.
    """
    left = policy.queries

    def ask(features: np.ndarray) -> np.ndarray:
        nonlocal left
        if left is not None:
            if len(features) > left:
                raise RuntimeError(f"{len(features)} queries, but {left} of {policy.queries} are left")
            left -= len(features)
        return answered(softmax(logits(features)), policy, rng)

    return OutsiderView(ask, classes, policy.queries)
