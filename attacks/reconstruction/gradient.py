"""Gradient inversion: which records explain the update that a party sent?

An update Δ = w' − w comes of local steps on n records. Rows are sought whose simulated local training moves
the model as Δ says, with the labels that the last layer's bias tells:

dlg       ‖Δ̂ − Δ‖² / ‖Δ‖² by L-BFGS (Zhu, Liu & Han 2019), labels first (iDLG, Zhao et al. 2020)
geiping   1 − cos(Δ̂, Δ) by Adam on the signs of the gradient (Geiping et al. 2020), in the columns' ranges
analytic  arithmetic on the first layer alone (`analytic`)

Categories are sought as in TabLeak (Vero et al. 2023): relaxed by softmax, several starts, whose rows are
matched and pooled.

Several local steps are unrolled, the optimizer's momentum or Adam's moments with them (Geiping et al. 2020,
section 6; Xu et al. 2022, AGIC). Which records a minibatch holds is not known. In one epoch it need not be:
rows are sought minibatch by minibatch. In several, each epoch has rows of its own, tied by their means, which
do not depend on the order, and matched in the end (Dimitrov et al. 2022, sections 4.2 to 4.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from attacks.declaration import EVERY_UPDATE
from attacks.further import further
from attacks.reconstruction import analytic
from attacks.reconstruction.rows import Rows
from fedsim.core.data.layout import Layout
from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch

Method = Literal["analytic", "dlg", "geiping"]
METHODS: tuple[Method, ...] = ("analytic", "dlg", "geiping")


@dataclass(frozen=True)
class LocalSteps:
    """What is public of the training behind an update, on n records, by an optimizer that starts anew.

    A participant's or a secure sum's update is read as one party's with the records of all.
    batch: of one step; momentum: of SGD's, as `fedsim.core.training.optimizers` has both optimizers
    proximal_mu: μ of FedProx; l2, l1: weight decay and λ of L1; label_smoothing: see `DefenceSettings`
    """

    records: int
    batch: int
    epochs: int
    lr: float
    proximal_mu: float = 0.0
    l2: float = 0.0
    l1: float = 0.0
    label_smoothing: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0

    @property
    def minibatches(self) -> int:
        """Steps of one epoch."""
        return -(-self.records // self.batch)

    @property
    def copies(self) -> int:
        """How often a record is sought: once an epoch where the epochs' minibatches may differ."""
        return self.epochs if self.minibatches > 1 else 1

    @property
    def reach(self) -> float:
        """How far a gradient that stays 1 moves a weight, in units of the learning rate."""
        if self.optimizer == "adam" or not self.momentum:
            return float(self.steps)
        return sum((1 - self.momentum**step) / (1 - self.momentum) for step in range(1, self.steps + 1))

    @property
    def penalised(self) -> bool:
        """Whether a step's gradient has a part that depends on no record."""
        return bool(self.proximal_mu or self.l2 or self.l1)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.minibatches


@dataclass(frozen=True)
class Effort:
    """How hard a search tries: starts, iterations of each (L-BFGS, Adam), first step of Adam."""

    starts: int = 4
    dlg_iterations: int = 120
    geiping_iterations: int = 300
    rate: float = 0.1


TIE = 1.0
"""Weight of the squared distance between the means of the epochs' rows, beside the objective."""

SMOOTH = 0.1
"""What stands for Adam's ε of 1e-8 in the simulation, as a share of a step's root mean square gradient: with
the true one, the first step is the gradient's sign, which no search can descend."""

TINY = 1e-24
"""Added below a root, whose slope at 0 is infinite."""


