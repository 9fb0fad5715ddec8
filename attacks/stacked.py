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

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.data.records import Records
from fedsim.models import linear_stack, weights
from fedsim.scenario import TrainingSettings

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
class Pool:
    """Records in the form that an architecture reads.

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
    kept: (M, B, hidden units) float32, by what the hidden units' outputs are multiplied, layer after layer:
        inverted dropout; for stacked layers only
    """

    rows: Tensor
    labels: Tensor
    weight: Tensor
    clipping_norm: Tensor | None = None
    noise: Noise | None = None
    targets: Tensor | None = None
    mixed: Mixed | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class Mixed:
    """Features become share·(their own) + (1 − share)·(those of ``rows``); share: (M,) float32."""

    rows: Tensor
    share: Tensor

    def apply(self, features: Tensor, pool: Pool) -> Tensor:
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
    hidden_widths: numbers of hidden units, layer after layer, as `Batches.kept` has them, if it knows of them
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

    def pool(self, records: Records) -> Pool:
        """Return ``records`` in the form that batches are gathered from."""

    def logits(self, parameters: Parameters, pool: Pool) -> Tensor:
        """Return the logits of every model on every record, (M, n, classes) float32."""

    def logits_of(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return the logits of every model on records of its own, (M, R, …) → (M, R, classes) float32."""

    def trainer(self, parameters: Parameters, pool: Pool) -> Trainer:
        """Return what computes the gradients of these models, which may be changed in place meanwhile."""

    def floats(self, width: int, private: bool) -> int:
        """Return how many floats one model takes in a step of batch ``width``, besides its parameters."""


def stack_of(module: nn.Module, input_shape: tuple[int, ...], classes: int) -> Stack | None:
    """Return how models like ``module`` are stacked, or None where they have to be trained one by one.

    One by one go the modules in which the records of a batch meet (BatchNorm), since here a batch may be
    padded, and those that draw random numbers (Dropout).
    """
    stack = layout_of(module, classes)
    if isinstance(stack, StackedLayers):
        return stack
    two = Records(np.linspace(0, 1, 2 * math.prod(input_shape)).reshape(2, *input_shape), np.zeros(2, int))
    rows = torch.tensor([[0, 1], [1, 2]])
    try:
        pool = stack.pool(two)
        pair = [p.expand(2, *p.shape[1:]) for p in stack.load(weights(module))]
        stack.trainer(pair, pool).gradient(Batches(rows, pool.labels[rows], torch.full((2, 2), 0.5)))
        with torch.no_grad():
            alone, together = module(pool.features[:1]), module(pool.features[:2])
    except (RuntimeError, ValueError):  # vmap refuses randomness; BatchNorm a batch of one
        return None
    return stack if torch.allclose(alone, together[:1], atol=1e-5) else None


def layout_of(module: nn.Module, classes: int) -> StackedLayers | StackedModule:
    """Return how the parameters of models like ``module`` are laid out, even if they cannot be stacked."""
    return StackedModule(module, classes) if linear_stack(module) is None else StackedLayers(module)


def up(size: int, multiple: int = 4) -> int:
    """Return ``size`` rounded up to a multiple."""
    return -(-size // multiple) * multiple


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
        self._widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
        self._layers = layer_sizes(self._widths)
        self.parameters = sum((a + 1) * b for a, b in pairwise(self._widths))
        self.hidden_widths = self._widths[1:-1]
        self._scratch = Workspace()

    def load(self, state: Mapping[str, np.ndarray]) -> Parameters:
        """Return the parameters of one model, M = 1, padded with zeros."""
        parameters = [torch.zeros(1, layer.inputs, up(layer.above)) for layer in self._layers]
        parameters[-1] = parameters[-1].mT.contiguous()
        for name, place in self.state(self.pieces(parameters)).items():
            place.copy_(torch.tensor(state[name]))
        return parameters

    def pieces(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return weights (M, in, out) and biases (M, 1, out) per layer, the last layer's transposed."""
        parts = [layer.parts(p) for p, layer in zip(parameters, self._layers, strict=True)]
        return [part for pair in parts for part in pair]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut (M, parameters) into pieces of these shapes."""
        shapes = [shape for a, b in pairwise(self._widths) for shape in ((a, b), (1, b))]
        shapes[-2:] = [shape[::-1] for shape in shapes[-2:]]
        pieces = flat.split([high * wide for high, wide in shapes], dim=1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def state(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return (M, out, in) and (M, out) by name."""
        values = list(pieces)
        values[:-2:2] = [weight.mT for weight in pieces[:-2:2]]
        values[1:-2:2] = [bias.squeeze(1) for bias in pieces[1:-2:2]]
        values[-1] = pieces[-1].squeeze(2)
        return dict(zip(self._names, values, strict=True))

    def pool(self, records: Records) -> Pool:
        """Return flat features followed by a 1, (n + 1, d + 1), filled up to a multiple of 4."""
        n, first = len(records), self._layers[0]
        features = torch.zeros(n + 1, first.inputs)
        features[:n, : first.below] = torch.tensor(records.features).flatten(1)
        features[:, first.bias] = 1
        return Pool(features, functional.pad(torch.tensor(records.labels), (0, 1)))

    def logits(self, parameters: Parameters, pool: Pool) -> Tensor:
        """Return (M, n, classes) float32, `SIGNAL_ROWS` records at a time."""
        n, models = len(pool), len(parameters[0])
        answers = torch.empty(models, n, self._widths[-1])
        for start in range(0, n, SIGNAL_ROWS):
            x = pool.features[start : min(start + SIGNAL_ROWS, n)]
            everyones = _whole_fours(x).expand(models, -1, -1)
            answers[:, start : start + len(x)] = self._logits(parameters, everyones)[:, : len(x)]
        return answers

    def logits_of(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return (M, R, classes) float32; features as `pool` has them."""
        return self._logits(parameters, _whole_fours(features))[:, : features.shape[1]]

    def _logits(self, parameters: Parameters, x: Tensor) -> Tensor:
        for weight, layer in zip(parameters[:-1], self._layers[1:], strict=True):
            z = torch.bmm(x, weight)
            x = self._scratch.followed_by_one(
                "signal input", models=len(z), rows=z.shape[1], inputs=layer.inputs
            )
            torch.clamp_min(z[:, :, : layer.below], 0, out=x[:, :, : layer.below])
        return torch.bmm(parameters[-1], x.mT)[:, : self._widths[-1]].mT

    def trainer(self, parameters: Parameters, pool: Pool) -> LayerTrainer:
        """Return the written-out gradients; one trainer at a time, since they share memory."""
        return LayerTrainer(parameters, pool, self._layers, self._scratch)

    def floats(self, width: int, private: bool) -> int:
        """Inputs, errors and a temporary of every layer, and noise."""
        activations = 3 * up(width) * sum(layer.inputs + 4 for layer in self._layers)
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

        It is part of a larger tensor if one was asked for under this name before; rows are contiguous.
        """
        kept = self._inputs.get((name, inputs), torch.empty(0, 0, inputs))
        if len(kept) < models or kept.shape[1] < rows:
            kept = torch.zeros(max(len(kept), models), max(kept.shape[1], rows), inputs)
            kept[:, :, inputs - 4] = 1
            self._inputs[name, inputs] = kept
        return kept[:models, :rows]


class LayerTrainer:
    """Forward and backward pass of M models of `StackedLayers`.

    A step is a few dozen operations of some microseconds, so that making views would take as long as the
    arithmetic: they are kept, per number of models and width of batch.
    """

    def __init__(
        self, parameters: Parameters, pool: Pool, layers: Sequence[LayerSize], scratch: Workspace
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
        this = self._passes[n, width]
        this.run(self._pool, batches)
        return this


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
        *hidden, self._last = parameters
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
        self._x = self.inputs[0].view(-1, layers[0].inputs)
        self._logits = scratch("logits", models, padded, width)
        self._probabilities = scratch("probabilities", models, layers[-1].above, width)
        self._minus_one = torch.tensor(-1.0).expand(models, 1, width)
        self._last_input = self.inputs[-1].mT
        self._real_logits = self._logits[:, : layers[-1].above]
        self._real_error = self.errors[-1][:, : layers[-1].above]
        active = [x[:, :, : layer.below] for x, layer in zip(self.inputs, layers, strict=True)][1:]
        self._hidden_widths = [layer.above for layer in layers[:-1]]
        real = [z[:, :, : layer.above] for z, layer in zip(sums, layers, strict=False)]
        self._forward = list(zip(self.inputs, hidden, sums, real, active, strict=False))
        above = [*sums[1:], self.errors[-1].mT]
        weights = [*(p.mT for p in hidden), self._last][1:]
        back = [(d, w[:, :, : z.shape[2]]) for d, w, z in zip(above, weights, sums, strict=False)]
        self._back = list(zip(back, sums, real, active, strict=True))
        self._factors = [(x.mT, error) for x, error in zip(self.inputs, sums, strict=False)]
        self._factors += [(self.errors[-1], self.inputs[-1])]
        self._lengths = scratch("lengths", len(layers), models, width)
        self._products = scratch("products", len(layers), models, width)
        self._noise: Noise | None = None
        # What noise is added to, in pieces: nearly always to the same tensors.
        self._targets: list[tuple[Tensor | None, tuple[Tensor, ...]]] = [(None, ())] * len(layers)

    def run(self, pool: Pool, batches: Batches) -> None:
        """Compute the errors of all layers, weighted and where asked for clipped."""
        torch.index_select(pool.features, 0, batches.rows.flatten(), out=self._x)
        if batches.mixed is not None:
            self.inputs[0].copy_(batches.mixed.apply(self.inputs[0], pool))
        kept = None if batches.kept is None else batches.kept.split(self._hidden_widths, dim=2)
        for i, (below, weight, sums, real, active) in enumerate(self._forward):
            torch.bmm(below, weight, out=sums)
            torch.clamp_min(real, 0, out=active)
            if kept is not None:
                active.mul_(kept[i])
        torch.bmm(self._last, self._last_input, out=self._logits)
        error = torch.softmax(self._real_logits, 1, out=self._probabilities)  # (M, classes, B)
        if batches.targets is None:
            error.scatter_add_(1, batches.labels[:, None], self._minus_one)
        else:
            error.sub_(batches.targets.mT)
        if batches.clipping_norm is None:
            torch.mul(error, batches.weight[:, None], out=self._real_error)
            self._propagate(kept)
        else:
            self._real_error.copy_(error)
            self._propagate(kept)
            self._clip(batches.weight, batches.clipping_norm)
        self._noise = batches.noise

    def _propagate(self, kept: Sequence[Tensor] | None) -> None:
        for i, (factors, error, real, active) in reversed(list(enumerate(self._back))):
            torch.bmm(*factors, out=error)
            # relu'(z) is read off its result: relu(z) > 0 exactly where z > 0 and the unit was not dropped.
            torch.ops.aten.threshold_backward.grad_input(real, active, 0, grad_input=real)
            if kept is not None:
                real.mul_(kept[i])

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
        norm(self.inputs[-1], dim=2, out=lengths[-1])
        # Over what is not next to each other in memory a norm is slow, a sum is not.
        torch.sum(self.errors[-1].square(), 1, out=products[-1]).sqrt_()
        self.norms = products.mul_(lengths).square_().sum(0).sqrt_()
        factor = (clipping_norm / (self.norms + 1e-6)).clamp_(max=1.0).mul_(weight)
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


class StackedModule:
    """Any module without batch statistics and randomness, through `torch.func`.

    Parameters are (M, …) in the module's shapes; those that are frozen, and buffers, are shared constants.
    """

    rounds_alike = False

    def __init__(self, module: nn.Module, classes: int) -> None:
        self.module = module.train()
        self.hidden_widths: list[int] = []
        self._classes = classes
        self._trained = [name for name, p in module.named_parameters() if p.requires_grad]
        self._shapes = [module.get_parameter(name).shape for name in self._trained]
        self._constants = {k: v.detach() for k, v in module.state_dict().items() if k not in self._trained}
        self.parameters = sum(shape.numel() for shape in self._shapes)

    def load(self, state: Mapping[str, np.ndarray]) -> Parameters:
        """Return the trained parameters of one model, M = 1; keep the others as constants."""
        self._constants = {
            name: torch.as_tensor(state[name]).to(value.dtype) for name, value in self._constants.items()
        }
        return [torch.tensor(state[name], dtype=torch.float32)[None] for name in self._trained]

    def pieces(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the parameters themselves."""
        return list(parameters)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut (M, parameters) into pieces of the parameters' shapes."""
        pieces = flat.split([shape.numel() for shape in self._shapes], dim=1)
        return [piece.unflatten(1, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def state(self, pieces: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return (M, …) by name, constants repeated."""
        trained = dict(zip(self._trained, pieces, strict=True))
        models = len(pieces[0])
        return {
            name: trained.get(name, value.detach().expand(models, *value.shape))
            for name, value in (self.module.state_dict() | self._constants).items()
        }

    def pool(self, records: Records) -> Pool:
        """Return features (n + 1, …)."""
        features = torch.tensor(records.features, dtype=torch.float32)
        empty = torch.zeros_like(features[:1])
        return Pool(torch.cat([features, empty]), functional.pad(torch.tensor(records.labels), (0, 1)))

    def logits(self, parameters: Parameters, pool: Pool) -> Tensor:
        """Return (M, n, classes) float32, in evaluation mode, model after model."""
        parts = pool.features[:-1].split(SIGNAL_ROWS)
        self.module.eval()
        models = zip(*parameters, strict=True)
        answers = [torch.cat([self.call(list(model), x) for x in parts]) for model in models]
        self.module.train()
        return torch.stack(answers)

    def logits_of(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return (M, R, classes) float32, in evaluation mode, model after model."""
        self.module.eval()
        models = zip(zip(*parameters, strict=True), features, strict=True)
        answers = [self.call(list(model), x) for model, x in models]
        self.module.train()
        return torch.stack(answers)

    def call(self, parameters: list[Tensor], x: Tensor) -> Tensor:
        """Return the logits of one model."""
        weights = dict(zip(self._trained, parameters, strict=True))
        return torch.func.functional_call(self.module, {**self._constants, **weights}, (x,))

    def trainer(self, parameters: Parameters, pool: Pool) -> ModuleTrainer:
        """Return gradients by vmap(grad)."""
        return ModuleTrainer(self, parameters, pool)

    def floats(self, width: int, private: bool) -> int:
        """A guess, since activations are the module's own affair: 16 Ki per record."""
        return width * (2**14 + (self.parameters if private else 0)) + 2 * self.parameters


@dataclass(frozen=True)
class ModuleTrainer:
    """Gradients of M models of a `StackedModule`."""

    stack: StackedModule
    parameters: Parameters
    pool: Pool

    def gradient(self, batches: Batches) -> ModuleGradient:
        """Return the gradients; see `Trainer`."""
        parameters = [p[: len(batches.rows)] for p in self.parameters]
        x, weight = self.pool.features[batches.rows], batches.weight
        if batches.mixed is not None:
            x = batches.mixed.apply(x, self.pool)
        # The cross-entropy takes labels, (B,), or targets, (B, classes).
        y = batches.labels if batches.targets is None else batches.targets
        if batches.clipping_norm is None:
            gradients = torch.func.vmap(torch.func.grad(self._loss))(parameters, x, y, weight)
            return ModuleGradient(list(gradients), batches.noise, torch.empty(0))
        clipped = torch.func.vmap(self._clipped)
        gradients, norms = clipped(parameters, x, y, weight, batches.clipping_norm)
        return ModuleGradient(list(gradients), batches.noise, norms)

    def _loss(self, parameters: list[Tensor], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        losses = functional.cross_entropy(self.stack.call(parameters, x), y, reduction="none")
        return (losses * weight).sum()

    def _clipped(
        self, parameters: list[Tensor], x: Tensor, y: Tensor, weight: Tensor, clipping_norm: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return one model's sum of clipped gradients, formed record by record, and their norms (B,)."""
        one = torch.ones(1)
        single = torch.func.grad(lambda p, a, b: self._loss(p, a[None], b[None], one))
        gradients = torch.func.vmap(single, in_dims=(None, 0, 0))(parameters, x, y)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (clipping_norm / (norms + 1e-6)).clamp(max=1.0) * weight  # (B,)
        return [torch.tensordot(factor, g, dims=1) for g in gradients], norms


@dataclass(frozen=True)
class ModuleGradient:
    """Gradients of `StackedModule`, formed."""

    gradients: list[Tensor]
    noise: Noise | None
    norms: Tensor

    def add_to(self, i: int, target: Tensor, beta: float, alpha: float) -> None:
        """Set ``target`` to β·target + α·(gradient of the i-th parameter + its noise)."""
        _scale(target, beta).add_(self.gradients[i], alpha=alpha)
        if self.noise is not None:
            self.noise.add_to(target, i, alpha)


def _scale(target: Tensor, beta: float) -> Tensor:
    # As in BLAS, β = 0 overwrites whatever was there, NaN included.
    return target.zero_() if beta == 0 else target.mul_(beta) if beta != 1 else target


class _Prefixes(dict[int, Parameters]):
    """n → the first n models' parameters; kept, since cutting them at every step costs."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        self._all = parameters

    def __missing__(self, n: int) -> Parameters:
        self[n] = [p[:n] for p in self._all]
        return self[n]


Update = Callable[[Gradient, int], None]


@dataclass(frozen=True)
class Penalties:
    """What is added to a gradient besides: μ(w − w_t) of FedProx (Li et al. 2020, eq. 2), λ₁ sign(w), λ₂ w.

    l1, l2: λ₁ and λ₂, one for all models or (M,) float32, one for each
    """

    mu: float = 0.0
    l1: float | Tensor = 0.0
    l2: float | Tensor = 0.0


def optimizer(parameters: Parameters, settings: TrainingSettings, penalties: Penalties) -> Update:
    """Return ``update(gradient, n)``: one step, in place, of the first n models.

    All of them have made the same number of steps before. torch.optim's SGD (heavy ball), and Adam with its
    defaults, on the gradient and the penalties, w_t being the parameters now.
    """
    slopes = _PenaltySlopes(parameters, penalties)
    if settings.optimizer == "adam":
        return _adam(parameters, settings, slopes)
    if settings.momentum:
        return _heavy_ball(parameters, settings, slopes)
    if not isinstance(penalties.l2, Tensor) and not isinstance(penalties.l1, Tensor) and penalties.l1 == 0:
        return _sgd(parameters, settings, penalties.l2, penalties.mu)
    return _penalised_sgd(parameters, settings, slopes)


class _PenaltySlopes:
    """The gradients of the penalties of M models in training."""

    def __init__(self, parameters: Parameters, penalties: Penalties) -> None:
        self._anchors = _Prefixes([p.clone() for p in parameters] if penalties.mu else [])
        self._penalties = penalties

    def add_to(self, slope: Tensor, i: int, w: Tensor) -> None:
        """Add them, at the first models' i-th parameter ``w``, to ``slope``."""
        n, penalties = len(w), self._penalties
        if penalties.mu:
            # The difference first: it is exactly 0 where nothing moved, and Adam blows up what is not.
            slope.add_(w - self._anchors[n][i], alpha=penalties.mu)
        if isinstance(penalties.l1, Tensor) or penalties.l1:
            slope.add_(_each(penalties.l1, w) * w.sign())
        if isinstance(penalties.l2, Tensor) or penalties.l2:
            slope.add_(_each(penalties.l2, w) * w)


def _each(value: float | Tensor, w: Tensor) -> float | Tensor:
    """Return a value for all, or one for each of the models of ``w``, in a shape that ``w`` is scaled by."""
    return value[: len(w)].view(-1, *[1] * (w.dim() - 1)) if isinstance(value, Tensor) else value


def _sgd(parameters: Parameters, settings: TrainingSettings, l2: float, mu: float) -> Update:
    """w ← (1 − lr(λ₂ + μ)) w − lr ∇ + lr μ w_t, in one product per weight matrix."""
    lr, kept = settings.lr, 1 - settings.lr * (l2 + mu)
    first, anchored = _Prefixes(parameters), _Prefixes([p.clone() for p in parameters] if mu else [])

    def update(gradient: Gradient, n: int) -> None:
        for i, p in enumerate(first[n]):
            gradient.add_to(i, p, kept, -lr)
            if mu:
                p.add_(anchored[n][i], alpha=lr * mu)

    return update


def _penalised_sgd(parameters: Parameters, settings: TrainingSettings, slopes: _PenaltySlopes) -> Update:
    """w ← w − lr(∇ + penalties)."""
    first = _Prefixes(parameters)

    def update(gradient: Gradient, n: int) -> None:
        for i, p in enumerate(first[n]):
            slope = torch.zeros_like(p)
            slopes.add_to(slope, i, p)
            gradient.add_to(i, p, 1.0, -settings.lr)
            p.sub_(slope, alpha=settings.lr)

    return update


def _heavy_ball(parameters: Parameters, settings: TrainingSettings, slopes: _PenaltySlopes) -> Update:
    """v ← m v + ∇ + penalties, w ← w − lr v."""
    first = _Prefixes(parameters)
    velocities = _Prefixes([torch.zeros_like(p) for p in parameters])

    def update(gradient: Gradient, n: int) -> None:
        for i, (p, velocity) in enumerate(zip(first[n], velocities[n], strict=True)):
            gradient.add_to(i, velocity, settings.momentum, 1.0)
            slopes.add_to(velocity, i, p)
            p.sub_(velocity, alpha=settings.lr)

    return update


def _adam(parameters: Parameters, settings: TrainingSettings, slopes: _PenaltySlopes) -> Update:
    """Adam (Kingma & Ba 2015, algorithm 1)."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first = _Prefixes(parameters)
    means = _Prefixes([torch.zeros_like(p) for p in parameters])
    squares = _Prefixes([torch.zeros_like(p) for p in parameters])
    t = 0

    def update(gradient: Gradient, n: int) -> None:
        nonlocal t
        t += 1
        for i, (p, mean, square) in enumerate(zip(first[n], means[n], squares[n], strict=True)):
            slope = torch.empty_like(p)
            gradient.add_to(i, slope, 0.0, 1.0)
            slopes.add_to(slope, i, p)
            mean.lerp_(slope, 1 - beta1)
            square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            scale = square.sqrt().div_(math.sqrt(1 - beta2**t)).add_(epsilon)
            p.addcdiv_(mean, scale, value=-settings.lr / (1 - beta1**t))

    return update
