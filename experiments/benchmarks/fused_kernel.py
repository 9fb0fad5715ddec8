"""A whole local training, one model after the other, in the cache: a prototype for `kernels.py`.

The MLP 10-64-64-2, plain SGD. A layer is one matrix (inputs, 64) whose last row in use holds the biases, for
which its inputs carry a 1; the output layer is transposed, (8, inputs), as in `core.training.stacked.layers`.
Products go over 4 × 4 blocks of rows and inputs, 64 columns wide, so that every number that is loaded is used
four times. The order of a model's sums does not depend on the other models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

FEATURES, WIDTH, CLASSES, BATCH = 10, 64, 2, 16
INPUTS = 16
"""Features, the 1 and zeros."""
ABOVE = WIDTH + 8
"""Hidden units, the 1 and zeros."""
OUTPUTS = 8
ZERO, ONE = np.float32(0), np.float32(1)

compiled = njit(fastmath={"contract", "nsz", "reassoc"}, nogil=True)


def laid_out(state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return a module's weights and biases as the kernel's three matrices, filled up with zeros."""
    first, first_bias, second, second_bias, last, last_bias = state.values()
    matrices = [np.zeros(shape, np.float32) for shape in ((INPUTS, WIDTH), (ABOVE, WIDTH), (OUTPUTS, ABOVE))]
    matrices[0][:FEATURES], matrices[0][FEATURES] = first.T, first_bias
    matrices[1][:WIDTH], matrices[1][WIDTH] = second.T, second_bias
    matrices[2][:CLASSES, :WIDTH], matrices[2][:CLASSES, WIDTH] = last, last_bias
    return matrices


