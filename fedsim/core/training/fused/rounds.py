"""A round of local training of M models, each of which makes all its steps before the next one begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.fused import kernel
from fedsim.core.training.stacked.batches import Parameters, PoolTensors, up
from fedsim.core.training.stacked.clipping import StackedPlans
from fedsim.core.training.stacked.layers import StackedLayers, Workspace
from fedsim.core.training.stacked.noise import NoiseSource, uniform_places, uniform_table
from fedsim.core.training.stacked.optimizers import Penalties
from fedsim.core.training.stacked.regularisation import Regularisation


@dataclass(frozen=True, eq=False)
class Drawn:
    """The records of M models in each of T steps, and the numbers from which the rest of chance is made.

    rows: (T, M, B) int32, of the pool, its empty last one after the records of a batch
    steps: (M,) int64, how many of them a model makes
    partner, share: mixup, (T, M, B) int32 and (T, M) float32, or None
    dropout: (T, M) uint64, see `stacked.noise.uniform`, if any model drops units
    noise: (T, M) uint64, see `NoiseSource`, for private models
    key: (seed, game), which decides the tables of these numbers
    """

    rows: Tensor
    steps: np.ndarray
    partner: Tensor | None
    share: Tensor | None
    dropout: np.ndarray
    noise: np.ndarray
    key: tuple[int, int]


class FusedLayers:
    """The models of a `StackedLayers`, as the kernel trains them."""

    def __init__(self, stack: StackedLayers) -> None:
        self._shapes = stack.shapes
        sizes = [high * wide for high, wide in self._shapes]
        self._size, self._sizes = sum(sizes), sizes
        inputs, outputs = (
            [layer.inputs for layer in stack.layers],
            [up(layer.above) for layer in stack.layers],
        )
        columns = {
            "below": [layer.below for layer in stack.layers],
            "above": [layer.above for layer in stack.layers],
            "inputs": inputs,
            "outputs": outputs,
            "bias": [layer.bias for layer in stack.layers],
            "start": np.cumsum([0, *sizes[:-1]]),
            "first_input": np.cumsum([0, *inputs[:-1]]),
            "first_error": np.roll(np.cumsum([0, outputs[-1], *outputs[:-2]])[: len(outputs)], -1),
        }
        self._layers = np.empty(len(stack.layers), kernel.LAYER)
        for name, values in columns.items():
            self._layers[name] = values

    def buffers(self, scratch: Workspace, models: int) -> tuple[Tensor, Parameters]:
        """Return uninitialised memory, (M, all numbers), and the parameters of M models as views of it."""
        flat = scratch("fused", models, self._size)
        pieces = flat.split(self._sizes, dim=1)
        return flat, [piece.unflatten(1, shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def train(
        self,
        flat: Tensor,
        pool: PoolTensors,
        drawn: Drawn,
        settings: TrainingSettings,
        penalties: Penalties,
        regularisation: Regularisation,
        private: tuple[StackedPlans, Tensor, NoiseSource] | None,
        losses: np.ndarray | None = None,
    ) -> None:
        """Train the models of which `buffers` returned the memory, in place.

        private: of models with DP-SGD their plans, C of the next step, (M,) float64, which moves in place
            where it adapts, and what makes their noise
        losses: (M,) float64, to which each record's cross-entropy with its label is added, in every step and
            before it
        """
        models = len(flat)
        rows = drawn.rows.numpy()
        steps, _, width = rows.shape
        none = np.empty((steps, 0), np.int64)
        partners, share = np.empty((steps, 0, width), np.int32), np.empty((steps, 0), np.float32)
        if drawn.partner is not None and drawn.share is not None:
            partners, share = drawn.partner.numpy(), drawn.share.numpy()
        dropout = kernel.Dropout(regularisation.dropout.numpy(), none, np.empty(0, np.float32))
        if regularisation.drops:
            places = uniform_places(drawn.dropout)
            dropout = dropout._replace(places=places, table=uniform_table(*drawn.key))
        kernel.train(
            flat.numpy(),
            self._layers,
            kernel.Pool(pool.features.numpy(), pool.labels.numpy()),
            kernel.Batches(
                rows,
                drawn.steps,
                regularisation.smoothing.numpy(),
                partners,
                share,
            ),
            kernel.Optimizer(
                settings.optimizer == "adam",
                np.float32(settings.lr),
                np.float32(settings.momentum),
                np.float32(penalties.mu),
                _each(penalties.l1, models),
                _each(penalties.l2, models),
            ),
            dropout,
            _private(private, drawn.noise, models, none),
            np.empty(0) if losses is None else losses,
        )


def _each(value: float | Tensor, models: int) -> np.ndarray:
    """Return a number for each model, (M,) float32."""
    return value.numpy() if isinstance(value, Tensor) else np.full(models, value, np.float32)


def _private(
    private: tuple[StackedPlans, Tensor, NoiseSource] | None,
    numbers: np.ndarray,
    models: int,
    none: np.ndarray,
) -> kernel.Private:
    if private is None:
        single, double = np.empty(0, np.float32), np.empty(0)
        return kernel.Private(
            double, single, double, np.empty(0, bool), single, single, single, none, single[:, None], single
        )
    plans, norm, source = private
    return kernel.Private(
        norm.numpy(),
        plans.expected_batch.numpy(),
        plans.deviation.numpy(),
        plans.adapts.numpy(),
        plans.count_noise.numpy(),
        plans.quantile.numpy(),
        plans.rate.numpy(),
        source.places(numbers),
        source.signs(numbers),
        source.table,
    )
