"""Plain stacks of linear layers and ReLU, with forward and backward pass written out on one flat vector."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedsim.core.models.layers import linear_stack
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.regularisation import smoothed

Update = Callable[[Tensor], None]


def for_stack(
    features: Tensor, labels: Tensor, classes: int, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return what `LinearStack` is fed: features and a column of ones (n, d + 1), and `smoothed` targets."""
    inputs = torch.cat([features.flatten(1), features.new_ones(len(features), 1)], 1)
    return inputs, smoothed(labels, classes, smoothing)


class LinearStack:
    """The layers of a Linear-ReLU-…-Linear module on one flat parameter vector, without autograd.

    A layer's weight and bias are one matrix (out, in + 1) and its inputs carry a column of ones: one matrix
    product instead of a product and a sum, which is what small layers cost.

    flat, gradient: (p,) float32, the layers' matrices one after the other. Use under `torch.inference_mode`.
    dropout: probability with which a hidden unit is left out of a step, drawn from ``stream`` as
        torch.nn.functional.dropout draws it
    """

    def __init__(
        self, module: nn.Module, dropout: float = 0.0, stream: torch.Generator | None = None
    ) -> None:
        self._dropout, self._stream = dropout, stream
        self._layers = linear_stack(module) or []
        self.flat = self.in_layout([p.detach() for p in module.parameters()])
        self.gradient = torch.zeros_like(self.flat)
        self._matrices = self._views(self.flat)
        self._gradients = self._views(self.gradient)
        self._transposed = [matrix.t() for matrix in self._matrices]
        self._weights = [matrix[:, :-1] for matrix in self._matrices]
        self.classes = len(self._matrices[-1])
        self._buffers: list[Tensor] = []
        self._hidden: list[tuple[Tensor, Tensor]] = []  # (with the column of ones, without), a layer each
        self._inputs: list[Tensor] = []

    def in_layout(self, parameters: list[Tensor]) -> Tensor:
        """Return tensors in the order of ``module.parameters()`` as a vector (p,) laid out as `flat` is."""
        pairs = zip(parameters[::2], parameters[1::2], strict=True)
        return torch.cat([torch.cat([weight, bias[:, None]], 1).flatten() for weight, bias in pairs])

    def _views(self, flat: Tensor) -> list[Tensor]:
        shapes = [(layer.out_features, layer.in_features + 1) for layer in self._layers]
        pieces = flat.split([rows * columns for rows, columns in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, k) of ``x`` (n, d + 1), see `for_stack`; keep the layers' inputs."""
        self._make_room(len(x))
        self._inputs = [x]
        for transposed, (inputs, hidden) in zip(self._transposed, self._hidden, strict=False):
            torch.clamp_min(torch.mm(x, transposed), 0, out=hidden)
            if self._dropout:
                kept = torch.empty(hidden.shape, device=hidden.device)
                kept.bernoulli_(1 - self._dropout, generator=self._stream)
                hidden.mul_(kept.div_(1 - self._dropout))
            self._inputs.append(x := inputs)
        return torch.mm(x, self._transposed[-1])

    def _make_room(self, n: int) -> None:
        """Cut the hidden layers' buffers to ``n`` rows."""
        widths = [layer.out_features for layer in self._layers[:-1]]
        if not self._buffers or n > len(self._buffers[0]):
            self._buffers = [self.flat.new_ones(n, width + 1) for width in widths]
        if not self._hidden or n != len(self._hidden[0][0]):
            self._hidden = [(buffer[:n], buffer[:n, :-1]) for buffer in self._buffers]

    def errors(self, error: Tensor) -> list[Tensor]:
        """Return δ_l = ∂loss/∂(layer's output) (n, width) for every layer, given the last one's (n, k)."""
        errors = [error]
        for weight, (_, hidden) in zip(self._weights[:0:-1], self._hidden[::-1], strict=True):
            # relu'(z) is read off its result: relu(z) > 0 exactly where z > 0 and the unit was not dropped.
            errors.append(torch.ops.aten.threshold_backward(torch.mm(errors[-1], weight), hidden, 0))
            if self._dropout:
                errors[-1].div_(1 - self._dropout)
        return errors[::-1]

    def backward(self, error: Tensor) -> None:
        """Write into ``gradient`` the gradient of the loss whose ∂loss/∂logits is ``error`` (n, k)."""
        self.accumulate(self.errors(error))

    def accumulate(self, errors: list[Tensor]) -> None:
        """Write into ``gradient`` the sum over records of the outer products δ_l × (layer's input)."""
        for error, inputs, gradient in zip(errors, self._inputs, self._gradients, strict=True):
            torch.mm(error.t(), inputs, out=gradient)

    def gradient_norms(self, errors: list[Tensor]) -> Tensor:
        """Return each record's gradient norm (n,), √Σ_l ‖δ_l‖² ‖(a_l, 1)‖², a_l the layer's input.

        The gradient of a linear layer for one record is an outer product, whose Frobenius norm is the product
        of the two norms (Goodfellow 2015, arXiv:1510.01799), so that it need not be formed.
        """
        norm = torch.linalg.vector_norm
        parts = [norm(e, dim=1) * norm(a, dim=1) for e, a in zip(errors, self._inputs, strict=True)]
        return norm(torch.stack(parts), dim=0)

    def updater(self, settings: TrainingSettings, proximal_mu: float, l1: float = 0.0) -> Update:
        """Return a function that makes one step with a gradient: proximal term, L1, weight decay added."""
        step = _adam(self.flat, settings) if settings.optimizer == "adam" else _sgd(self.flat, settings)
        if proximal_mu == 0 and l1 == 0 and settings.l2 == 0:
            return step
        anchor = self.flat.clone()

        def update(gradient: Tensor) -> None:
            if proximal_mu:
                gradient.add_(self.flat - anchor, alpha=proximal_mu)
            if l1:
                gradient.add_(self.flat.sign(), alpha=l1)
            if settings.l2:
                gradient.add_(self.flat, alpha=settings.l2)
            step(gradient)

        return update

    def parameters(self) -> list[Tensor]:
        """Return views of the parameters as they are now, in the order of ``module.parameters()``."""
        return [view for matrix in self._matrices for view in (matrix[:, :-1], matrix[:, -1])]

    def store(self) -> None:
        """Copy the parameters back into the module."""
        for layer, matrix in zip(self._layers, self._matrices, strict=True):
            layer.weight.copy_(matrix[:, :-1])
            layer.bias.copy_(matrix[:, -1])


def _sgd(flat: Tensor, settings: TrainingSettings) -> Update:
    """SGD with heavy-ball momentum as torch.optim.SGD has it: v ← m v + g, w ← w − lr v."""
    if settings.momentum == 0:

        def plain(gradient: Tensor) -> None:
            flat.sub_(gradient, alpha=settings.lr)

        return plain
    velocity = torch.zeros_like(flat)

    def heavy_ball(gradient: Tensor) -> None:
        velocity.mul_(settings.momentum).add_(gradient)
        flat.sub_(velocity, alpha=settings.lr)

    return heavy_ball


def _adam(flat: Tensor, settings: TrainingSettings) -> Update:
    """Adam (Kingma & Ba 2015, algorithm 1) with torch.optim.Adam's defaults."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    t = 0

    def step(gradient: Tensor) -> None:
        nonlocal t
        t += 1
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(1 - beta2**t)).add_(epsilon)
        flat.addcdiv_(mean, scale, value=-settings.lr / (1 - beta1**t))

    return step
