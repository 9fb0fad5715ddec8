"""The steps of plain stacks of linear layers and ReLU, a model at a time, compiled by numba.

A model of a few thousand parameters fits into the first or second cache together with a batch. So one model
after the other makes all its steps of a round, where `fedsim.core.training.stacked` moves hundreds of models
through memory in every step. What a model becomes depends on nothing but its own arguments.

Activations and errors are held transposed, (units, batch), the batch filled up to `BATCH_MULTIPLE`: the
products of the forward and the backward pass then run over whole vectors, whatever the layers' widths are,
and read the weights as they lie. The product over the batch, which is the gradient, needs one factor of each
layer turned round, the smaller one.

numba compiles once per machine and keeps the result beside this file or, where that may only be read, in the
user's own cache. It compiles again when this file changes, and this file alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from fedsim.core.training.fused.blocks import LANES, ROWS, block, turn

BLOCKS = "5266f4876f1b"
"""The start of the SHA-256 of `blocks`, so that this file changes with it (tested)."""
BATCH_MULTIPLE = 8
ZERO, ONE = np.float32(0), np.float32(1)
HALF = np.float32(0.5)

compiled = njit(fastmath={"contract", "nsz"}, nogil=True, error_model="numpy")


class Layers(NamedTuple):
    """The layers of a model, (layers,) int64 each; see `stacked.layers.LayerSize`.

    below, above: units; inputs: as there; outputs: ``above`` filled up
    bias: row of the biases; start: place of a layer's matrix among a model's parameters
    first_input, first_error: rows of all layers' inputs, and errors, before the layer's own; the output
        layer's errors are the first ones
    """

    below: np.ndarray
    above: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    bias: np.ndarray
    start: np.ndarray
    first_input: np.ndarray
    first_error: np.ndarray


class Pool(NamedTuple):
    """`PoolTensors`: features (n + 1, inputs) float32, labels (n + 1,) int64."""

    features: np.ndarray
    labels: np.ndarray


class Batches(NamedTuple):
    """The records of M models in each of their steps.

    rows: (T, M, B) int32, of the pool, its empty last one after the records of a batch
    steps: (M,) int64, how many a model makes
    smoothing: (M,) float32
    partners, share: mixup, (T, M, B) int32 and (T, M) float32; (T, 0, B) and (T, 0) without
    """

    rows: np.ndarray
    steps: np.ndarray
    smoothing: np.ndarray
    partners: np.ndarray
    share: np.ndarray


class Optimizer(NamedTuple):
    """Heavy ball, or Adam with torch's defaults, and `Penalties`: l1, l2 (M,) float32, the others float32."""

    adam: bool
    lr: np.float32
    momentum: np.float32
    mu: np.float32
    l1: np.ndarray
    l2: np.ndarray


class Dropout(NamedTuple):
    """Dropout of M models.

    rate: (M,) float32
    places: (T, M) int64, of a step's numbers in the table (N,) float32; (T, 0) without
    """

    rate: np.ndarray
    places: np.ndarray
    table: np.ndarray


class Private(NamedTuple):
    """DP-SGD of M models: `StackedPlans`, (M,) each, and where a step's noise is.

    norm: (M,) float64, C of the next step, changed in place
    places, signs: (T, M) int64 and float32, of a step's numbers in the table (N,) float32; (T, 0) without
    """

    norm: np.ndarray
    expected_batch: np.ndarray
    deviation: np.ndarray
    adapts: np.ndarray
    count_noise: np.ndarray
    quantile: np.ndarray
    rate: np.ndarray
    places: np.ndarray
    signs: np.ndarray
    table: np.ndarray


