"""Many models of one architecture, trained at once: their parameters are stacked along a leading axis.

M models take one step together, each on a batch of its own. For plain stacks of linear layers and ReLU
(`StackedLayers`) the forward and the backward pass are written out as batched matrix products, and the
optimizer's step is fused into the last of them; any other module goes through `torch.func`
(`StackedModule`). Records are weighted one by one, so that a batch may be padded with records of weight 0.

A step of many small models is bound by memory as much as by arithmetic, and by the number of operations. So
a layer's biases are the last row in use of its weight matrix, multiplied by a 1 that follows its inputs, and
buffers are used again.

Every matrix of `StackedLayers` has dimensions that are multiples of 4, filled up with zeros that stay zero:
then all matrices of a stack begin on a 64-byte boundary, and what a model becomes does not depend, not even
in its last bit, on which other models it is stacked with (the rounding of a matrix product depends on its
operands' alignment). This holds on one thread, see `single_thread`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.core.data.records import Records
from fedsim.core.training.slopes import Shaping

Parameters = list[Tensor]  # one (M, …) float32 tensor per parameter of the architecture

SIGNAL_ROWS = 512  # records whose logits are computed at a time


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread for a while: small products gain nothing from more, and may round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Gradient(Protocol):
    """The gradients of M models, not necessarily formed."""

    @property
    def norms(self) -> Tensor:
        """‖∇ℓ_i‖ of each record, (M, B), where they were clipped."""

    def add_to(self, i: int, target: Tensor, beta: float, alpha: float) -> None:
        """Set ``target`` (M, …) to β·target + α·∇, ∇ being the gradients of the i-th parameter."""


@dataclass(frozen=True)
class PoolTensors:
    """A pool of records in the form that an architecture reads.

    The last row is an empty record, used as padding: features (n + 1, …) float32, labels (n + 1,) int64.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels) - 1


@dataclass(frozen=True)
class Batches:
    """One batch for each of M models.

    rows: (M, B) int, of the pool, B a multiple of 4; labels: (M, B) int64, of these rows
    weight: (M, B) float32, 0 for padding
    clipping_norm: (M, 1) float32, C of per-sample clipping where that is on
    noise: to be added to the gradients
    targets: (M, B, classes) float32, what the cross-entropy is taken against instead of the labels
    mixed: records that those of the batch are mixed with
    unit_scale: (M, B, hidden units) float32, by what the hidden units' outputs are multiplied, layer after
        layer: inverted dropout; for stacked layers only
    shaping: another slope than the cross-entropy's, (M, 1, 1) each; for stacked layers only, without clipping
    """

    rows: Tensor
    labels: Tensor
    weight: Tensor
    clipping_norm: Tensor | None = None
    noise: Noise | None = None
    targets: Tensor | None = None
    mixed: Mixed | None = None
    unit_scale: Tensor | None = None
    shaping: Shaping | None = None


@dataclass(frozen=True)
class Mixed:
    """Features become share·(their own) + (1 − share)·(those of ``rows``); share: (M,) float32."""

    rows: Tensor
    share: Tensor

    def apply(self, features: Tensor, pool: PoolTensors) -> Tensor:
        """Return the features (M, B, …) mixed."""
        share = self.share.view(-1, *[1] * (features.dim() - 1))
        return torch.lerp(pool.features[self.rows], features, share)


@dataclass(frozen=True)
class Noise:
    """scale (M,) float32 · pieces, standard normal numbers as `Stack.split` cuts them."""

    pieces: list[Tensor]
    scale: Tensor

    def add_to(self, target: Tensor, piece: int, alpha: float) -> None:
        """Add α·scale·(that piece) to ``target``, (M, …) of the piece's shape."""
        scale = self.scale.view(-1, *[1] * (target.dim() - 1))
        target.addcmul_(self.pieces[piece], scale, value=alpha)


class Trainer(Protocol):
    """M models in training: their gradients at what their parameters are now."""

    def gradient(self, batches: Batches) -> Gradient:
        """Return Σ_i weight_i c_i ∇ℓ_i + noise of the first models, as many as there are batches.

        ℓ is the cross-entropy; c_i = min(1, C / ‖∇ℓ_i‖), with Opacus' 1e-6 in the denominator, or 1
        without a clipping norm. What is returned is valid until the next call.
        """


class Stack(Protocol):
    """An architecture, and how M models of it are evaluated and differentiated together.

    parameters: number of trained parameters of one model
    hidden_widths: numbers of hidden units, layer after layer, as `Batches.unit_scale` has them, if the stack
        knows of any
    rounds_alike: whether a model's rounding is the same whatever it is stacked with
    """

    parameters: int
    hidden_widths: list[int]
    rounds_alike: bool

    def load(self, state: Mapping[str, np.ndarray]) -> Parameters:
        """Return the parameters of one model, M = 1."""

    def pieces(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return views of the trained parameters, (M, …) each and without padding, in `split`'s shapes."""

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut (M, parameters) into one piece per trained parameter of the module."""

    def state(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return such pieces, and the constants, as (M, …) by name, in the module's shapes and order."""

    def pool(self, records: Records) -> PoolTensors:
        """Return ``records`` in the form that batches are gathered from."""

    def logits(self, parameters: Parameters, pool: PoolTensors) -> Tensor:
        """Return the logits of every model on every record, (M, n, classes) float32."""

    def logits_of(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return the logits of every model on records of its own, (M, R, …) → (M, R, classes) float32."""

    def trainer(self, parameters: Parameters, pool: PoolTensors) -> Trainer:
        """Return what computes the gradients of these models, which may be changed in place meanwhile."""

    def floats(self, width: int, private: bool) -> int:
        """Return how many floats one model takes in a step of batch ``width``, besides its parameters."""


def up(size: int, multiple: int = 4) -> int:
    """Return ``size`` rounded up to a multiple."""
    return -(-size // multiple) * multiple