@further(
    "reconstruct",
    "analytic",
    infers="the records of a batch",
    observers=("server",),
    sees=EVERY_UPDATE,
    assumes="the first layer is linear, and a unit responds to one record",
    baseline="the nearest of its own records",
    source="Phong et al. 2018; Geiping et al. 2020",
)
@further(
    "reconstruct",
    "dlg",
    infers="the records of a batch",
    observers=("server", "participant"),
    sees="an update, or a sum of them",
    assumes="the optimizer, and its steps, as the settings say; the number of records",
    baseline="the nearest of its own records",
    source="Zhu et al. 2019; Vero et al. 2023 (TabLeak)",
)
@further(
    "reconstruct",
    "geiping",
    infers="the records of a batch",
    observers=("server", "participant"),
    sees="an update, or a sum of them",
    assumes="the optimizer, and its steps, as the settings say; the number of records",
    baseline="the nearest of its own records",
    source="Geiping et al. 2020; Vero et al. 2023 (TabLeak)",
)
def invert(
    module: torch.nn.Module,
    update: Mapping[str, np.ndarray],
    local: LocalSteps,
    layout: Layout,
    method: Method,
    rng: np.random.Generator,
    *,
    background: np.ndarray | None = None,
    input_shape: tuple[int, ...] | None = None,
    effort: Effort = Effort(),
) -> Records:
    """Return the rows that explain ``update``, at most ``local.records``, with whole values.

    module: with the weights w before the update; update: Δ by parameter name
    background: rows (m, d) that the adversary takes for typical, for the labels; default: uniform ones
    input_shape: of one record's features; default: a flat row
    """
    rows = Rows.of(layout)
    shape = input_shape or (len(rows),)
    typical = rows.drawn(256, rng) if background is None else background
    labels = labels_of(module, update, local, typical.reshape(-1, *shape))
    start = _analytic(module, update, rows, local.records)
    if method == "analytic":
        return Records(rows.whole(start).reshape(-1, *shape), labels[: len(start)])
    simulated = _simulation(module, local, shape)
    target = {name: -np.asarray(update[name], np.float32) for name, _ in module.named_parameters()}
    search, distance = {"dlg": (_by_lbfgs, _squared), "geiping": (_by_signed_adam, _angle)}[method]
    cost = _cost(simulated, target, local.copies, distance)
    starts = _starts(start, rows, labels, local.copies, effort.starts, rng)
    finished = [_folded(search(cost, rows, free, order, effort), local.copies) for free, order in starts]
    return _pooled(finished, rows, shape)


@further(
    "reconstruct",
    "label counts",
    infers="how many of a batch have each label",
    observers=("server", "participant"),
    sees="the last layer's update",
    assumes="mean outputs on the batch are those on typical records",
    baseline="none: labels of a baseline row are not guessed",
    source="Yin et al. 2021; Wainakh et al. 2022",
)
def labels_of(
    module: torch.nn.Module, update: Mapping[str, np.ndarray], local: LocalSteps, typical: np.ndarray
) -> np.ndarray:
    """Return the labels of the records behind ``update``, sorted, (n,) int64 (`analytic.label_counts`).

    The mean output is that on ``typical``, before and after the update, as the local steps see both. Of Adam,
    whose steps tell little more than signs, the counts are no more than a guess.
    """
    import copy

    import torch

    after = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            parameter.add_(torch.tensor(update[name], dtype=parameter.dtype))
        inputs = torch.tensor(typical, dtype=torch.float32)
        models = [module] if local.steps == 1 else [module, after]
        p = torch.stack([torch.softmax(model(inputs), 1).mean(0) for model in models]).mean(0).numpy()
    last = [name for name, value in module.named_parameters() if value.ndim == 1][-1]
    gradient = -np.asarray(update[last], np.float64) / (local.lr * local.reach)
    return np.repeat(np.arange(len(p)), analytic.label_counts(gradient, p, local.records))


Start = tuple["torch.Tensor", "torch.Tensor"]
Simulation = Callable[["torch.Tensor", "torch.Tensor"], "dict[str, torch.Tensor]"]
Cost = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Slopes = dict[str, "torch.Tensor"]
Finished = tuple[float, np.ndarray, np.ndarray]
"""Objective reached, relaxed rows (n, d) and their labels (n,)."""