def _product(adds: bool) -> Any:
    """Return ``product``, C = A B or, if it adds, C = βC + αAB, for matrices (rows, depth), (depth, columns).

    All lie in flat arrays. An entry of A is a[a0 + i·a_row + k·a_step]; rows of B and C are contiguous, b_row
    and c_row apart. Rows and columns are multiples of 4. The order of an entry's sum is that of k.
    """
    wide, whole = (block(ROWS, n, LANES, adds) for n in (2, 1))
    low_wide, low, half, quarter = (
        block(4, 2, LANES, adds), *(block(4, 1, LANES // n, adds) for n in (1, 2, 4))
    )  # fmt: skip

    @compiled
    def product(a, a0, a_row, a_step, b, b0, b_row, c, c0, c_row, rows, columns, depth, alpha, beta):  # type: ignore
        j = 0
        while j < columns:
            left, i = columns - j, 0
            lanes = 2 * LANES if left >= 2 * LANES else LANES if left >= LANES else 8 if left >= 8 else 4
            while i < rows:
                a1, b1, c1 = a0 + i * a_row, b0 + j, c0 + i * c_row + j
                if rows - i >= ROWS and lanes == 2 * LANES:
                    wide(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    i += ROWS
                elif rows - i >= ROWS and lanes == LANES:
                    whole(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    i += ROWS
                else:
                    if lanes == 2 * LANES:
                        low_wide(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    elif lanes == LANES:
                        low(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    elif lanes == 8:
                        half(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    else:
                        quarter(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    i += 4
            j += lanes

    return product


_multiply, _multiply_add = _product(adds=False), _product(adds=True)


@compiled
def _transpose(source, start, rows, columns, width, out, out_width):  # type: ignore
    """out (columns, out_width) = the first columns of source (rows, width) from ``start`` on, transposed."""
    for i in range(0, rows, 4):
        for j in range(0, columns, 4):
            turn(source, start + i * width + j, width, out, j * out_width + i, out_width)


@compiled
def _load(x, layers, pool, batches, m, t, n, width):  # type: ignore
    """Write the records of a batch into x (inputs, width), mixed with their partners where there are any."""
    inputs, mixes = layers.inputs[0], batches.partners.shape[1] > 0
    for b in range(n):
        row = batches.rows[t, m, b]
        for i in range(inputs):
            x[i * width + b] = pool.features[row, i]
        if mixes:
            partner, share = batches.partners[t, m, b], batches.share[t, m]
            for i in range(inputs):
                other = pool.features[partner, i]
                x[i * width + b] = other + share * (x[i * width + b] - other)
    for i in range(inputs):
        for b in range(n, width):
            x[i * width + b] = ZERO


@compiled
def _fill(x, value):  # type: ignore
    for i in range(len(x)):
        x[i] = value


@compiled
def _copy(x, out):  # type: ignore
    for i in range(len(x)):
        out[i] = x[i]


@compiled
def _multiply_by(x, factors):  # type: ignore
    """Multiply the first entries of x by the factors."""
    for i in range(len(factors)):
        x[i] *= factors[i]


@compiled
def _draw_scales(scales, dropout, m, t, n, width, hidden):  # type: ignore
    """Fill scales (hidden, width) with 1/(1 − p), or 0 for a unit that is left out."""
    rate = dropout.rate[m]
    for b in range(n):
        numbers = dropout.table[dropout.places[t, m] + b * hidden :][:hidden]
        for i in range(hidden):
            scales[i * width + b] = ONE / (ONE - rate) if numbers[i] >= rate else ZERO


@compiled
def _forward(w, x, layers, scales, drops, error, width):  # type: ignore
    """Fill the layers' inputs, x (inputs, width) each, and the logits, at the front of ``error``."""
    last, first_unit = len(layers.below) - 1, 0
    for layer in range(last):
        here, there, outputs = (
            layers.first_input[layer] * width,
            layers.first_input[layer + 1] * width,
            layers.outputs[layer],
        )
        _multiply(
            w, layers.start[layer], 1, outputs, x, here, width, x, there, width,
            outputs, width, layers.bias[layer] + 1, ONE, ZERO,
        )  # fmt: skip
        hidden = x[there : there + outputs * width]
        for i in range(len(hidden)):
            hidden[i] = hidden[i] if hidden[i] > ZERO else ZERO
        if drops:
            _multiply_by(hidden, scales[first_unit * width : (first_unit + layers.above[layer]) * width])
            first_unit += layers.above[layer]
        bias = there + outputs * width
        _fill(x[bias : bias + width], ONE)
        _fill(x[bias + width : bias + 4 * width], ZERO)
    inputs = layers.inputs[last]
    _multiply(
        w, layers.start[last], inputs, 1, x, layers.first_input[last] * width, width, error, 0, width,
        layers.outputs[last], width, layers.bias[last] + 1, ONE, ZERO,
    )  # fmt: skip


@compiled
def _slope(error, classes, outputs, pool, batches, m, t, n, width):  # type: ignore
    """Turn logits (outputs, width) into softmax − target, 0 where there is no record or no class."""
    smoothing, mixes = batches.smoothing[m], batches.partners.shape[1] > 0
    share = batches.share[t, m] if mixes else ONE
    for b in range(n):
        largest = error[b]
        for c in range(1, classes):
            largest = max(largest, error[c * width + b])
        total = ZERO
        for c in range(classes):
            power = np.exp(error[c * width + b] - largest)
            error[c * width + b] = power
            total += power
        label = pool.labels[batches.rows[t, m, b]]
        other = pool.labels[batches.partners[t, m, b]] if mixes else label
        for c in range(classes):
            hit = (share if c == label else ZERO) + (ONE - share if c == other else ZERO)
            target = (ONE - smoothing) * hit + smoothing / np.float32(classes)
            error[c * width + b] = error[c * width + b] / total - target
    for c in range(outputs):
        for b in range(n if c < classes else 0, width):
            error[c * width + b] = ZERO


@compiled
def _backward(w, x, layers, scales, drops, errors, width):  # type: ignore
    """Fill the errors of the hidden layers, (outputs, width) each, from the last one's at the front."""
    last, first_unit = len(layers.below) - 1, 0
    for layer in range(last):
        first_unit += layers.above[layer]
    for layer in range(last, 0, -1):
        here, below = layers.first_error[layer] * width, layers.first_error[layer - 1] * width
        row, step = (1, layers.inputs[layer]) if layer == last else (layers.outputs[layer], 1)
        outputs = layers.outputs[layer - 1]
        _multiply(
            w, layers.start[layer], row, step, errors, here, width, errors, below, width,
            outputs, width, layers.above[layer], ONE, ZERO,
        )  # fmt: skip
        error = errors[below : below + outputs * width]
        active = x[layers.first_input[layer] * width : (layers.first_input[layer] + outputs) * width]
        # relu'(z) is read off its result, which is positive exactly where z is and the unit was not dropped.
        for i in range(len(error)):
            error[i] = error[i] if active[i] > ZERO else ZERO
        if drops:
            first_unit -= layers.above[layer - 1]
            _multiply_by(error, scales[first_unit * width : (first_unit + layers.above[layer - 1]) * width])


@compiled
def _weigh(errors, rows, factors, width):  # type: ignore
    """Multiply errors (rows, width) by a factor for each record."""
    for i in range(rows):
        _multiply_by(errors[i * width : (i + 1) * width], factors[:width])


@compiled
def _add_squares(sums, x):  # type: ignore
    for b in range(len(x)):
        sums[b] += x[b] * x[b]


@compiled
def _norms(x, errors, layers, squares, norms, width):  # type: ignore
    """norms (width,) = √Σ_l ‖δ_l‖² ‖(a_l, 1)‖² of each record, see `LayerPass`; squares: (2 · width,)."""
    _fill(norms, ZERO)
    for layer in range(len(layers.below)):
        _fill(squares, ZERO)
        for i in range(layers.bias[layer] + 1):
            _add_squares(squares[:width], x[(layers.first_input[layer] + i) * width :][:width])
        for i in range(layers.above[layer]):
            _add_squares(squares[width:], errors[(layers.first_error[layer] + i) * width :][:width])
        for b in range(width):
            norms[b] += squares[b] * squares[width + b]
    for b in range(width):
        norms[b] = np.sqrt(norms[b])


@compiled
def _add_gradient(layer, x, errors, layers, n, width, turned, target, alpha, beta):  # type: ignore
    """Target = β target + α · (gradient of layer layer's matrix), from n records."""
    inputs, outputs = layers.inputs[layer], layers.outputs[layer]
    here, error = layers.first_input[layer] * width, layers.first_error[layer] * width
    if layer == len(layers.below) - 1:
        _transpose(x, here, inputs, n, width, turned, inputs)
        _multiply_add(
            errors, error, width, 1, turned, 0, inputs, target, layers.start[layer], inputs,
            outputs, inputs, n, alpha, beta,
        )  # fmt: skip
    else:
        _transpose(errors, error, outputs, n, width, turned, outputs)
        _multiply_add(
            x, here, width, 1, turned, 0, outputs, target, layers.start[layer], outputs,
            inputs, outputs, n, alpha, beta,
        )  # fmt: skip


@compiled
def _add_noise(layer, layers, table, place, target, scale):  # type: ignore
    """Target += scale · (normal numbers from ``place`` on), weights and then biases of layer layer."""
    last = layer == len(layers.below) - 1
    width = layers.inputs[layer] if last else layers.outputs[layer]
    rows, columns = (
        (layers.above[layer], layers.below[layer]) if last else (layers.below[layer], layers.above[layer])
    )
    for i in range(rows):
        numbers, row = (
            table[place + i * columns :][:columns],
            target[layers.start[layer] + i * width :][:columns],
        )
        for j in range(columns):
            row[j] += scale * numbers[j]
    place += rows * columns
    for j in range(layers.above[layer]):
        here = j * width + layers.bias[layer] if last else layers.bias[layer] * width + j
        target[layers.start[layer] + here] += scale * table[place + j]
    return place + layers.above[layer]


@compiled
def _penalise(w, sent, target, scale, mu, l1, l2):  # type: ignore
    """Target += scale · (μ(w − w_t) + λ₁ sign(w) + λ₂ w), which may be w itself."""
    for i in range(len(w)):
        target[i] += scale * (mu * (w[i] - sent[i]) + l1 * np.sign(w[i]) + l2 * w[i])


@compiled
def _adam(w, slope, mean, square, t, lr):  # type: ignore
    """Make the t-th step of Adam (Kingma & Ba 2015, algorithm 1)."""
    beta1, beta2, epsilon = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
    root = np.float32(np.sqrt(1 - 0.999**t))
    rate = np.float32(lr / (1 - 0.9**t))
    for i in range(len(w)):
        mean[i] += (ONE - beta1) * (slope[i] - mean[i])
        square[i] = beta2 * square[i] + (ONE - beta2) * slope[i] * slope[i]
        w[i] -= rate * mean[i] / (np.sqrt(square[i]) / root + epsilon)


@compiled
def _next_norm(private, m, norms, n, norm, noise):  # type: ignore
    """Return C after a step of n records of these norms (Andrew et al. 2021), see `Clipping.follow`."""
    shorter = 0
    for b in range(n):
        shorter += norms[b] <= np.float32(norm)
    count = np.float32(shorter) - np.float32(n) * HALF + private.count_noise[m] * noise
    share = min(max(HALF + count / private.expected_batch[m], ZERO), ONE)
    return norm * np.exp(-private.rate[m] * (share - private.quantile[m]))


@njit(fastmath={"contract", "nsz"}, nogil=True, error_model="numpy", cache=True)
def train(models, layers, pool, batches, optimizer, dropout, private):  # type: ignore
    """Train models (M, parameters) in place, as `fused.rounds.train` says."""
    size, last = models.shape[1], len(layers.below) - 1
    hidden, inputs, outputs, largest = 0, 0, 0, 0
    for layer in range(last + 1):
        hidden += layers.above[layer] if layer < last else 0
        inputs += layers.inputs[layer]
        outputs += layers.outputs[layer]
        largest = max(largest, layers.inputs[layer], layers.outputs[layer])
    widest = -(-max(1, batches.rows.shape[2]) // BATCH_MULTIPLE) * BATCH_MULTIPLE
    x, errors = np.zeros(inputs * widest, np.float32), np.zeros(outputs * widest, np.float32)
    turned, factors = np.zeros(largest * widest, np.float32), np.zeros(widest, np.float32)
    norms, squares = np.zeros(widest, np.float32), np.zeros(2 * widest, np.float32)
    any_drops, clips = dropout.places.shape[1] > 0, private.places.shape[1] > 0
    scales = np.zeros(hidden * widest if any_drops else 0, np.float32)
    sent, slope = np.zeros(size, np.float32), np.zeros(size, np.float32)
    mean, square = np.zeros(size, np.float32), np.zeros(size, np.float32)
    plain = not optimizer.adam and optimizer.momentum == ZERO
    lr = optimizer.lr
    for m in range(len(models)):
        w = models[m]
        _copy(w, sent)
        _fill(slope, ZERO)
        _fill(mean, ZERO)
        _fill(square, ZERO)
        penalised = optimizer.mu != ZERO or optimizer.l1[m] != ZERO or optimizer.l2[m] != ZERO
        drops = any_drops and dropout.rate[m] > ZERO
        target = w if plain else slope
        alpha = -lr if plain else ONE
        beta = ONE if plain else optimizer.momentum
        for t in range(batches.steps[m]):
            n = 0
            while n < batches.rows.shape[2] and batches.rows[t, m, n] != len(pool.labels) - 1:
                n += 1
            width = -(-max(1, n) // BATCH_MULTIPLE) * BATCH_MULTIPLE
            if drops:
                _draw_scales(scales, dropout, m, t, n, width, hidden)
            _load(x, layers, pool, batches, m, t, n, width)
            _forward(w, x, layers, scales, drops, errors, width)
            _slope(errors, layers.above[last], layers.outputs[last], pool, batches, m, t, n, width)
            if clips:
                _backward(w, x, layers, scales, drops, errors, width)
                _norms(x, errors, layers, squares, norms, width)
                clipping_norm = np.float32(private.norm[m])
                for b in range(width):
                    factors[b] = (
                        min(ONE, clipping_norm / (norms[b] + np.float32(1e-6))) / private.expected_batch[m]
                    )
                _weigh(errors, outputs, factors, width)
            else:
                _fill(factors, ONE / np.float32(max(1, n)))
                _weigh(errors, layers.outputs[last], factors, width)
                _backward(w, x, layers, scales, drops, errors, width)
            if penalised and plain:
                _penalise(w, sent, w, -lr, optimizer.mu, optimizer.l1[m], optimizer.l2[m])
            for layer in range(last + 1):
                _add_gradient(layer, x, errors, layers, n, width, turned, target, alpha, beta)
            if clips:
                sign = private.signs[t, m]
                scale = alpha * sign * np.float32(private.deviation[m] * private.norm[m])
                place = private.places[t, m]
                for layer in range(last + 1):
                    place = _add_noise(layer, layers, private.table, place, target, scale)
                if private.adapts[m]:
                    private.norm[m] = _next_norm(
                        private, m, norms, n, private.norm[m], sign * private.table[place]
                    )
            if penalised and not plain:
                _penalise(w, sent, slope, ONE, optimizer.mu, optimizer.l1[m], optimizer.l2[m])
            if optimizer.adam:
                _adam(w, slope, mean, square, t + 1, lr)
            elif not plain:
                for i in range(size):
                    w[i] -= lr * slope[i]
