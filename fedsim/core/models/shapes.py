"""What a model of the zoo asks of the records, by arithmetic alone: a scenario is checked without torch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from fedsim.core.errors import InputError

if TYPE_CHECKING:
    from fedsim.core.scenario.training import ModelSettings


def is_custom(model: ModelSettings) -> bool:
    """Whether the model is a user's own 'module:callable'; only building it tells what it asks for."""
    return ":" in model.name


def check_input(model: ModelSettings, input_shape: tuple[int, ...]) -> None:
    """Check that a model of the zoo takes records of ``input_shape``, as `zoo.build` does.

    Raises:
        InputError: it is a CNN, and the records are no images, or smaller than its poolings need.
    """
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


def has_hidden_units(model: ModelSettings) -> bool:
    """Whether a model of the zoo has activation layers, whose outputs dropout leaves out."""
    return model.name != "logistic" and bool(model.hidden)


def weights(model: ModelSettings, input_shape: tuple[int, ...], classes: int) -> int:
    """Return the number of trained parameters of a model of the zoo."""
    if model.name == "cnn":
        channels, height, width = input_shape
        count = 0
        for filters in model.hidden:
            count += (9 * channels + 1) * filters  # 3 × 3 and a bias
            channels, height, width = filters, height // 2, width // 2
        return count + (channels * height * width + 1) * classes
    hidden = [] if model.name == "logistic" else model.hidden
    widths = [math.prod(input_shape), *hidden, classes]
    return sum((below + 1) * above for below, above in pairwise(widths))