def _simulation(module: torch.nn.Module, local: LocalSteps, shape: tuple[int, ...]) -> Simulation:
    """Return the function (rows, labels) → −Δ̂ of the local training on them, differentiable in the rows."""
    import torch
    from torch.func import functional_call, grad

    weights = {name: value.detach() for name, value in module.named_parameters()}

    def loss(w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = functional_call(module, w, (x.reshape(-1, *shape),))
        return torch.nn.functional.cross_entropy(logits, y, label_smoothing=local.label_smoothing)

    def pulled(w: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        """Return μ(w − w_t) + λ₁ sign(w) + λ₂ w, as `fedsim.core.training.updates` adds it to a gradient."""
        value = w[name]
        return local.proximal_mu * (value - weights[name]) + local.l1 * value.sign() + local.l2 * value

    def moved(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        w, step = weights, _adam(local) if local.optimizer == "adam" else _heavy_ball(local)
        epochs = [(x, y)] * local.epochs
        if local.copies > 1:
            epochs = list(zip(x.split(local.records), y.split(local.records), strict=True))
        for features, targets in epochs:
            for part, target in zip(features.split(local.batch), targets.split(local.batch), strict=True):
                slope = grad(loss)(w, part, target)
                if local.penalised:
                    slope = {name: value + pulled(w, name) for name, value in slope.items()}
                taken = step(slope)
                w = {name: value - local.lr * taken[name] for name, value in w.items()}
        return {name: weights[name] - value for name, value in w.items()}

    return moved


def _heavy_ball(local: LocalSteps) -> Callable[[Slopes], Slopes]:
    """Return what turns the gradients of one step after another into steps of SGD, in units of the rate."""
    velocity: Slopes = {}

    def step(slope: Slopes) -> Slopes:
        nonlocal velocity
        velocity = {name: local.momentum * velocity.get(name, 0) + value for name, value in slope.items()}
        return velocity

    return step


def _adam(local: LocalSteps) -> Callable[[Slopes], Slopes]:
    """Return the same of Adam (Kingma & Ba 2015, algorithm 1), but for ε, see `SMOOTH`."""
    import torch

    mean: Slopes = {}
    square: Slopes = {}
    t, beta1, beta2 = 0, 0.9, 0.999

    def step(slope: Slopes) -> Slopes:
        nonlocal mean, square, t
        t += 1
        mean = {name: beta1 * mean.get(name, 0) + (1 - beta1) * value for name, value in slope.items()}
        square = {
            name: beta2 * square.get(name, 0) + (1 - beta2) * value.square() for name, value in slope.items()
        }
        with torch.no_grad():
            size = torch.cat([value.flatten() for value in slope.values()]).square().mean().sqrt()
        least = (SMOOTH * size) ** 2 + TINY
        scale = {name: (value / (1 - beta2**t) + least).sqrt() for name, value in square.items()}
        return {name: value / (1 - beta1**t) / scale[name] for name, value in mean.items()}

    return step


def _starts(
    known: np.ndarray, rows: Rows, labels: np.ndarray, copies: int, count: int, rng: np.random.Generator
) -> list[Start]:
    """Return the starts of a search: one from the analytic rows as far as they go, the others from noise.

    copies: of every row, one after the other, as `LocalSteps.copies` says
    """
    import torch

    starts = []
    for k in range(count):
        free = rng.normal(size=(len(labels), len(rows))).astype(np.float32)
        middle, reach = (rows.low + rows.high) / 2, (rows.high - rows.low) / 4
        free = np.where(rows.numbers, middle + reach * free, free).astype(np.float32)
        if k == 0:
            free[: len(known)] = rows.free(rows.clipped(known))
        order = np.tile(rng.permutation(labels), copies)
        starts.append((torch.tensor(np.tile(free, (copies, 1))), torch.tensor(order)))
    return starts


def _squared(simulated: Slopes, target: Slopes) -> torch.Tensor:
    import torch

    total = torch.stack([value.square().sum() for value in target.values()]).sum()
    parts = [(simulated[name] - value).square().sum() for name, value in target.items()]
    return torch.stack(parts).sum() / total


def _angle(simulated: Slopes, target: Slopes) -> torch.Tensor:
    import torch

    dot = torch.stack([(simulated[name] * value).sum() for name, value in target.items()]).sum()
    lengths = [torch.stack([v.square().sum() for v in side.values()]).sum() for side in (simulated, target)]
    return 1 - dot / (lengths[0] * lengths[1] + 1e-30).sqrt()


def _cost(
    simulated: Simulation,
    target: Mapping[str, np.ndarray],
    copies: int,
    distance: Callable[[Slopes, Slopes], torch.Tensor],
) -> Cost:
    """Return the function (rows, labels) → what the search makes small."""
    import torch

    goal = {name: torch.tensor(value) for name, value in target.items()}

    def cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        apart = distance(simulated(x, y), goal)
        if copies == 1:
            return apart
        means = x.reshape(copies, -1, x.shape[1]).mean(1)  # (epochs, d)
        return apart + TIE * (means - means.mean(0)).square().mean()

    return cost


def _by_lbfgs(cost: Cost, rows: Rows, free: torch.Tensor, labels: torch.Tensor, effort: Effort) -> Finished:
    import torch

    free = free.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=effort.dlg_iterations, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        objective = cost(rows.relaxed(free), labels)
        objective.backward()
        return objective

    optimizer.step(closure)
    return _finish(cost, rows, free, labels)


def _by_signed_adam(
    cost: Cost, rows: Rows, free: torch.Tensor, labels: torch.Tensor, effort: Effort
) -> Finished:
    import torch

    numbers, low, high = (torch.tensor(bound) for bound in (rows.numbers, rows.low, rows.high))
    free = free.requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=effort.rate)
    milestones = [round(effort.geiping_iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(effort.geiping_iterations):
        optimizer.zero_grad()
        cost(rows.relaxed(free), labels).backward()
        assert free.grad is not None
        free.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():  # numbers stay in their range, as pixels do in the paper
            free.copy_(torch.where(numbers, torch.clamp(free, low, high), free))
    return _finish(cost, rows, free, labels)


def _finish(cost: Cost, rows: Rows, free: torch.Tensor, labels: torch.Tensor) -> Finished:
    import torch

    with torch.no_grad():
        relaxed = rows.relaxed(free)
    reached = float(cost(relaxed, labels))
    return (reached if np.isfinite(reached) else np.inf), np.nan_to_num(relaxed.numpy()), labels.numpy()


def _folded(found: Finished, copies: int) -> Finished:
    """Return the mean over epochs of each row, copies of rows being matched to those of the first epoch."""
    reached, rows, labels = found
    epochs = [
        (reached, part, own)
        for part, own in zip(np.split(rows, copies), np.split(labels, copies), strict=True)
    ]
    matched = [_matched(epochs[0], epoch) for epoch in epochs]
    return reached, np.mean(matched, axis=0), epochs[0][2]


def _pooled(finished: Sequence[Finished], rows: Rows, shape: tuple[int, ...]) -> Records:
    """Return the best start's rows, each pooled with its like in the others (TabLeak, section 4.2).

    Only starts that explain the update nearly as well take part: a median with failures is no better.
    """
    best = min(finished, key=lambda start: start[0])  # rounding may take 1 − cos below 0
    like = [start for start in finished if start[0] <= 2 * max(best[0], 0.0) + 1e-6]
    matched = [_matched(best, start) for start in like]
    centre = np.median(np.stack(matched), axis=0)
    return Records(rows.whole(centre).reshape(-1, *shape), best[2])


def _matched(best: Finished, other: Finished) -> np.ndarray:
    """Return the other start's rows in the order of the best one's, labels first, then distance."""
    from scipy.optimize import linear_sum_assignment

    distance = ((best[1][:, None] - other[1][None]) ** 2).sum(axis=2)
    distance += 1e6 * (best[2][:, None] != other[2][None])
    return other[1][linear_sum_assignment(distance)[1]]


def _analytic(module: torch.nn.Module, update: Mapping[str, np.ndarray], rows: Rows, n: int) -> np.ndarray:
    """Return what the first layer tells, at most n rows (m, d); none where it is no linear layer on them."""
    import torch

    layers = [
        (name, layer) for name, layer in module.named_modules() if list(layer.parameters(recurse=False))
    ]
    name, first = layers[0]
    if not isinstance(first, torch.nn.Linear) or first.bias is None:
        return np.empty((0, len(rows)))
    quotients = analytic.first_layer(update[f"{name}.weight"], update[f"{name}.bias"])
    return analytic.likely_rows(quotients, rows, n)
