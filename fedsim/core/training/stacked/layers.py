"""Stacks of linear layers and ReLU, with forward and backward pass written out as batched matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models.layers import linear_stack
from fedsim.core.training import slopes
from fedsim.core.training.stacked.batches import SIGNAL_ROWS, Batches, Noise, Parameters, PoolTensors, up


def _whole_fours(x: Tensor) -> Tensor:
    """Return (…, R, d) with zero rows added so that R is a multiple of 4."""
    return functional.pad(x, (0, 0, 0, -x.shape[-2] % 4))


@dataclass(frozen=True)
class LayerSize:
    """One linear layer: ``below`` inputs, ``above`` outputs, and how its inputs and biases are laid out.

    inputs: length of its inputs with the 1 that follows them, a multiple of 4
    bias: the place of that 1, and so of the biases among the weights
    last: whether it is the output layer, whose matrix is transposed
    """

    below: int
    above: int
    inputs: int
    bias: int
    last: bool = False

    def parts(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of its weights (M, in, out) and biases (M, 1, out), of the output layer transposed."""
        if self.last:
            return matrix[:, : self.above, : self.below], matrix[:, : self.above, self.bias, None]
        return matrix[:, : self.below, : self.above], matrix[:, self.bias, None, : self.above]


def layer_sizes(widths: Sequence[int]) -> list[LayerSize]:
    """Return the layers between layers of units of these widths.

    The 1 comes after the padding of a hidden layer's outputs, which a product may write as a whole; the
    records' own features are written with it, so that it takes the first place of their padding.
    """
    first = LayerSize(widths[0], widths[1], up(widths[0] + 1), widths[0])
    hidden = [LayerSize(a, b, up(a) + 4, up(a)) for a, b in pairwise(widths[1:])]
    *others, last = [first, *hidden]
    return [*others, replace(last, last=True)]


