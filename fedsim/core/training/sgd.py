"""One party's local training in one round, without DP.

Plain stacks of linear layers and ReLU, which most tabular models are, take a path with the forward and the
backward pass written out on one flat parameter vector; every other module takes torch.nn and torch.optim.
Which path is taken depends on the module's type alone. `fedsim.core.training.updates` defines what a step is,
regularisation included. Where a run makes many steps a third path does the same in a kernel of numba's
(`fedsim.core.training.paths`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.data.records import Records
from fedsim.core.models import layers
from fedsim.core.models.layers import linear_stack
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import losses, slopes
from fedsim.core.training.draws import Draws
from fedsim.core.training.linear_stack import LinearStack, for_stack
from fedsim.core.training.metrics import tensors
from fedsim.core.training.optimizers import add_penalties, flat_optimizer, torch_optimizer
from fedsim.core.training.regularisation import mixed, targets_for
from fedsim.core.training.steps import Batches, LocalTraining, TrainingReport, make_steps
from fedsim.core.training.stopping import EarlyStopping, early_stopping


def train(
    module: nn.Module,
    records: Records,
    local: LocalTraining,
    draws: Draws,
    *,
    soft: np.ndarray | None = None,
) -> TrainingReport:
    """Train ``module`` in place on ``records`` for one round, the optimizer's state starting fresh.

    Minimises the cross-entropy plus FedProx's proximal term, as `LocalTraining` says. No step is private:
    see `core.training.dp.train_private`.

    soft: (n, K) float32, rows of sum 1, what the cross-entropy is taken against instead of the labels; they
        are not smoothed

    Raises:
        ValueError: there are no records to train on, or none to stop on where that is asked for.
    """
    if len(records) == 0:
        raise ValueError("a party without records cannot train")
    if local.path == "fused":
        from fedsim.core.training.fused import party  # numba takes a third of a second

        return party.train(module, records, local, draws)
    layers.move(module, local.device)
    epoch = -(-len(records) // local.settings.batch)
    stop = early_stopping(module, local.stop_on, local.defence, epoch, local.device)
    features, labels = tensors(records, local.device)
    target = labels if soft is None else torch.from_numpy(soft).to(local.device)
    stack = linear_stack(module)
    if stack is None:
        return _train_any(module, (features, target), local, draws, stop)
    return _train_stack(stack, (features, target), local, draws, stop)


def minibatches(data: tuple[Tensor, Tensor], settings: TrainingSettings, draws: Draws) -> Batches:
    """Yield the batches of one round, as `Draws.permuted` deals the records (n, …) of ``data``."""
    for batches in draws.permuted(len(data[0]), settings):
        order, sizes = torch.cat(list(batches)).to(data[0].device), [len(batch) for batch in batches]
        # Gathered once an epoch: the batches are then views.
        yield from zip(*(part[order].split_with_sizes(sizes) for part in data), strict=True)


def _train_any(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    local: LocalTraining,
    draws: Draws,
    stop: EarlyStopping | None,
) -> TrainingReport:
    settings, defence = local.settings, local.defence
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    optimizer = torch_optimizer(settings, parameters)
    batch_losses, sizes = [], []
    per_epoch = -(-len(data[0]) // settings.batch)

    def step(number: int, x: Tensor, target: Tensor) -> None:
        optimizer.zero_grad()
        logits = module(x)
        loss = losses.mean(logits, target)
        if defence.shapes_slope:
            logits.backward(slopes.slope(logits.detach(), target, defence, number, per_epoch))
        else:
            loss.backward()
        for p, sent in zip(parameters, start, strict=True):
            if p.grad is not None:
                add_penalties(p.grad, p.detach(), sent, local.proximal_mu, defence.l1)
        optimizer.step()
        batch_losses.append(loss.detach())
        sizes.append(len(x))

    batches = minibatches((data[0], targets_for(module, data, defence)), settings, draws)
    with draws.global_stream(), layers.dropout(module, defence.dropout):
        steps = make_steps(mixed(batches, defence.mixup, draws), step, stop)
    mean = np.average(torch.stack(batch_losses).cpu().numpy(), weights=sizes)
    return TrainingReport(steps, float(mean))


def _train_stack(
    layers: Sequence[nn.Linear],
    data: tuple[Tensor, Tensor],
    local: LocalTraining,
    draws: Draws,
    stop: EarlyStopping | None,
) -> TrainingReport:
    settings, defence = local.settings, local.defence
    with torch.inference_mode():
        stack = _stack_of(tuple(layers), defence.dropout, layers[0].weight.device)
        stack.load()
        start = stack.flat.clone()
        update = flat_optimizer(stack.flat, settings)
        outputs, targets = [], []
        per_epoch = -(-len(data[0]) // settings.batch)

        def step(number: int, x: Tensor, target: Tensor) -> None:
            logits = stack.forward(x, stack.masks(draws, number, len(x)))
            # The gradient is that of the batch's mean loss.
            stack.backward(slopes.slope(logits, target, defence, number, per_epoch))
            add_penalties(stack.gradient, stack.flat, start, local.proximal_mu, defence.l1)
            update(stack.gradient)
            outputs.append(logits)
            targets.append(target)

        batches = minibatches(
            for_stack(*data, stack.classes, defence.smoothing_of(stack.classes)), settings, draws
        )
        steps = make_steps(mixed(batches, defence.mixup, draws), step, stop, store=stack.store)
        loss = losses.mean(torch.cat(outputs), torch.cat(targets))
    return TrainingReport(steps, loss.item())


@lru_cache(maxsize=2)
def _stack_of(layers: tuple[nn.Linear, ...], dropout: float, device: torch.device) -> LinearStack:
    """Return the stack of these layers, made once for all parties that train the same module in turn.

    Whoever takes it has to `load` it.
    """
    return LinearStack(layers, dropout)
