"""Model inversion: the record that a model takes for the most typical of a class.

MIFace of Fredrikson, Jha & Ristenpart 2015 (algorithm 1): gradient descent on c(x) = 1 − p_y(x), projected to
what a record can be, until the cost stops falling. A participant descends the mean cost of several rounds'
models; the server may take one party's own answers, and so finds that party's typical record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attacks.declaration import EVERY_MODEL, EVERY_UPDATE
from attacks.further import further
from attacks.reconstruction.rows import Rows, neutral
from fedsim.core.data.layout import Layout
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Descent:
    """MIFace's parameters: most iterations α, patience β, sufficient cost γ, step λ.

    prior: weight of the auxiliary term, the mean squared distance from the start
    """

    iterations: int = 500
    patience: int = 100
    cost: float = 0.01
    step: float = 0.1
    prior: float = 0.0


@further(
    "invert",
    "model inversion",
    infers="a class's typical record",
    sees=EVERY_MODEL,
    assumes="what the model is surest of resembles what it was trained on",
    baseline="the class mean of its own records",
    source="Fredrikson et al. 2015 (MIFace)",
)
@further(
    "invert",
    "model inversion of a party",
    infers="a party's typical record",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes="a party's answer is surest of what is typical of its own records",
    baseline="the class mean of the adversary's own records",
    source="Fredrikson et al. 2015 (MIFace)",
)
def invert(
    modules: Sequence[torch.nn.Module],
    label: int,
    layout: Layout,
    *,
    start: np.ndarray | None = None,
    input_shape: tuple[int, ...] | None = None,
    descent: Descent = Descent(),
) -> np.ndarray:
    """Return the row of least cost that the descent met, (d,) float32; categories may be mixed.

    modules: one or more models of the same federation, in evaluation mode, whose costs are averaged
    start: (d,) row to begin from, default the neutral one; input_shape: of one record, default a flat row
    """
    import torch

    rows = Rows.of(layout)
    shape = input_shape or (len(rows),)
    begin = torch.tensor(neutral(layout) if start is None else start, dtype=torch.float32)
    x, costs, best = begin.clone(), [], (np.inf, begin.numpy())
    for _ in range(descent.iterations + 1):
        x.requires_grad_(True)
        cost = _cost(modules, x.reshape(1, *shape), label) + descent.prior * (x - begin).square().mean()
        costs.append(float(cost.detach()))
        if costs[-1] < best[0]:
            best = costs[-1], x.detach().numpy().copy()
        if _ended(costs, descent):
            break
        (slope,) = torch.autograd.grad(cost, x)
        stepped = (x - descent.step * slope).detach().numpy()
        x = torch.tensor(rows.clipped(stepped[None])[0])
    return best[1]


def _cost(modules: Sequence[torch.nn.Module], x: torch.Tensor, label: int) -> torch.Tensor:
    """Return the mean over models of 1 − p_y(x), a number."""
    import torch

    parts = [1 - torch.softmax(module(x), dim=1)[0, label] for module in modules]
    return torch.stack(parts).mean()


def _ended(costs: Sequence[float], descent: Descent) -> bool:
    """Whether the last cost is enough, or no better than the worst of the β before it."""
    window = costs[-descent.patience - 1 : -1]
    return costs[-1] <= descent.cost or (len(window) == descent.patience and costs[-1] >= max(window))


def invert_all(
    modules: Sequence[torch.nn.Module],
    layout: Layout,
    classes: int,
    *,
    starts: np.ndarray | None = None,
    input_shape: tuple[int, ...] | None = None,
    descent: Descent = Descent(),
) -> np.ndarray:
    """Return `invert` of every class, (C, d) float32; starts: (C, d)."""
    return np.stack(
        [
            invert(
                modules,
                label,
                layout,
                start=None if starts is None else starts[label],
                input_shape=input_shape,
                descent=descent,
            )
            for label in range(classes)
        ]
    )


def class_means(owned: Records, classes: int, layout: Layout) -> np.ndarray:
    """Return the mean of the adversary's own records of each class, (C, d) float32: the baseline.

    It never touches the model. A class of which the adversary has no record has the neutral row.
    """
    flat = owned.features.reshape(len(owned), -1)
    present = [flat[owned.labels == label] for label in range(classes)]
    return np.stack([rows.mean(axis=0) if len(rows) else neutral(layout) for rows in present]).astype(
        np.float32
    )
