"""What a model of the zoo asks of the records, by arithmetic alone: a scenario is checked without torch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from fedsim.core.errors import InputError

if TYPE_CHECKING:
    from fedsim.core.scenario.training import ModelSettings


LANGUAGE = ("gpt", "lstm")
"""Models of text, which read token ids."""

HEADS = 16
"""A GPT's width is a multiple of that of an attention head."""


def is_custom(model: ModelSettings) -> bool:
    """Whether the model is a user's own 'module:callable'; only building it tells what it asks for."""
    return ":" in model.name


def check_input(model: ModelSettings, input_shape: tuple[int, ...]) -> None:
    """Check that a model of the zoo takes records of ``input_shape``, as `zoo.build` does.

    Raises:
        InputError: it is a CNN, and the records are no images, or smaller than its poolings need; or it is a
            language model, and they are no text, or its widths do not fit.
    """
    if model.name in LANGUAGE:
        _check_language(model, input_shape)
    if model.name != "cnn":
        return
    if len(input_shape) != 3:
        raise InputError(
            f"model.name = 'cnn': records have shape {input_shape}, not (channels, height, width); use 'mlp'"
        )
    _, height, width = input_shape
    if min(height, width) >> len(model.hidden) == 0:
        raise InputError(
            f"model.hidden = {model.hidden}: {len(model.hidden)} poolings leave nothing of "
            f"{height}×{width} pixels; at most {min(height, width).bit_length() - 1} layers"
        )


def _check_language(model: ModelSettings, input_shape: tuple[int, ...]) -> None:
    if model.vocabulary is None or len(input_shape) != 1:
        raise InputError(
            f"model.name = '{model.name}' reads text, and the records are none; set data.text, or use 'mlp'"
        )
    widths = model.hidden
    if not widths:
        raise InputError(f"model.hidden = []: a '{model.name}' needs a layer at least, such as [64]")
    if model.name == "gpt" and (len(set(widths)) != 1 or widths[0] % HEADS):
        raise InputError(
            f"model.hidden = {widths}: the blocks of a 'gpt' have one width, a multiple of {HEADS}, such as "
            f"{[max(HEADS, round(w / HEADS) * HEADS) for w in widths[:1]] * len(widths)}"
        )


def has_hidden_units(model: ModelSettings) -> bool:
    """Whether a model of the zoo has activation layers, whose outputs dropout leaves out."""
    return model.name not in ("logistic", "lstm") and bool(model.hidden)


def weights(model: ModelSettings, input_shape: tuple[int, ...], classes: int) -> int:
    """Return the number of trained parameters of a model of the zoo."""
    if model.name == "cnn":
        channels, height, width = input_shape
        count = 0
        for filters in model.hidden:
            count += (9 * channels + 1) * filters  # 3 × 3 and a bias
            channels, height, width = filters, height // 2, width // 2
        return count + (channels * height * width + 1) * classes
    if model.name in LANGUAGE:
        return _language_weights(model, input_shape[0])
    hidden = [] if model.name == "logistic" else model.hidden
    widths = [math.prod(input_shape), *hidden, classes]
    return sum((below + 1) * above for below, above in pairwise(widths))


def _language_weights(model: ModelSettings, length: int) -> int:
    vocabulary, widths = model.vocabulary or 0, model.hidden
    if model.name == "lstm":
        cells = sum(4 * w * (below + w + 1) for below, w in zip([widths[0], *widths], widths, strict=False))
        return vocabulary * (widths[0] + widths[-1]) + cells
    width = widths[0]
    # Of a block: 12 d² weights, 9 d biases, 4 d of the two norms.
    return (2 * vocabulary + length + 2) * width + len(widths) * (12 * width**2 + 13 * width)