def by_name(names: Sequence[str], layers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return (M, …) by name in the module's shapes."""
    first, second, last = layers
    values = (
        first[:, :FEATURES].transpose(0, 2, 1), first[:, FEATURES],
        second[:, :WIDTH].transpose(0, 2, 1), second[:, WIDTH],
        last[:, :CLASSES, :WIDTH], last[:, :CLASSES, WIDTH],
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


@compiled
def product(x, w, z, inputs):
    """z (B, 64) = x (B, inputs) w (inputs, 64)."""
    for r in range(0, BATCH, 4):
        for i in range(4):
            for j in range(WIDTH):
                z[r + i, j] = ZERO
        for k in range(0, inputs, 4):
            a0, a1, a2, a3 = x[r, k], x[r, k + 1], x[r, k + 2], x[r, k + 3]
            b0, b1, b2, b3 = x[r + 1, k], x[r + 1, k + 1], x[r + 1, k + 2], x[r + 1, k + 3]
            c0, c1, c2, c3 = x[r + 2, k], x[r + 2, k + 1], x[r + 2, k + 2], x[r + 2, k + 3]
            d0, d1, d2, d3 = x[r + 3, k], x[r + 3, k + 1], x[r + 3, k + 2], x[r + 3, k + 3]
            for j in range(WIDTH):
                w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
                z[r, j] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                z[r + 1, j] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                z[r + 2, j] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
                z[r + 3, j] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3


@compiled
def descend(w, x, delta, inputs, lr):
    """w (inputs, 64) −= lr · xᵀ (inputs, B) delta (B, 64)."""
    for k in range(0, inputs, 4):
        for r in range(0, BATCH, 4):
            a0, a1, a2, a3 = -lr * x[r, k], -lr * x[r + 1, k], -lr * x[r + 2, k], -lr * x[r + 3, k]
            b0, b1, b2, b3 = (
                -lr * x[r, k + 1], -lr * x[r + 1, k + 1], -lr * x[r + 2, k + 1], -lr * x[r + 3, k + 1],
            )  # fmt: skip
            c0, c1, c2, c3 = (
                -lr * x[r, k + 2], -lr * x[r + 1, k + 2], -lr * x[r + 2, k + 2], -lr * x[r + 3, k + 2],
            )  # fmt: skip
            d0, d1, d2, d3 = (
                -lr * x[r, k + 3], -lr * x[r + 1, k + 3], -lr * x[r + 2, k + 3], -lr * x[r + 3, k + 3],
            )  # fmt: skip
            for j in range(WIDTH):
                e0, e1, e2, e3 = delta[r, j], delta[r + 1, j], delta[r + 2, j], delta[r + 3, j]
                w[k, j] += a0 * e0 + a1 * e1 + a2 * e2 + a3 * e3
                w[k + 1, j] += b0 * e0 + b1 * e1 + b2 * e2 + b3 * e3
                w[k + 2, j] += c0 * e0 + c1 * e1 + c2 * e2 + c3 * e3
                w[k + 3, j] += d0 * e0 + d1 * e1 + d2 * e2 + d3 * e3


@compiled
def rectify(z, out):
    """The first 64 columns of out = relu(z)."""
    for r in range(BATCH):
        for j in range(WIDTH):
            out[r, j] = max(z[r, j], ZERO)


@compiled
def mask(delta, active):
    """delta = 0 where a unit was not active."""
    for r in range(BATCH):
        for j in range(WIDTH):
            delta[r, j] = delta[r, j] if active[r, j] > ZERO else ZERO


@compiled
def output_error(x, w, labels, rows, error):
    """error (B, 8) = (softmax − one-hot) / B."""
    for r in range(BATCH):
        largest = np.float32(-np.inf)
        for c in range(CLASSES):
            logit = ZERO
            for j in range(ABOVE):
                logit += x[r, j] * w[c, j]
            error[r, c] = logit
            largest = max(largest, logit)
        total = ZERO
        for c in range(CLASSES):
            error[r, c] = np.exp(error[r, c] - largest)
            total += error[r, c]
        for c in range(CLASSES):
            target = ONE if labels[rows[r]] == c else ZERO
            error[r, c] = (error[r, c] / total - target) / np.float32(BATCH)


@compiled
def output_back(error, w, x, delta, lr):
    """delta (B, 64) = error w, then w (8, inputs) −= lr · errorᵀ x."""
    for r in range(BATCH):
        for j in range(WIDTH):
            delta[r, j] = ZERO
        for c in range(CLASSES):
            for j in range(WIDTH):
                delta[r, j] += error[r, c] * w[c, j]
    for c in range(CLASSES):
        for r in range(BATCH):
            a = -lr * error[r, c]
            for j in range(ABOVE):
                w[c, j] += a * x[r, j]


@compiled
def transpose(w, out):
    """out (64, 64) = the weights of w (inputs, 64), transposed, in blocks of 8 × 8."""
    for k in range(0, WIDTH, 8):
        for j in range(0, WIDTH, 8):
            for i in range(8):
                for h in range(8):
                    out[j + h, k + i] = w[k + i, j + h]


@compiled
def train(pool, labels, rows, first, second, last, lr):
    """Train M models in place. pool: (n, INPUTS) float32; rows: (M, STEPS, B) int64; layers: (M, …)."""
    x, hidden, upper = (
        np.zeros((BATCH, INPUTS), np.float32), np.zeros((BATCH, ABOVE), np.float32),
        np.zeros((BATCH, ABOVE), np.float32),
    )  # fmt: skip
    hidden[:, WIDTH], upper[:, WIDTH] = ONE, ONE
    below, above = np.zeros((BATCH, WIDTH), np.float32), np.zeros((BATCH, WIDTH), np.float32)
    error, turned = np.zeros((BATCH, OUTPUTS), np.float32), np.zeros((WIDTH, WIDTH), np.float32)
    for m in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            for r in range(BATCH):
                for j in range(INPUTS):
                    x[r, j] = pool[rows[m, t, r], j]
            product(x, first[m], below, INPUTS)
            rectify(below, hidden)
            product(hidden, second[m], above, ABOVE)
            rectify(above, upper)
            output_error(upper, last[m], labels, rows[m, t], error)
            output_back(error, last[m], upper, above, lr)
            mask(above, upper)
            transpose(second[m], turned)
            product(above, turned, below, WIDTH)
            mask(below, hidden)
            descend(second[m], hidden, above, ABOVE, lr)
            descend(first[m], x, below, INPUTS, lr)
