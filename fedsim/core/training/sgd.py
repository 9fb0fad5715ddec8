"""One party's local training in one round, and the evaluation of a model on records.

Plain stacks of linear layers and ReLU, which most tabular models are, take a path with the forward and the
backward pass written out on one flat parameter vector; every other module takes torch.nn and torch.optim.
Which path is taken depends on the module's type alone. What a step is, regularisation included, is defined in
`fedsim.core.training.updates`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models import layers
from fedsim.core.models.layers import linear_stack
from fedsim.core.privacy.plan import steps_per_round
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.linear_stack import LinearStack, for_stack
from fedsim.core.training.metrics import tensors
from fedsim.core.training.regularisation import (
    Batches,
    dropout_stream,
    mixed,
    mixup_stream,
    seeded_globally,
    targets_for,
)
from fedsim.core.training.stopping import EarlyStopping, early_stopping


@dataclass(frozen=True)
class TrainingReport:
    """What one round of local training says about itself.

    steps: optimizer steps made
    loss: mean cross-entropy (nats) of the round's batches, each before its step, as it was minimised: with
        smoothed and mixed targets, and with dropout; None under DP, where it would be an answer about private
        records outside the accounting
    clipping_norm: C after the last step of adaptive clipping, None without it
    """

    steps: int
    loss: float | None = None
    clipping_norm: float | None = None


def train(
    module: nn.Module,
    records: Records,
    settings: TrainingSettings,
    generator: torch.Generator,
    *,
    proximal_mu: float = 0.0,
    device: str = "cpu",
    defence: DefenceSettings = NO_DEFENCE,
    stop_on: Records | None = None,
) -> TrainingReport:
    """Train ``module`` in place on ``records`` for one round, the optimizer's state starting fresh.

    Minimises the cross-entropy plus FedProx's proximal term μ/2 ‖w − w_t‖² (Li et al. 2020, eq. 2), w_t
    being the weights on entry. Every epoch goes through the records in a fresh permutation drawn from
    ``generator`` (CPU).

    settings: the party's own (`Scenario.training_of`), with its weight decay and epochs
    defence: how it regularises (`fedsim.core.training.updates`); its update is not shaped here
    stop_on: the records that early stopping looks at, where the defence has a patience

    Raises:
        ValueError: there are no records to train on, or none to stop on where that is asked for.
    """
    if len(records) == 0:
        raise ValueError("a party without records cannot train")
    module.to(device).train()
    stop = early_stopping(module, stop_on, defence, -(-len(records) // settings.batch), device)
    run = _train_any if linear_stack(module) is None else _train_stack
    return run(module, tensors(records, device), settings, generator, proximal_mu, defence, stop)


def minibatches(
    data: tuple[Tensor, Tensor], settings: TrainingSettings, generator: torch.Generator
) -> Batches:
    """Yield the batches of one round: a permutation per epoch, cut into pieces; the last may be smaller."""
    n = len(data[0])
    left = steps_per_round(settings, n)
    while left:
        order = torch.randperm(n, generator=generator).to(data[0].device)
        # Gathered once an epoch: the batches are then views.
        shuffled = [part[order].split(settings.batch) for part in data]
        for batch in list(zip(*shuffled, strict=True))[:left]:
            left -= 1
            yield batch


def make_steps(
    batches: Batches,
    step: Callable[[Tensor, Tensor], None],
    stop: EarlyStopping | None = None,
    *,
    store: Callable[[], None] = lambda: None,
    watch: Callable[[], object] = lambda: None,
) -> int:
    """Make ``step(x, target)`` on every batch until early stopping ends the round; return how many.

    store: writes the parameters into the module that `EarlyStopping` measures, where they are kept elsewhere
    watch: called before the first step and after every one
    """
    made = 0
    watch()
    for made, (x, target) in enumerate(batches, 1):
        step(x, target)
        watch()
        if stop and stop.due(made):
            store()
            if stop.ends(made):
                break
    store()
    if stop:
        stop.finish(made)
    return made


def make_optimizer(settings: TrainingSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer for ``settings``; L2 is its (coupled) weight decay."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.l2)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.l2)


def _train_any(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    generator: torch.Generator,
    proximal_mu: float,
    defence: DefenceSettings,
    stop: EarlyStopping | None,
) -> TrainingReport:
    parameters = [p for p in module.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in parameters]
    optimizer = make_optimizer(settings, parameters)
    losses, sizes = [], []

    def step(x: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), target)
        loss.backward()
        add_penalties(parameters, anchor, proximal_mu, defence.l1)
        optimizer.step()
        losses.append(loss.detach())
        sizes.append(len(x))

    batches = minibatches((data[0], targets_for(module, data, defence)), settings, generator)
    with seeded_globally(generator), layers.dropout(module, defence.dropout):
        steps = make_steps(mixed(batches, defence.mixup, mixup_stream(generator)), step, stop)
    mean = np.average(torch.stack(losses).cpu().numpy(), weights=sizes)
    return TrainingReport(steps, float(mean))


def add_penalties(parameters: list[nn.Parameter], anchor: list[Tensor], mu: float, l1: float) -> None:
    """Add μ(w − w_t) of FedProx's proximal term and λ₁ sign(w) of L1 to the parameters' gradients."""
    for p, start in zip(parameters, anchor, strict=True):
        if p.grad is not None and mu:
            p.grad.add_(p.detach() - start, alpha=mu)
        if p.grad is not None and l1:
            p.grad.add_(p.detach().sign(), alpha=l1)


def _train_stack(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    settings: TrainingSettings,
    generator: torch.Generator,
    proximal_mu: float,
    defence: DefenceSettings,
    stop: EarlyStopping | None,
) -> TrainingReport:
    with torch.inference_mode():
        stack = LinearStack(module, defence.dropout, dropout_stream(generator, data[0].device))
        update = stack.updater(settings, proximal_mu, defence.l1)
        outputs, targets = [], []

        def step(x: Tensor, target: Tensor) -> None:
            logits = stack.forward(x)
            # ∂(mean cross-entropy)/∂logits = (softmax − target) / batch
            stack.backward(torch.softmax(logits, 1).sub_(target).div_(len(x)))
            update(stack.gradient)
            outputs.append(logits)
            targets.append(target)

        batches = minibatches(for_stack(*data, stack.classes, defence.label_smoothing), settings, generator)
        mixing = mixed(batches, defence.mixup, mixup_stream(generator))
        steps = make_steps(mixing, step, stop, store=stack.store)
        loss = functional.cross_entropy(torch.cat(outputs), torch.cat(targets))
    return TrainingReport(steps, loss.item())
