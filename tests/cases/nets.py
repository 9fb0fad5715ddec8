"""Modules of a user's own, as users write them; each shows something that went wrong once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Running(nn.Module):
    """Standardises by a running mean; it has no parameters."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.mean
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x


class Words(nn.Module):
    """Features as words of an embedding, whose rows may be bounded."""

    def __init__(self, features: int, classes: int, max_norm: float | None) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(8, 4, max_norm=max_norm), nn.Linear(4 * features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words((x.clamp(-2, 2) * 1.7 + 3.5).long().clamp(0, 7)).flatten(1))


class Permuted(nn.Module):
    """The features in an order that an integer buffer holds."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(features).flip(0))
        self.register_buffer("used", torch.ones(features, dtype=torch.bool))
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x[:, self.order] * self.used)


class Tied(nn.Module):
    """Two layers share a weight, which has two names in the module's state."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(features, features), nn.Linear(features, features)
        self.down.weight = self.up.weight
        self.out = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.down(torch.relu(self.up(x)))))


class Attending(nn.Module):
    """Attention over the features, whose positions are looked up once for all records."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        from opacus.layers import DPMultiheadAttention

        self.lift, self.positions = nn.Linear(1, 8), nn.Embedding(features, 8)
        self.register_buffer("position_ids", torch.arange(features))
        self.attention = DPMultiheadAttention(8, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        places = self.positions(self.position_ids)[None].expand(len(x), -1, -1)
        h = self.lift(x[:, :, None]) + places
        return self.out(self.norm(h + self.attention(h, h, h)[0]).mean(1))


def running(shape: tuple[int, ...], classes: int) -> nn.Module:
    width = math.prod(shape)
    return nn.Sequential(Running(width), nn.Linear(width, classes))


def bounded_words(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Words(math.prod(shape), classes, max_norm=0.5)


def permuted(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Permuted(math.prod(shape), classes)


def tied(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Tied(math.prod(shape), classes)


def attending(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Attending(math.prod(shape), classes)
