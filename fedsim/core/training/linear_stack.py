"""Plain stacks of linear layers and ReLU, with forward and backward pass written out on one flat vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.core.training.draws import Draws
from fedsim.core.training.losses import soft_targets


def for_stack(
    features: Tensor, labels: Tensor, classes: int, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return what `LinearStack` is fed: features and a column of ones (n, d + 1), `soft_targets` (n, K).

    labels: (n,) int64, or targets (n, K) float32, which stay as they are
    """
    inputs = torch.cat([features.flatten(1), features.new_ones(len(features), 1)], 1)
    return inputs, labels if labels.dim() == 2 else soft_targets(labels, classes, smoothing)


class LinearStack:
    """The layers of a Linear-ReLU-…-Linear module on one flat parameter vector, without autograd.

    A layer's weight and bias are one matrix (out, in + 1) and its inputs carry a column of ones: one matrix
    product instead of a product and a sum, which is what small layers cost. Use it under
    `torch.inference_mode`.

    flat, gradient: (p,) float32, the layers' matrices one after the other
    dropout: probability with which a hidden unit is left out of a step
    """

    def __init__(self, layers: Sequence[nn.Linear], dropout: float = 0.0) -> None:
        self._dropout = dropout
        self._layers = layers
        self.flat = self.in_layout([p.detach() for layer in layers for p in (layer.weight, layer.bias)])
        self.gradient = torch.zeros_like(self.flat)
        self._matrices = self._views(self.flat)  # (out, in + 1) each, as are the gradients
        self._gradients = self._views(self.gradient)
        # Views cost as much as a small product: these are made once.
        self._transposed = [matrix.t() for matrix in self._matrices]  # (in + 1, out)
        self._weights = [matrix[:, :-1] for matrix in self._matrices]  # (out, in)
        self._biases = [matrix[:, -1] for matrix in self._matrices]  # (out,)
        self.classes = len(self._matrices[-1])
        self._buffers: list[Tensor] = []  # (most rows so far, width + 1), the last column all ones
        self._hidden: list[tuple[Tensor, Tensor]] = []  # (with the column of ones, without), a layer each
        self._inputs: list[Tensor] = []  # of every layer, (n, in + 1)

    def in_layout(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return tensors in the order of ``module.parameters()`` as a vector (p,) laid out as `flat` is."""
        pairs = zip(parameters[::2], parameters[1::2], strict=True)
        return torch.cat([torch.cat([weight, bias[:, None]], 1).flatten() for weight, bias in pairs])

    def _views(self, flat: Tensor) -> list[Tensor]:
        shapes = [(layer.out_features, layer.in_features + 1) for layer in self._layers]
        pieces = flat.split_with_sizes([rows * columns for rows, columns in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def masks(self, draws: Draws, step: int, rows: int) -> list[Tensor]:
        """Return dropout's 0s and 1s (rows, width) of every hidden layer in a step, none without dropout."""
        if not self._dropout:
            return []
        masks = [self.flat.new_empty(rows, layer.out_features) for layer in self._layers[:-1]]
        draws.keep(step, masks, self._dropout)
        return masks

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Return the logits (n, K) of ``x`` (n, d + 1), see `for_stack`; remember the layers' inputs.

        masks: what `masks` returned for these n rows; they are scaled in place
        """
        self._make_room(len(x))
        self._inputs = [x]
        for i, (transposed, (inputs, hidden)) in enumerate(zip(self._transposed, self._hidden, strict=False)):
            torch.clamp_min(torch.mm(x, transposed), 0, out=hidden)  # (n, in + 1)(in + 1, out)
            if masks:
                hidden.mul_(masks[i].div_(1 - self._dropout))
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
        """Return δ_l = ∂loss/∂(layer's output) (n, width) for every layer, given the last one's (n, K)."""
        errors = [error]
        for weight, (_, hidden) in zip(self._weights[:0:-1], self._hidden[::-1], strict=True):
            # δ_l = (δ_{l+1} W_{l+1}) · relu'(z_l): (n, out)(out, in). relu'(z) is read off its result, which
            # is positive exactly where z is and the unit was not dropped.
            errors.append(torch.ops.aten.threshold_backward(torch.mm(errors[-1], weight), hidden, 0))
            if self._dropout:
                errors[-1].div_(1 - self._dropout)
        return errors[::-1]

    def backward(self, error: Tensor) -> None:
        """Write into ``gradient`` the gradient of the loss whose ∂loss/∂logits is ``error`` (n, K)."""
        self.accumulate(self.errors(error))

    def accumulate(self, errors: Sequence[Tensor]) -> None:
        """Write into ``gradient`` the sum over records of the outer products δ_l × (layer's input)."""
        for error, inputs, gradient in zip(errors, self._inputs, self._gradients, strict=True):
            torch.mm(error.t(), inputs, out=gradient)  # (out, n)(n, in + 1)

    def gradient_norms(self, errors: Sequence[Tensor]) -> Tensor:
        """Return each record's gradient norm (n,), √Σ_l ‖δ_l‖² ‖(a_l, 1)‖², a_l the layer's input.

        The gradient of a linear layer for one record is an outer product, whose Frobenius norm is the product
        of the two norms (Goodfellow 2015, arXiv:1510.01799), so that it need not be formed.
        """
        norm = torch.linalg.vector_norm
        parts = [norm(e, dim=1) * norm(a, dim=1) for e, a in zip(errors, self._inputs, strict=True)]
        return norm(torch.stack(parts), dim=0)  # of (layers, n)

    def parameters(self) -> list[Tensor]:
        """Return views of the parameters as they are now, in the order of ``module.parameters()``."""
        return [view for views in zip(self._weights, self._biases, strict=True) for view in views]

    def load(self) -> None:
        """Copy the parameters from the layers anew."""
        for layer, weight, bias in zip(self._layers, self._weights, self._biases, strict=True):
            weight.copy_(layer.weight)
            bias.copy_(layer.bias)

    def store(self) -> None:
        """Copy the parameters back into the layers."""
        for layer, weight, bias in zip(self._layers, self._weights, self._biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
