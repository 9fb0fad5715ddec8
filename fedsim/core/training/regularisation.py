"""Label smoothing, mixup and dropout: what a batch becomes before a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.scenario.protection import DefenceSettings

Batches = Iterator[tuple[Tensor, Tensor]]


def mixed(batches: Batches, alpha: float, stream: np.random.Generator) -> Batches:
    """Yield the batches as mixup (Zhang et al. 2018) makes them, targets (B, K) alike; as they are if α = 0.

    Drawn from ``stream`` for each batch: λ ~ Beta(α, α), then the permutation.
    """
    for x, target in batches:
        if alpha == 0:
            yield x, target
            continue
        share = stream.beta(alpha, alpha)
        other = torch.from_numpy(stream.permutation(len(x))).to(x.device)
        yield torch.lerp(x[other], x, share), torch.lerp(target[other], target, share)


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return targets (n, K) float32: (1 − s)·one-hot + s/K (Szegedy et al. 2016, section 7)."""
    one_hot = functional.one_hot(labels, classes).float()
    return one_hot if smoothing == 0 else one_hot.mul_(1 - smoothing).add_(smoothing / classes)


def targets_for(module: nn.Module, data: tuple[Tensor, Tensor], defence: DefenceSettings) -> Tensor:
    """Return what the cross-entropy is taken against: `smoothed` targets, or labels where these do."""
    features, labels = data
    if defence.label_smoothing == 0 and defence.mixup == 0:
        return labels
    with torch.no_grad():
        classes = module.eval()(features[:1]).shape[1]
    module.train()
    return smoothed(labels, classes, defence.label_smoothing)


@contextmanager
def seeded_globally(generator: torch.Generator) -> Iterator[None]:
    """Seed torch's global stream, from which dropout in any module draws, for a while.

    The seed is a hash of the seed of ``generator``, whose own draws are left as they are.
    """
    with torch.random.fork_rng():
        torch.manual_seed(_global_seed(generator))
        yield


def dropout_stream(generator: torch.Generator, device: str | torch.device) -> torch.Generator:
    """Return a stream of its own that draws what torch's global one does under `seeded_globally`."""
    return torch.Generator(device).manual_seed(_global_seed(generator))


def _global_seed(generator: torch.Generator) -> int:
    return rng.integer(generator.initial_seed(), "global torch stream")


def mixup_stream(generator: torch.Generator) -> np.random.Generator:
    """Return the stream of a round's mixup, derived from the seed of ``generator``."""
    return rng.generator(generator.initial_seed(), "mixup")