class StackedLayers:
    """Linear-ReLU-…-Linear networks without autograd.

    Parameters are one matrix per layer, weights and biases (`LayerSize`): (M, inputs, out) of a hidden layer,
    (M, classes, inputs) of the output layer, transposed since products with a narrow last dimension are slow.
    """

    rounds_alike = True

    def __init__(self, module: nn.Module) -> None:
        layers = linear_stack(module)
        assert layers is not None
        self._names = list(module.state_dict())
        self.widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
        self.layers = layer_sizes(self.widths)
        self.parameters = sum((a + 1) * b for a, b in pairwise(self.widths))
        self.hidden_widths = self.widths[1:-1]
        self._scratch = Workspace()

    def load(self, state: Mapping[str, np.ndarray]) -> Parameters:
        """Return the parameters of one model, M = 1, padded with zeros."""
        parameters = [torch.zeros(1, *shape) for shape in self.shapes]
        for name, place in self.state(self.pieces(parameters)).items():
            place.copy_(torch.tensor(state[name]))
        return parameters

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes of a model's matrices."""
        *hidden, last = [(layer.inputs, up(layer.above)) for layer in self.layers]
        return [*hidden, last[::-1]]

    def pieces(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return weights (M, in, out) and biases (M, 1, out) per layer, the last layer's transposed."""
        parts = [layer.parts(p) for p, layer in zip(parameters, self.layers, strict=True)]
        return [part for pair in parts for part in pair]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut (M, parameters) into pieces of these shapes."""
        shapes = [shape for a, b in pairwise(self.widths) for shape in ((a, b), (1, b))]
        shapes[-2:] = [shape[::-1] for shape in shapes[-2:]]
        pieces = flat.split([high * wide for high, wide in shapes], dim=1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def state(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return (M, out, in) and (M, out) by name."""
        values = list(pieces)
        # Hidden layers are stored (M, in, out), the module's shape is (out, in), as the last one is stored.
        values[:-2:2] = [weight.mT for weight in pieces[:-2:2]]
        values[1:-2:2] = [bias.squeeze(1) for bias in pieces[1:-2:2]]
        values[-1] = pieces[-1].squeeze(2)
        return dict(zip(self._names, values, strict=True))

    def pool(self, records: Records) -> PoolTensors:
        """Return flat features followed by a 1, (n + 1, d + 1), filled up to a multiple of 4."""
        n, first = len(records), self.layers[0]
        features = torch.zeros(n + 1, first.inputs)
        features[:n, : first.below] = torch.tensor(records.features).flatten(1)
        features[:, first.bias] = 1
        return PoolTensors(features, functional.pad(torch.tensor(records.labels), (0, 1)))

    def logits(self, parameters: Parameters, pool: PoolTensors) -> Tensor:
        """Return (M, n, classes) float32, `SIGNAL_ROWS` records at a time."""
        n, models = len(pool), len(parameters[0])
        answers = torch.empty(models, n, self.widths[-1])
        for start in range(0, n, SIGNAL_ROWS):
            x = pool.features[start : min(start + SIGNAL_ROWS, n)]
            everyones = _whole_fours(x).expand(models, -1, -1)  # (M, rows, inputs), not copied
            answers[:, start : start + len(x)] = self._logits(parameters, everyones)[:, : len(x)]
        return answers

    def logits_of(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return (M, R, classes) float32; features as `pool` has them."""
        return self._logits(parameters, _whole_fours(features))[:, : features.shape[1]]

    def _logits(self, parameters: Parameters, x: Tensor) -> Tensor:
        for weight, layer in zip(parameters[:-1], self.layers[1:], strict=True):
            z = torch.bmm(x, weight)  # (M, R, inputs)(M, inputs, out), biases included
            x = self._scratch.followed_by_one(
                "signal input", models=len(z), rows=z.shape[1], inputs=layer.inputs
            )
            torch.clamp_min(z[:, :, : layer.below], 0, out=x[:, :, : layer.below])
        return torch.bmm(parameters[-1], x.mT)[:, : self.widths[-1]].mT

    def trainer(self, parameters: Parameters, pool: PoolTensors) -> LayerTrainer:
        """Return the written-out gradients; one trainer at a time, since they share memory."""
        return LayerTrainer(parameters, pool, self.layers, self._scratch)

    def floats(self, width: int, private: bool) -> int:
        """Inputs, errors and a temporary of every layer, and noise."""
        activations = 3 * up(width) * sum(layer.inputs + 4 for layer in self.layers)
        return activations + (3 * self.parameters if private else 0)


class Workspace:
    """Named scratch tensors that are used again: fresh memory costs as much as the arithmetic on it."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}
        self._inputs: dict[tuple[str, int], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised float32 tensor that shares its memory with others of the name."""
        size = math.prod(shape)
        if name not in self._flat or len(self._flat[name]) < size:
            self._flat[name] = torch.empty(size)
        return self._flat[name][:size].view(shape)

    def followed_by_one(self, name: str, models: int, rows: int, inputs: int) -> Tensor:
        """Return (models, rows, inputs) whose last four columns are 1, 0, 0, 0, to be left so.

        It is part of a larger tensor if the name was used for one before; rows are contiguous.
        """
        whole = self._inputs.get((name, inputs), torch.empty(0, 0, inputs))
        if len(whole) < models or whole.shape[1] < rows:
            whole = torch.zeros(max(len(whole), models), max(whole.shape[1], rows), inputs)
            whole[:, :, inputs - 4] = 1
            self._inputs[name, inputs] = whole
        return whole[:models, :rows]


class LayerTrainer:
    """Forward and backward pass of M models of `StackedLayers`.

    A step is a few dozen operations of some microseconds, so that making views would take as long as the
    arithmetic: a `LayerPass` remembers them, one per number of models and width of batch.
    """

    def __init__(
        self, parameters: Parameters, pool: PoolTensors, layers: Sequence[LayerSize], scratch: Workspace
    ) -> None:
        self._parameters = parameters
        self._pool = pool
        self._layers = layers
        self._scratch = scratch
        self._passes: dict[tuple[int, int], LayerPass] = {}

    def gradient(self, batches: Batches) -> LayerPass:
        """Return the gradients; see `Trainer`."""
        n, width = batches.rows.shape
        if (n, width) not in self._passes:
            parameters = [p[:n] for p in self._parameters]
            self._passes[n, width] = LayerPass(parameters, width, self._layers, self._scratch)
        layer_pass = self._passes[n, width]
        layer_pass.run(self._pool, batches)
        return layer_pass


class LayerPass:
    """One forward and backward pass, on buffers of fixed shapes; afterwards, the gradients.

    inputs: of every layer, (M, B, inputs), with the 1 after them
    errors: ∂ℓ/∂(a layer's output), (M, B, width), the output layer's (M, classes, B)
    norms: ‖∇ℓ‖ of every record, (M, B), if clipped
    """

    norms: Tensor

    def __init__(
        self, parameters: Parameters, width: int, layers: Sequence[LayerSize], scratch: Workspace
    ) -> None:
        *hidden, self._last = parameters  # (M, inputs, out); the last (M, classes, inputs), padded
        models, padded, _ = self._last.shape
        self._layers = layers
        self.inputs = [scratch("input", models, width, layers[0].inputs)]
        self.inputs += [
            scratch.followed_by_one(f"input {i}", models, width, layer.inputs)
            for i, layer in enumerate(layers[1:], start=1)
        ]
        # A layer's sums and their errors take the same place, one after the other.
        sums = [scratch(f"error {i}", models, width, p.shape[2]) for i, p in enumerate(hidden)]
        self.errors = [*sums, torch.zeros(models, padded, width)]  # padded classes stay 0
        self._x = self.inputs[0].view(-1, layers[0].inputs)  # (M · B, inputs), what is gathered into
        self._logits = scratch("logits", models, padded, width)
        self._probabilities = scratch("probabilities", models, layers[-1].above, width)
        self._minus_one = torch.tensor(-1.0).expand(models, 1, width)
        self._last_input = self.inputs[-1].mT  # (M, inputs, B)
        # Views of what is not padding: 'real' of a layer's sums, 'active' of the next layer's inputs.
        self._real_logits = self._logits[:, : layers[-1].above]
        self._real_error = self.errors[-1][:, : layers[-1].above]
        active = [x[:, :, : layer.below] for x, layer in zip(self.inputs, layers, strict=True)][1:]
        self._hidden_widths = [layer.above for layer in layers[:-1]]
        real = [z[:, :, : layer.above] for z, layer in zip(sums, layers, strict=False)]
        self._forward = list(zip(self.inputs, hidden, sums, real, active, strict=False))
        # δ_l = δ_{l+1} W_{l+1}ᵀ: (M, B, above)(M, above, below).
        above = [*sums[1:], self.errors[-1].mT]
        weights_of = [*(p.mT for p in hidden), self._last][1:]
        back = [(d, w[:, :, : z.shape[2]]) for d, w, z in zip(above, weights_of, sums, strict=False)]
        self._back = list(zip(back, sums, real, active, strict=True))
        # A gradient is one product over the batch, (M, inputs, B)(M, B, out); it is never formed by itself.
        self._factors = [(x.mT, error) for x, error in zip(self.inputs, sums, strict=False)]
        self._factors += [(self.errors[-1], self.inputs[-1])]
        self._lengths = scratch("lengths", len(layers), models, width)
        self._products = scratch("products", len(layers), models, width)
        self._noise: Noise | None = None
        # What noise is added to, in pieces: nearly always to the same tensors.
        self._targets: list[tuple[Tensor | None, tuple[Tensor, ...]]] = [(None, ())] * len(layers)

    def run(self, pool: PoolTensors, batches: Batches) -> None:
        """Compute the errors of all layers, weighted, and clipped where the batches say so."""
        torch.index_select(pool.features, 0, batches.rows.flatten(), out=self._x)
        if batches.mixed is not None:
            self.inputs[0].copy_(batches.mixed.apply(self.inputs[0], pool))
        scales = batches.unit_scale
        unit_scales = None if scales is None else scales.split(self._hidden_widths, dim=2)
        for i, (below, weight, sums, real, active) in enumerate(self._forward):
            torch.bmm(below, weight, out=sums)  # (M, B, inputs)(M, inputs, out), biases included
            torch.clamp_min(real, 0, out=active)
            if unit_scales is not None:
                active.mul_(unit_scales[i])
        torch.bmm(self._last, self._last_input, out=self._logits)  # (M, classes, inputs)(M, inputs, B)
        # ∂ℓ/∂logits = softmax − target (`core.training.losses.slope`), with classes in the middle.
        if batches.shaping is not None:
            error = self._shaped(batches)
        else:
            error = torch.softmax(self._real_logits, 1, out=self._probabilities)  # (M, classes, B)
            if batches.targets is None:
                error.scatter_add_(1, batches.labels[:, None], self._minus_one)
            else:
                error.sub_(batches.targets.mT)
        if batches.clipping_norm is None:
            torch.mul(error, batches.weight[:, None], out=self._real_error)
            self._propagate(unit_scales)
        else:
            # Clipping needs the norms of unweighted errors, so the weights come with the factors.
            self._real_error.copy_(error)
            self._propagate(unit_scales)
            self._clip(batches.weight, batches.clipping_norm)
        self._noise = batches.noise

    def _shaped(self, batches: Batches) -> Tensor:
        """Return another slope than the cross-entropy's, (M, classes, B)."""
        assert batches.shaping is not None
        targets, classes = batches.targets, self._real_logits.shape[1]
        if targets is None:
            targets = functional.one_hot(batches.labels, classes).float()
        weight = batches.weight[:, None]  # (M, 1, B)
        return slopes.shaped(self._real_logits, targets.mT, weight, batches.shaping, dim=-2)

    def _propagate(self, unit_scales: Sequence[Tensor] | None) -> None:
        for i, (factors, error, real, active) in reversed(list(enumerate(self._back))):
            torch.bmm(*factors, out=error)
            # relu'(z) is read off its result: relu(z) > 0 exactly where z > 0 and the unit was not dropped.
            torch.ops.aten.threshold_backward.grad_input(real, active, 0, grad_input=real)
            if unit_scales is not None:
                real.mul_(unit_scales[i])

    def _clip(self, weight: Tensor, clipping_norm: Tensor) -> None:
        """Scale each record's errors by weight·c, c from ‖∇ℓ‖² = Σ_l ‖δ_l‖² ‖(a_l, 1)‖².

        A linear layer's gradient for one record is the outer product of δ_l and (a_l, 1), so that its norm
        is known without forming it (Goodfellow 2015, arXiv:1510.01799).
        """
        norm = torch.linalg.vector_norm
        lengths, products = self._lengths, self._products  # (layers, M, B)
        for below, a, error, delta in zip(self.inputs, lengths, self.errors[:-1], products, strict=False):
            norm(below, dim=2, out=a)
            norm(error, dim=2, out=delta)
        norm(self.inputs[-1], dim=2, out=lengths[-1])  # (M, B)
        # Over what is not next to each other in memory a norm is slow, a sum is not.
        torch.sum(self.errors[-1].square(), 1, out=products[-1]).sqrt_()
        self.norms = products.mul_(lengths).square_().sum(0).sqrt_()
        factor = (clipping_norm / (self.norms + 1e-6)).clamp_(max=1.0).mul_(weight)  # (M, B)
        for delta in self.errors[:-1]:
            delta.mul_(factor[:, :, None])
        self.errors[-1].mul_(factor[:, None])

    def add_to(self, i: int, target: Tensor, beta: float, alpha: float) -> None:
        """Set ``target`` to β·target + α·(gradient of the i-th parameter + its noise)."""
        target.baddbmm_(*self._factors[i], beta=beta, alpha=alpha)
        if self._noise is None:
            return
        if self._targets[i][0] is not target:
            self._targets[i] = target, self._layers[i].parts(target)
        for piece, part in enumerate(self._targets[i][1], start=2 * i):
            self._noise.add_to(part, piece, alpha)
