"""The first global model, trained on public records before the federation begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedsim.core.data.records import Records
from fedsim.core.scenario.training import PretrainSettings, TrainingSettings
from fedsim.core.training import losses
from fedsim.core.training.metrics import tensors
from fedsim.core.training.optimizers import torch_optimizer


def pretrain(
    module: nn.Module,
    public: Records,
    settings: PretrainSettings,
    order: torch.Generator,
    progress: Callable[[int, int], object] = lambda done, total: None,
    device: str = "cpu",
) -> None:
    """Train ``module`` in place on public records, Adam all the way; order: (CPU) stream of the batches."""
    x, y = tensors(public, device)
    module.to(device).train()
    training = TrainingSettings(optimizer="adam", lr=settings.lr, batch=settings.batch)
    optimizer = torch_optimizer(training, [p for p in module.parameters() if p.requires_grad])
    for epoch in range(settings.epochs):
        progress(epoch, settings.epochs)
        for rows in torch.randperm(len(x), generator=order).to(device).split(settings.batch):
            optimizer.zero_grad()
            losses.mean(module(x[rows]), y[rows]).backward()
            optimizer.step()
    progress(settings.epochs, settings.epochs)
