"""One party's round of local training by the kernel that trains shadows: a stack of one model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.data.records import Records
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.draws import Draws
from fedsim.core.training.fused.rounds import Drawn, FusedLayers
from fedsim.core.training.stacked.batches import up
from fedsim.core.training.stacked.layers import StackedLayers, Workspace
from fedsim.core.training.stacked.optimizers import Penalties
from fedsim.core.training.stacked.regularisation import Regularisation
from fedsim.core.training.steps import LocalTraining, TrainingReport


def train(module: nn.Module, records: Records, local: LocalTraining, draws: Draws) -> TrainingReport:
    """Train ``module`` in place for one round, as `core.training.sgd.train` does, to float tolerance.

    module: a linear stack on the CPU; local: as `core.training.paths` lets through
    """
    stack = StackedLayers(module)
    layers = FusedLayers(stack)
    flat, model = layers.buffers(Workspace(), 1)
    for place, start in zip(model, stack.load(weights_of(module)), strict=True):
        place.copy_(start)
    rows = _rows(len(records), local.settings, draws)
    pool, losses, no_number = stack.pool(records), np.zeros(1), np.zeros((len(rows), 1), np.uint64)
    layers.train(
        flat,
        pool,
        Drawn(rows, np.array([len(rows)]), None, None, no_number, no_number, key=(0, 0)),
        local.settings,
        Penalties(local.proximal_mu, local.defence.l1, local.settings.l2),
        Regularisation(pool, stack.widths[-1], torch.zeros(1), torch.zeros(1)),
        None,
        losses,
    )
    load_weights(module, {name: value[0] for name, value in stack.state(stack.pieces(model)).items()})
    return TrainingReport(len(rows), float(losses[0]) / int((rows < len(records)).sum()))


def _rows(n: int, settings: TrainingSettings, draws: Draws) -> Tensor:
    """Return the round's batches as the kernel reads them, (T, 1, B) int32, filled up with n."""
    batches = [batch for part in draws.permuted(n, settings) for batch in part]
    sizes = np.array([len(batch) for batch in batches])
    rows = np.full((len(batches), up(int(sizes.max()))), n, np.int32)
    rows[np.arange(rows.shape[1]) < sizes[:, None]] = torch.cat(batches).numpy()
    return torch.from_numpy(rows[:, None])
