"""A module's weights as arrays by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of the module's state as float32 arrays, by name, in the module's order."""
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in module.state_dict().items()
    }


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Overwrite the module's state with ``weights``, as returned by `weights`.

    Raises:
        ValueError: names or shapes differ from the module's.
    """
    state = module.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    given = {name: tuple(np.shape(array)) for name, array in weights.items()}
    if given != wanted:
        raise ValueError(f"weights are {given}, the model's are {wanted}")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.tensor(weights[name]))
