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

from fedsim.core.training.fused.blocks import LANES, ROWS, WIDEST, block, power_of_two, turn

BLOCKS = "d7bc2c3e81dd"
"""The start of the SHA-256 of `blocks`, so that this file changes with it (tested)."""
BATCH_MULTIPLE = 8
ZERO, ONE = np.float32(0), np.float32(1)

compiled = njit(fastmath={"contract", "nsz"}, nogil=True, error_model="numpy")


LAYER = np.dtype(
    [
        (name, np.int64)
        for name in ("below", "above", "inputs", "outputs", "bias", "start", "first_input", "first_error")
    ]
)
"""A layer of a model, see `stacked.layers.LayerSize`.

below, above: units; inputs: as there; outputs: ``above`` filled up
bias: row of the biases; start: place of the layer's matrix among a model's parameters
first_input, first_error: rows of other layers' inputs, and errors, before its own; the output layer's errors
    are the first ones
"""


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
            lanes = WIDEST if left >= WIDEST else LANES if left >= LANES else 8 if left >= 8 else 4
            while i < rows:
                a1, b1, c1 = a0 + i * a_row, b0 + j, c0 + i * c_row + j
                if rows - i >= ROWS and lanes > LANES:
                    wide(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    i += ROWS
                elif rows - i >= ROWS and lanes == LANES:
                    whole(a, a1, a_row, a_step, b, b1, b_row, c, c1, c_row, depth, alpha, beta)
                    i += ROWS
                else:
                    if lanes > LANES:
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
    inputs, mixes = layers[0].inputs, batches.partners.shape[1] > 0
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
    last, first_unit = len(layers) - 1, 0
    for layer in range(last):
        here, there, outputs = (
            layers[layer].first_input * width,
            layers[layer + 1].first_input * width,
            layers[layer].outputs,
        )
        _multiply(
            w, layers[layer].start, 1, outputs, x, here, width, x, there, width,
            outputs, width, layers[layer].bias + 1, ONE, ZERO,
        )  # fmt: skip
        hidden = x[there : there + outputs * width]
        for i in range(len(hidden)):
            hidden[i] = hidden[i] if hidden[i] > ZERO else ZERO
        if drops:
            _multiply_by(hidden, scales[first_unit * width : (first_unit + layers[layer].above) * width])
            first_unit += layers[layer].above
        bias = there + outputs * width
        _fill(x[bias : bias + width], ONE)
        _fill(x[bias + width : bias + 4 * width], ZERO)
    inputs = layers[last].inputs
    _multiply(
        w, layers[last].start, inputs, 1, x, layers[last].first_input * width, width, error, 0, width,
        layers[last].outputs, width, layers[last].bias + 1, ONE, ZERO,
    )  # fmt: skip


@compiled
def _exp(x):  # type: ignore
    """eˣ for x ≤ 0 to a few units in the last place, in arithmetic that vectors have (Cephes' expf)."""
    x = np.float32(-87) if x < np.float32(-87) else x
    n = np.rint(x * np.float32(1.44269504))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + np.float32(coefficient)
    return (p * r * r + r + ONE) * power_of_two(np.int32(n))


@compiled
def _slope(error, classes, pool, batches, m, t, n, width, scratch, losses):  # type: ignore
    """Turn logits (classes, width) into softmax − target; scratch: (2 · width,); losses: see `train`."""
    largest, total = scratch[:width], scratch[width : 2 * width]
    _copy(error[:width], largest)
    for c in range(1, classes):
        logits = error[c * width :][:width]
        for b in range(width):
            largest[b] = logits[b] if logits[b] > largest[b] else largest[b]
    if len(losses):
        for b in range(n):
            losses[m] += largest[b] - error[pool.labels[batches.rows[t, m, b]] * width + b]
    _fill(total, ZERO)
    for c in range(classes):
        row = error[c * width :][:width]
        for b in range(width):
            row[b] = _exp(row[b] - largest[b])
            total[b] += row[b]
    if len(losses):
        for b in range(n):
            losses[m] += np.log(total[b])
    hit = ONE - batches.smoothing[m]
    others = batches.smoothing[m] / np.float32(classes)
    for c in range(classes):
        row = error[c * width :][:width]
        for b in range(width):
            row[b] = row[b] / total[b] - others
    mixes = batches.partners.shape[1] > 0
    share = batches.share[t, m] if mixes else ONE
    for b in range(n):
        error[pool.labels[batches.rows[t, m, b]] * width + b] -= share * hit
        if mixes:
            error[pool.labels[batches.partners[t, m, b]] * width + b] -= (ONE - share) * hit


@compiled
def _backward(w, x, layers, scales, drops, errors, width):  # type: ignore
    """Fill the errors of the hidden layers, (outputs, width) each, from the last one's at the front."""
    last, first_unit = len(layers) - 1, 0
    for layer in range(last):
        first_unit += layers[layer].above
    for layer in range(last, 0, -1):
        here, below = layers[layer].first_error * width, layers[layer - 1].first_error * width
        row, step = (1, layers[layer].inputs) if layer == last else (layers[layer].outputs, 1)
        outputs = layers[layer - 1].outputs
        _multiply(
            w, layers[layer].start, row, step, errors, here, width, errors, below, width,
            outputs, width, layers[layer].above, ONE, ZERO,
        )  # fmt: skip
        error = errors[below : below + outputs * width]
        active = x[layers[layer].first_input * width : (layers[layer].first_input + outputs) * width]
        # relu'(z) is read off its result, which is positive exactly where z is and the unit was not dropped.
        for i in range(len(error)):
            error[i] = error[i] if active[i] > ZERO else ZERO
        if drops:
            first_unit -= layers[layer - 1].above
            _multiply_by(error, scales[first_unit * width : (first_unit + layers[layer - 1].above) * width])


@compiled
def _sum_squares(x, squares, out):  # type: ignore
    """The first row of out (4, width) = Σ_i x[i]² of x (rows, width); squares: room for as many numbers."""
    width = len(out) // 4
    for i in range(len(x)):
        squares[i] = x[i] * x[i]
    ones = np.ones(1, np.float32)
    _multiply(ones, 0, 0, 0, squares, 0, width, out, 0, width, 4, width, len(x) // width, ONE, ZERO)


@compiled
def _norms(x, errors, layers, squares, scratch, norms, width):  # type: ignore
    """norms (width,) = √Σ_l ‖δ_l‖² ‖(a_l, 1)‖² of each record, see `LayerPass`; scratch: (8 · width,)."""
    inputs, outputs = scratch[: 4 * width], scratch[4 * width : 8 * width]
    _fill(norms, ZERO)
    for layer in layers:
        here, rows = layer.first_input * width, layer.bias + 1
        _sum_squares(x[here : here + rows * width], squares, inputs)
        here, rows = layer.first_error * width, layer.above
        _sum_squares(errors[here : here + rows * width], squares, outputs)
        for b in range(width):
            norms[b] += inputs[b] * outputs[b]
    for b in range(width):
        norms[b] = np.sqrt(norms[b])


@compiled
def _add_gradient(number, x, errors, layers, factors, n, width, turned, target, alpha, beta):  # type: ignore
    """Target = β target + α · (layer's gradient), Σ_b factor_b δ_b (a_b, 1)ᵀ over n records.

    factors: (n,), or empty for 1
    """
    layer, last = layers[number], number == len(layers) - 1
    below, error = layer.first_input * width, layer.first_error * width
    # One factor as (rows, width), the other turned round as (n, columns).
    rows, columns = (layer.outputs, layer.inputs) if last else (layer.inputs, layer.outputs)
    _transpose(x if last else errors, below if last else error, columns, n, width, turned, columns)
    for b in range(len(factors)):
        row = turned[b * columns :][:columns]
        for j in range(columns):
            row[j] *= factors[b]
    _multiply_add(
        errors if last else x, error if last else below, width, 1, turned, 0, columns,
        target, layer.start, columns, rows, columns, n, alpha, beta,
    )  # fmt: skip


@compiled
def _add_noise(layer, last, table, place, target, scale):  # type: ignore
    """Target += scale · (normal numbers from ``place`` on), weights and then biases; return what follows."""
    width = layer.inputs if last else layer.outputs
    rows, columns = (layer.above, layer.below) if last else (layer.below, layer.above)
    for i in range(rows):
        numbers, row = table[place + i * columns :][:columns], target[layer.start + i * width :][:columns]
        for j in range(columns):
            row[j] += scale * numbers[j]
    place += rows * columns
    for j in range(layer.above):
        here = j * width + layer.bias if last else layer.bias * width + j
        target[layer.start + here] += scale * table[place + j]
    return place + layer.above


@compiled
def _add_noises(private, m, t, layers, target, alpha, norms):  # type: ignore
    """Add α · noise to the target, and move C where it adapts to norms (n,)."""
    sign, place = private.signs[t, m], private.places[t, m]
    scale = alpha * sign * np.float32(private.deviation[m] * private.norm[m])
    for number in range(len(layers)):
        place = _add_noise(layers[number], number == len(layers) - 1, private.table, place, target, scale)
    if private.adapts[m]:
        private.norm[m] = _next_norm(private, m, norms, sign * private.table[place])


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
def _next_norm(private, m, norms, noise):  # type: ignore
    """Return C after a step of records of these norms (Andrew et al. 2021), see `Clipping.follow`."""
    shorter = 0
    for b in range(len(norms)):
        shorter += norms[b] <= np.float32(private.norm[m])
    count = np.float32(shorter) - np.float32(len(norms)) / np.float32(2) + private.count_noise[m] * noise
    share = min(max(np.float32(0.5) + count / private.expected_batch[m], ZERO), ONE)
    return private.norm[m] * np.exp(-private.rate[m] * (share - private.quantile[m]))


@compiled
def _up(size):  # type: ignore
    """A width of at least 1 that is a multiple of `BATCH_MULTIPLE`."""
    return -(-max(1, size) // BATCH_MULTIPLE) * BATCH_MULTIPLE


@compiled
def _records(rows, empty):  # type: ignore
    """How many rows there are before the first empty one."""
    n = 0
    while n < len(rows) and rows[n] != empty:
        n += 1
    return n


@compiled
def _clip(private, m, norms, factors):  # type: ignore
    """factors (n,) = c_i of each record, by its gradient's norm; see `training.clipping`."""
    largest = np.float32(private.norm[m])
    for b in range(len(factors)):
        factors[b] = min(ONE, largest / (norms[b] + np.float32(1e-6)))


@njit(fastmath={"contract", "nsz"}, nogil=True, error_model="numpy", cache=True)
def train(models, layers, pool, batches, optimizer, dropout, private, losses):  # type: ignore
    """Train models (M, parameters) in place, as `FusedLayers.train` says.

    losses: (M,) float64, to which each record's cross-entropy with its label is added, in every step and
        before it; or empty
    """
    size, last, lr = models.shape[1], len(layers) - 1, optimizer.lr
    hidden, inputs, outputs, longest = 0, 0, 0, 0
    for layer in layers:
        hidden += layer.above
        inputs += layer.inputs
        outputs += layer.outputs
        longest = max(longest, layer.inputs, layer.outputs)
    hidden -= layers[last].above
    widest = _up(batches.rows.shape[2])
    x, errors = np.zeros(inputs * widest, np.float32), np.zeros(outputs * widest, np.float32)
    turned, scratch = np.zeros(longest * widest, np.float32), np.zeros(8 * widest, np.float32)
    norms, factors = np.zeros(widest, np.float32), np.zeros(widest, np.float32)
    any_drops, clips = dropout.places.shape[1] > 0, private.places.shape[1] > 0
    scales = np.zeros(hidden * widest if any_drops else 0, np.float32)
    sent, slope = np.zeros(size, np.float32), np.zeros(size, np.float32)
    mean, square = np.zeros(size, np.float32), np.zeros(size, np.float32)
    # Without a memory of earlier steps the weights themselves take the gradient, −lr times.
    plain = not optimizer.adam and optimizer.momentum == ZERO
    for m in range(len(models)):
        w = models[m]
        _copy(w, sent)
        _fill(slope, ZERO)
        _fill(mean, ZERO)
        _fill(square, ZERO)
        penalised = optimizer.mu != ZERO or optimizer.l1[m] != ZERO or optimizer.l2[m] != ZERO
        drops = any_drops and dropout.rate[m] > ZERO
        target = w if plain else slope
        alpha, beta = (-lr, ONE) if plain else (ONE, optimizer.momentum)
        for t in range(batches.steps[m]):
            n = _records(batches.rows[t, m], len(pool.labels) - 1)
            width = _up(n)
            if drops:
                _draw_scales(scales, dropout, m, t, n, width, hidden)
            _load(x, layers, pool, batches, m, t, n, width)
            _forward(w, x, layers, scales, drops, errors, width)
            _slope(errors, layers[last].above, pool, batches, m, t, n, width, scratch, losses)
            _backward(w, x, layers, scales, drops, errors, width)
            if clips:
                _norms(x, errors, layers, turned, scratch, norms[:width], width)
                _clip(private, m, norms, factors[:n])
            if penalised and plain:
                _penalise(w, sent, w, -lr, optimizer.mu, optimizer.l1[m], optimizer.l2[m])
            share = alpha / (private.expected_batch[m] if clips else np.float32(max(1, n)))
            for layer in range(last + 1):
                _add_gradient(
                    layer, x, errors, layers, factors[: n if clips else 0], n, width, turned,
                    target, share, beta,
                )  # fmt: skip
            if clips:
                _add_noises(private, m, t, layers, target, alpha, norms[:n])
            if penalised and not plain:
                _penalise(w, sent, slope, ONE, optimizer.mu, optimizer.l1[m], optimizer.l2[m])
            if optimizer.adam:
                _adam(w, slope, mean, square, t + 1, lr)
            elif not plain:
                for i in range(size):
                    w[i] -= lr * slope[i]
